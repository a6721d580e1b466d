"""Edit a folder of photos through ComfyUI servers: one edit for each row of a table. docs/scripts.md explains it.

python edit_folder.py swap.json photos/edits.csv results --server 127.0.0.1:8188

Python 3.10 or newer, nothing else. Start it again after an interruption: it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import http.client
import json
import os
import queue
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path

AT_ONCE = 2  # edits sent to a server: one that it works on and one that waits, so that it is never idle
PAUSE = 0.5  # seconds between two questions whether an edit is done


class EditFailed(Exception):
    """This edit cannot be made; the others can."""


@dataclass(frozen=True)
class Edit:
    name: str  # of the result, without the ending
    id: str  # the same for the same photo, values and workflow: a server knows by it what it was asked before
    graph: dict[str, dict]  # the workflow with the values of the row
    photos: dict[str, Path]  # by the number of the node that loads them


def read_workflow(file: Path) -> dict[str, dict]:
    """A workflow in API format, or what `comfy --json run --print-prompt` prints."""
    content = json.loads(file.read_text(encoding="utf-8"))
    graph = content["data"]["prompt"] if "data" in content else content
    if not all(isinstance(node, dict) and "class_type" in node for node in graph.values()):
        sys.exit(f"{file}: expected a workflow in API format, got another file. Use Export (API) in ComfyUI's menu.")
    return graph


def find_input(graph: dict[str, dict], column: str) -> tuple[str, str]:
    """The node's number and the input's name for a column called "title of the node.input"."""
    title, _, name = column.rpartition(".")
    inputs = {
        f"{node['_meta']['title']}.{name}": (number, name)
        for number, node in graph.items()
        for name, value in node["inputs"].items()
        if not isinstance(value, list)  # a list is a link from another node
    }
    if column not in inputs:
        sys.exit(f'Column "{column}": the workflow has no such input. It has:\n  ' + "\n  ".join(sorted(inputs)))
    return inputs[column]


def prepare(graph: dict[str, dict], row: dict[str, str], folder: Path) -> Edit:
    """The edit of one row; photos are named from `folder`."""
    graph, photos, digest = copy.deepcopy(graph), {}, hashlib.sha256()
    try:
        for column, value in row.items():
            number, name = find_input(graph, column)
            node = graph[number]
            if node["class_type"] == "LoadImage" and name == "image":
                photos[number] = folder / value
                digest.update(photos[number].read_bytes())
                value = photos[number].name
            text = isinstance(node["inputs"][name], str)
            node["inputs"][name] = value if text else json.loads(value)
    except (OSError, ValueError) as error:
        raise EditFailed(f"{column}: {error}") from None
    digest.update(json.dumps(graph, sort_keys=True).encode())
    id = str(uuid.uuid5(uuid.NAMESPACE_OID, digest.hexdigest()))
    name = "-".join([*(photo.stem for photo in photos.values()), id[:8]])
    for node in graph.values():
        if node["class_type"] == "SaveImage":
            node["inputs"]["filename_prefix"] = name
    return Edit(name, id, graph, photos)


class Server:
    def __init__(self, address: str):
        self.address = address

    def ask(self, path: str, body: bytes | dict | None = None, kind: str = "application/json") -> bytes:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(f"http://{self.address}{path}", data, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def knows(self, edit: Edit) -> dict | None:
        """Waits while the edit is in the server's queue; then what its history says of it."""
        while True:
            waiting = json.loads(self.ask("/queue"))
            if edit.id not in [entry[1] for part in ("queue_running", "queue_pending") for entry in waiting[part]]:
                return json.loads(self.ask(f"/history/{edit.id}")).get(edit.id)
            time.sleep(PAUSE)

    def make(self, edit: Edit) -> list[tuple[str, bytes]]:
        """The pictures that the workflow saves: (ending of the file, content)."""
        entry = self.knows(edit)
        if entry is None or entry["status"]["status_str"] != "success":
            self.ask("/history", {"delete": [edit.id]})  # of an earlier attempt that failed
            self.queue(edit)
            entry = self.knows(edit)
        if entry is None:
            raise EditFailed("The server does not know of this edit any more. Run this again.")
        if entry["status"]["status_str"] != "success":
            raise EditFailed(why(entry["status"]["messages"]))
        saved = [item for output in entry["outputs"].values() for item in output.get("images", [])]
        made = [item for item in saved if item["type"] == "output"]
        if not made:
            raise EditFailed("The workflow saved no picture: it needs a Save Image node.")
        keys = ("filename", "subfolder", "type")
        queries = [urllib.parse.urlencode({key: item[key] for key in keys}) for item in made]
        contents = [self.ask(f"/view?{query}") for query in queries]
        return [(Path(item["filename"]).suffix, content) for item, content in zip(made, contents, strict=True)]

    def queue(self, edit: Edit) -> None:
        graph = copy.deepcopy(edit.graph)
        for number, photo in edit.photos.items():
            graph[number]["inputs"]["image"] = self.upload(photo)
        try:
            self.ask("/prompt", {"prompt": graph, "prompt_id": edit.id})
        except urllib.error.HTTPError as refusal:
            answer = json.loads(refusal.read())
            details = [error["details"] for node in answer["node_errors"].values() for error in node["errors"]]
            raise EditFailed("; ".join([answer["error"]["message"], *details])) from None

    def upload(self, photo: Path) -> str:
        """Into the server's input folder; returns the name it has there."""
        boundary = uuid.uuid4().hex
        name = photo.name.replace('"', "%22")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body = head.encode() + photo.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        return json.loads(self.ask("/upload/image", body, f"multipart/form-data; boundary={boundary}"))["name"]


