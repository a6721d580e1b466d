"""docs/scripts.md on a real server: a folder of photos edited by a script and by comfy-cli."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from skimage import data
from support.fixtures.shipped import quick
from support.host.client import Client
from support.host.server import PACK, Server, free_port
from workflows.api_format import api_format
from workflows.shipped import WORKFLOWS

pytestmark = pytest.mark.server

SCRIPT = PACK / "docs" / "scripts" / "edit_folder.py"
PAGE = (PACK / "docs" / "scripts.md").read_text(encoding="utf-8")
COLUMNS = re.search(r"```csv\n(.+)\n", PAGE)[1].split(",")
SWAP = next(workflow for workflow in WORKFLOWS if workflow.name == "Swap a word in a photo")
COMFY = Path(sys.executable).with_name("comfy")


@dataclass
class Job:
    """A folder of photos, what to do with them, and what has become of it."""

    folder: Path
    server: Server

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def start(self, *options: str) -> subprocess.Popen:
        files = (self.folder / "swap.json", self.folder / "photos" / "edits.csv", self.results)
        command = [sys.executable, str(SCRIPT), *map(str, files), *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *options: str) -> tuple[int, str, str]:
        script = self.start(*(options or ("--server", self.server.address)))
        said, complained = script.communicate(timeout=300)
        return script.returncode, said, complained

    def made(self) -> list[str]:
        return sorted(file.name for file in self.results.iterdir())

    def queued(self) -> int:
        """How often the server has been asked for anything, by anyone."""
        return self.server.log.count("got prompt")


def quicker(graph: dict[str, dict], sd15: str) -> dict[str, dict]:
    """Two steps, an inversion of one evaluation a step, and no optimisation."""
    graph = quick(graph, ckpt_name=sd15)
    methods = {"PAL_DDIMInvert": "ddim", "PAL_NullTextOptimize": "negative_prompt"}
    for node in graph.values():
        if method := methods.get(node["class_type"]):
            node["inputs"]["method"] = method
    return graph


def prepare(folder: Path, server: Server, client: Client, sd15: str, photos: int, broken: int, word: str) -> Job:
    """A table of as many edits as photos; `word` makes them other edits than those of another test."""
    graph = quicker(api_format(SWAP, client.object_info()), sd15)
    (folder / "swap.json").write_text(json.dumps(graph))
    (folder / "photos").mkdir()
    crops = data.astronaut()
    with (folder / "photos" / "edits.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for number in range(photos):
            photo = folder / "photos" / f"photo {number:02}.png"
            Image.fromarray(crops[8 * number :][:64, 100:164]).save(photo)
            table.writerow([photo.name, f"a {word} woman", f"a {word} robot", "woman"])
    (folder / "photos" / f"photo {broken:02}.png").write_bytes(b"no picture")
    return Job(folder, server)


def edit_and_interrupt(job: Job, photos: int, interrupt: int) -> None:
    """Killed at its worst moment, while the server works on what it was sent; then started again."""
    before = job.queued()
    script = job.start("--server", job.server.address)
    while len(job.made() if job.results.exists() else ()) < photos // 2:
        assert script.poll() is None, script.communicate()
        time.sleep(0.05)
    script.send_signal(interrupt)
    script.communicate()
    early = {name: (job.results / name).stat().st_mtime_ns for name in job.made()}
    assert photos // 2 <= len(early) < photos - 1

    status, said, complained = job.run()
    assert status == 1
    assert complained.count("\n") == 1 and "[failed] photo 01-" in complained and "LoadImage" in complained
    assert f"{photos} edits, {len(early)} of them done already" in said
    assert [name[:8] for name in job.made()] == [f"photo {number:02}" for number in range(photos) if number != 1]
    assert {name: (job.results / name).stat().st_mtime_ns for name in early} == early
    assert all(Image.open(job.results / name).size == (64, 64) for name in job.made())
    assert job.queued() - before == photos + 1  # every edit once; the broken one again

    assert job.run()[0] == 1
    assert job.queued() - before == photos + 2


def test_a_folder_is_edited_with_an_interruption_and_a_broken_photo(
    tmp_path: Path, server: Server, client: Client, sd15: str
):
    edit_and_interrupt(prepare(tmp_path, server, client, sd15, 4, 1, "tall"), 4, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize("interrupt", [signal.SIGKILL, signal.SIGINT])
def test_twenty_photos(tmp_path: Path, server: Server, client: Client, sd15: str, interrupt: int):
    job = prepare(tmp_path, server, client, sd15, 20, 1, f"calm {interrupt.name}")
    edit_and_interrupt(job, 20, interrupt)


def test_servers_share_the_edits_and_one_that_is_gone_loses_none(
    tmp_path: Path, server: Server, client: Client, sd15: str
):
    job = prepare(tmp_path, server, client, sd15, 4, 3, "small")
    (job.folder / "photos" / "photo 03.png").unlink()
    gone, port = f"127.0.0.1:{free_port()}", server.address.partition(":")[2]
    status, _, complained = job.run("--server", gone)
    assert status == 1 and "3 edits are left" in complained and job.made() == []
    before = job.queued()
    status, _, complained = job.run(
        *("--server", gone), *("--server", server.address), *("--server", f"localhost:{port}")
    )
    assert f"{gone} does not answer" in complained and "row 5: Your picture.image" in complained
    assert status == 1 and [name[:8] for name in job.made()] == ["photo 00", "photo 01", "photo 02"]
    assert job.queued() - before == 3


def test_a_column_that_the_workflow_lacks_is_said(tmp_path: Path, server: Server, client: Client, sd15: str):
    job = prepare(tmp_path, server, client, sd15, 1, 0, "any")
    table = job.folder / "photos" / "edits.csv"
    table.write_text(table.read_text().replace(COLUMNS[1], "What it shows.value"))
    status, _, complained = job.run()
    assert status == 1
    assert 'Column "What it shows.value": the workflow has no such input.' in complained and COLUMNS[1] in complained


def comfy(server: Server, *arguments: str | Path, folder: Path, output: str = "") -> subprocess.CompletedProcess:
    """comfy-cli with settings of its own, which asks nothing and sends nothing."""
    host, _, port = server.address.partition(":")
    command = [str(COMFY), "--skip-prompt", *map(str, arguments), "--host", host, "--port", port]
    environment = {"HOME": str(folder), "DO_NOT_TRACK": "1", "PATH": str(COMFY.parent)}
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=folder
    )


def converted(server: Server, name: str, folder: Path) -> str:
    file = PACK / "example_workflows" / f"{name}.json"
    return comfy(server, "--json", "run", "--workflow", file, "--print-prompt", folder=folder).stdout


@pytest.mark.parametrize(
    "workflow",
    [
        pytest.param(workflow, marks=() if workflow.name in (SWAP.name, "Two checkpoints, one picture") else pytest.mark.long)
        for workflow in WORKFLOWS
    ],
    ids=lambda workflow: workflow.name,
)  # fmt: skip
def test_comfy_cli_converts_what_is_shipped(tmp_path: Path, server: Server, client: Client, workflow):
    prompt = json.loads(converted(server, workflow.name, tmp_path))["data"]["prompt"]
    assert prompt == api_format(workflow, client.object_info())


def test_comfy_cli_runs_what_the_script_writes(tmp_path: Path, server: Server, client: Client, sd15: str):
    job = prepare(tmp_path, server, client, sd15, 2, 1, "old")
    envelope = json.loads(converted(server, SWAP.name, tmp_path))
    envelope["data"]["prompt"] = quicker(envelope["data"]["prompt"], sd15)
    (job.folder / "swap.json").write_text(json.dumps(envelope))
    assert job.run("--write") == (0, "", "")
    assert comfy(server, "upload", *sorted((job.folder / "photos").glob("*.png")), folder=tmp_path).returncode == 0
    good, bad = sorted(job.results.iterdir())
    statuses = [comfy(server, "run", "--workflow", file, "--wait", folder=tmp_path).returncode for file in (good, bad)]
    assert statuses[0] == 0 and statuses[1] != 0
    assert (server.base / "output" / f"{good.stem}_00001_.png").is_file()
