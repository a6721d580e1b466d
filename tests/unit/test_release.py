"""What leaves this repository: the registry's archive, its metadata, and links that people follow."""

import ast
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from support.host.provision import RELEASES, ROOT
from support.repository import packed_files, repository_files

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

pytestmark = pytest.mark.unit

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FILES = repository_files()
PACKED = packed_files()
HELP = ROOT / "js" / "docs"
PAGES = [ROOT / name for name in FILES if name.endswith(".md")]
LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)(?:\s[^)]*)?\)")
MEGABYTE = 1024**2


@pytest.mark.parametrize(
    ("folder", "suffixes"),
    [
        ("nodes", {".py"}),
        ("js", {".md", ".webp", ".js", ".mjs", ".css"}),
        ("locales", {".json"}),
        ("example_workflows", {".json", ".jpg"}),
        ("subgraphs", {".json"}),
    ],
)
def test_all_that_an_artist_s_comfyui_reads_is_packed_N2(folder: str, suffixes: set[str]):
    """Fault N2: an unanchored `docs/` in .comfyignore dropped js/docs/ too, every help page."""
    wanted = [name for name in FILES if name.startswith(f"{folder}/")]
    assert [name for name in wanted if name not in PACKED] == []
    assert {Path(name).suffix for name in wanted} <= suffixes


def test_help_pages_are_packed_N2():
    pages = {Path(name).stem for name in PACKED if name.startswith("js/docs/")}
    ids = set()
    for file in (ROOT / "nodes").rglob("nodes.py"):
        ids |= set(re.findall(r'node_id="(PAL_\w+)"', file.read_text(encoding="utf-8")))
    assert ids and pages >= ids


def test_nothing_else_is_packed_N2():
    others = {name.split("/")[0] for name in PACKED} - {"nodes", "js", "locales", "example_workflows", "subgraphs"}
    assert others == {"__init__.py", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"}
    assert all(name.isascii() for name in PACKED)  # comfy-cli reads git's list of files, which quotes other names


def test_the_archive_is_light():
    assert sum((ROOT / name).stat().st_size for name in PACKED) < 6 * MEGABYTE


def test_a_clone_is_light():
    sizes = {name: (ROOT / name).stat().st_size for name in FILES}
    weights = [size for name, size in sizes.items() if name.startswith("tests/lab/world/weights/")]
    assert 0 < sum(weights) < 40 * MEGABYTE
    pictures = {name: size for name, size in sizes.items() if name.startswith("docs/") and not name.endswith(".md")}
    assert {name: size for name, size in pictures.items() if size > 0.5 * MEGABYTE} == {}
    assert sum(pictures.values()) < 4 * MEGABYTE


def test_the_metadata_says_what_is_tested():
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert project["dependencies"] == []
    assert comfy["requires-comfyui"] == f">={min(RELEASES, key=lambda version: [*map(int, version.split('.'))])}"
    newest_changes = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest_changes and newest_changes[1] == project["version"]
    assert f"version: {project['version']}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_every_dependency_of_the_tests_is_pinned():
    lines = (ROOT / "tests" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    loose = [line for line in lines if line and line[0] != "#" and not re.match(r"^[\w.-]+==[\w.+]+( ; .+)?$", line)]
    assert loose == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    # ComfyUI's frontend looks for what a help page names in js/docs, in whatever language the page is.
    folder = HELP if page.is_relative_to(HELP) else page.parent
    broken = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (folder / unquote(path)) if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_fault_table_names_tests_that_run_daily():
    """tests/README.md maps each fault of the past to what would find it again, at the next `make test`."""
    rows = re.findall(r"^\| (\w+) \| `([\w/.]+)(?:::(\w+))?`", (ROOT / "tests" / "README.md").read_text("utf-8"), re.M)
    assert rows
    for fault, file, name in rows:
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        found = {item.name: item for item in ast.walk(ast.parse(source)) if isinstance(item, ast.FunctionDef)}
        assert not name or name in found, (fault, file, name)
        marks = {ast.unparse(mark) for mark in found[name].decorator_list} if name else set()
        assert not marks & {"pytest.mark.long", "pytest.mark.slow"}, (fault, file, name)
        assert not re.search(r"^pytestmark = .*mark\.(long|slow)", source, re.M), file
        assert fault in source, f"{file} does not say that it is about {fault}"
