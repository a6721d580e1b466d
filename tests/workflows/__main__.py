"""The command that makes the shipped workflows anew in the real frontend.

make workflows     # rewrites example_workflows/*.json and subgraphs/ after a change of tests/workflows or of the nodes

which is `python -m workflows` with tests/ on the path. The same descriptions give the same files.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from support.host.frontend import launch, open_frontend
from support.host.provision import comfyui_location
from support.host.server import Server
from workflows.files_and_colours import FILES, PICTURE
from workflows.saving import save_workflow
from workflows.shipped import BLUEPRINTS, WORKFLOWS
from workflows.subgraph_saving import save_blueprint

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "example_workflows"
SUBGRAPHS = ROOT / "subgraphs"


def main() -> None:
    with tempfile.TemporaryDirectory() as base:
        server = Server(comfyui_location(), Path(base))
        (server.base / "input").mkdir()
        shutil.copy(server.comfyui / "input" / PICTURE, server.base / "input")
        for kind, names in FILES.items():  # so that no loader names one that is missing
            folder = server.base / "models" / kind
            folder.mkdir(parents=True)
            for name in names:
                (folder / name).touch()
        with server, launch() as browser, open_frontend(browser, server.address) as frontend:
            for workflow in WORKFLOWS:
                print(save_workflow(frontend, workflow, FOLDER))
            for blueprint in BLUEPRINTS:
                print(save_blueprint(frontend, blueprint, SUBGRAPHS))


if __name__ == "__main__":
    main()
