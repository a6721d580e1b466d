"""A client of ComfyUI's own HTTP and websocket interface."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import websocket

PREVIEW_IMAGE = 1  # comfy's protocol.BinaryEventTypes; then 4 bytes of image type, then the file
TEXT = 3  # then 4 bytes of length, the node id of that length, then the text


@dataclass(frozen=True)
class Node:
    """A node of a Graph; `node[0]` is its first output, as inputs of other nodes take it."""

    id: str

    def __getitem__(self, slot: int) -> list:
        return [self.id, slot]


class Graph(dict):
    """A workflow in the API format."""

    def add(self, class_type: str, /, **inputs) -> Node:
        node = Node(str(len(self) + 1))
        self[node.id] = {"class_type": class_type, "inputs": inputs}
        return node


class PromptRejected(Exception):
    """The server refused a prompt before running it. `node_errors` maps a node id to its class and its errors."""

    def __init__(self, answer: dict):
        self.error: dict = answer["error"]
        self.node_errors: dict[str, dict] = answer["node_errors"]
        details = [f"{e['message']}: {e['details']}" for n in self.node_errors.values() for e in n["errors"]]
        super().__init__("; ".join([self.error["message"], *details]))


@dataclass(frozen=True)
class NodeError:
    """An exception a node raised while it ran."""

    node_id: str
    node_type: str
    type: str
    message: str
    traceback: str


@dataclass
class Run:
    """What one prompt did."""

    prompt_id: str
    status: str = "running"  # then "success", "error" or "interrupted"
    error: NodeError | None = None
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    progress: list[tuple[str, int, int]] = field(default_factory=list)  # (node id, value, maximum)
    previews: list[bytes] = field(default_factory=list)  # JPEG or PNG files
    texts: list[tuple[str, str]] = field(default_factory=list)  # (node id, what it says of its progress)
    outputs: dict[str, dict] = field(default_factory=dict)  # node id -> what the node shows

    def images(self, node: Node) -> list[dict]:
        return self.outputs[node.id]["images"]

    def results(self, node: Node) -> list[str]:
        """The lines that stay on one of the pack's nodes after the run."""
        return self.outputs[node.id]["palimpsest_result"]


class Client:
    """One websocket session with the server at `address` ("host:port"); not for use by several threads."""

    def __init__(self, address: str):
        self.address = address
        self.id = uuid.uuid4().hex
        self.socket = websocket.create_connection(f"ws://{address}/ws?clientId={self.id}", timeout=30)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception) -> None:
        self.socket.close()

    def get(self, path: str, **query: str) -> bytes:
        suffix = "?" + urllib.parse.urlencode(query) if query else ""
        with urllib.request.urlopen(f"http://{self.address}{path}{suffix}", timeout=60) as answer:
            return answer.read()

    def get_json(self, path: str, **query: str):
        return json.loads(self.get(path, **query))

    def post(self, path: str, body: dict) -> bytes:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.address}{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def object_info(self) -> dict[str, dict]:
        return self.get_json("/object_info")

    def queue(self, graph: dict) -> str:
        """Queue an API-format workflow; returns its prompt id."""
        try:
            return json.loads(self.post("/prompt", {"prompt": graph, "client_id": self.id}))["prompt_id"]
        except urllib.error.HTTPError as refusal:
            if refusal.code != 400:
                raise
            raise PromptRejected(json.loads(refusal.read())) from None

    def run(
        self,
        graph: dict,
        on_progress: Callable[[str, int, int], None] | None = None,
        timeout: float = 600,
    ) -> Run:
        """Queue a workflow and follow it to its end; `on_progress` gets each (node id, value, maximum) as it comes."""
        return self.follow(self.queue(graph), on_progress, timeout)

    def follow(
        self,
        prompt_id: str,
        on_progress: Callable[[str, int, int], None] | None = None,
        timeout: float = 600,
    ) -> Run:
        run = Run(prompt_id)
        deadline = time.monotonic() + timeout
        while True:
            self.socket.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                message = self.socket.recv()
            except websocket.WebSocketTimeoutException:
                raise TimeoutError(f"Prompt {prompt_id} did not end within {timeout:.0f} s.") from None
            if isinstance(message, bytes):
                record_binary(run, int.from_bytes(message[:4], "big"), message[4:])
                continue
            event = json.loads(message)
            data = event["data"]
            if data.get("prompt_id") != prompt_id:
                continue
            # The server sends this last, once the history has the prompt, however the prompt ended.
            if event["type"] == "executing" and data["node"] is None:
                run.outputs = self.get_json(f"/history/{prompt_id}")[prompt_id]["outputs"]
                return run
            record(run, event["type"], data)
            if event["type"] == "progress" and on_progress:
                on_progress(*run.progress[-1])

    def wait_until_idle(self, timeout: float = 600) -> None:
        """Until nothing runs or waits, whoever queued it."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            queue = self.get_json("/queue")
            if not queue["queue_running"] and not queue["queue_pending"]:
                return
            time.sleep(0.2)
        raise TimeoutError(f"The server was still busy after {timeout:.0f} s.")

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Stop what runs, or this prompt if it is what runs."""
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def free(self) -> None:
        """Have the server unload its models and drop cached outputs before it runs anything queued from now on."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        # It does so between two prompts, and may have one that follows at once run first.
        graph = Graph()
        graph.add("PreviewImage", images=graph.add("EmptyImage", width=8, height=8, batch_size=1, color=0)[0])
        self.run(graph)

    def upload_image(self, file: Path, name: str | None = None) -> str:
        """Put a picture into the server's input folder; returns the name LoadImage knows it by."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name or file.name}"\r\n\r\n'
        body = head.encode() + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        request = urllib.request.Request(f"http://{self.address}/upload/image", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["name"]

    def image(self, item: dict) -> bytes:
        """The file of one item of `Run.images`."""
        return self.get("/view", filename=item["filename"], subfolder=item["subfolder"], type=item["type"])


def record_binary(run: Run, event: int, data: bytes) -> None:
    if event == PREVIEW_IMAGE:
        run.previews.append(data[4:])
    elif event == TEXT:
        end = 4 + int.from_bytes(data[:4], "big")
        run.texts.append((data[4:end].decode(), data[end:].decode()))


def record(run: Run, event: str, data: dict) -> None:
    if event == "executing":
        run.executed.append(data["node"])
    elif event == "execution_cached":
        run.cached.extend(data["nodes"])
    elif event == "progress":
        run.progress.append((data["node"], data["value"], data["max"]))
    elif event == "execution_success":
        run.status = "success"
    elif event == "execution_interrupted":
        run.status = "interrupted"
    elif event == "execution_error":
        run.status = "error"
        run.error = NodeError(
            data["node_id"],
            data["node_type"],
            data["exception_type"],
            data["exception_message"].strip(),
            "".join(data["traceback"]),
        )