def why(messages: list) -> str:
    """The reason of a run that failed, from its history."""
    for kind, data in messages:
        if kind == "execution_error":
            return f"{data['node_type']}: {data['exception_message'].strip()}"
    return "The run was cancelled."


def is_done(edit: Edit, results: Path) -> bool:
    return any(file.stem == edit.name for file in results.iterdir())


def keep(edit: Edit, pictures: list[tuple[str, bytes]], results: Path) -> None:
    """Each file appears whole or not at all. The first picture comes last: the edit is done once it is there."""
    for number, (ending, content) in reversed([*enumerate(pictures, 1)]):
        name = edit.name if number == 1 else f"{edit.name} {number}"
        part = results / f"{name}{ending}.part"
        part.write_bytes(content)
        os.replace(part, results / f"{name}{ending}")


def work(server: Server, edits: queue.SimpleQueue, results: Path, told: queue.SimpleQueue) -> None:
    """Takes edits until there are none; tells (edit, seconds or what went wrong), and None at the end."""
    try:
        while True:
            edit, start = edits.get_nowait(), time.monotonic()
            try:
                keep(edit, server.make(edit), results)
                told.put((edit, time.monotonic() - start))
            except (EditFailed, urllib.error.HTTPError, FileNotFoundError) as error:
                told.put((edit, error))
            except (OSError, http.client.HTTPException) as error:
                edits.put(edit)
                print(f"{server.address} does not answer: {error}", file=sys.stderr)
                return
    except queue.Empty:
        pass
    finally:
        told.put(None)


def read_edits(graph: dict[str, dict], table: Path) -> tuple[list[Edit], int]:
    """The edits of a CSV file, each once, and how many of its rows make none."""
    edits, failed = {}, 0
    with table.open(encoding="utf-8-sig", newline="") as file:
        for line, row in enumerate(csv.DictReader(file), 2):
            try:
                edit = prepare(graph, row, table.parent)
                edits[edit.id] = edit
            except EditFailed as error:
                failed += 1
                print(f"[failed] row {line}: {error}", file=sys.stderr)
    return [*edits.values()], failed


def write(edits: list[Edit], folder: Path) -> None:
    for edit in edits:
        (folder / f"{edit.name}.json").write_text(json.dumps(edit.graph, indent=1), encoding="utf-8")


def run(edits: list[Edit], servers: list[str], results: Path) -> int:
    """Makes what is not there yet; returns how many edits are not made after it."""
    left, told = queue.SimpleQueue(), queue.SimpleQueue()
    for edit in edits:
        if not is_done(edit, results):
            left.put(edit)
    done, failed = len(edits) - left.qsize(), 0
    print(f"{len(edits)} edits, {done} of them done already", flush=True)
    workers = [Server(address) for address in servers for _ in range(AT_ONCE)]
    for server in workers:
        threading.Thread(target=work, args=(server, left, results, told), daemon=True).start()
    working = len(workers)
    while working:
        match told.get():
            case None:
                working -= 1
            case edit, float(seconds):
                done += 1
                print(f"[{done}/{len(edits)}] {edit.name}: {seconds:.1f} s", flush=True)
            case edit, error:
                failed += 1
                print(f"[failed] {edit.name}: {error}", file=sys.stderr, flush=True)
    if not left.empty():
        print(f"{left.qsize()} edits are left: no server answers. Run this again to go on.", file=sys.stderr)
    return failed + left.qsize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workflow", type=Path, help="in API format")
    parser.add_argument("table", type=Path, help='CSV; a column is called "title of the node.input"')
    parser.add_argument("results", type=Path, help="folder for the pictures; with --write, for the prompts")
    parser.add_argument("--server", action="append", metavar="HOST:PORT", help="may be given several times")
    parser.add_argument("--write", action="store_true", help="write each edit's prompt to a file and run nothing")
    given = parser.parse_args()
    edits, failed = read_edits(read_workflow(given.workflow), given.table)
    given.results.mkdir(parents=True, exist_ok=True)
    if given.write:
        write(edits, given.results)
    else:
        failed += run(edits, given.server or ["127.0.0.1:8188"], given.results)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
