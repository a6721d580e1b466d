"""The rules the layout rests on, read from the source itself."""

import ast
import re
from pathlib import Path

import networkx
import pytest
from support.repository import repository_files

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
NODES = ROOT / "nodes"
MODULES = sorted(path for path in NODES.rglob("*.py") if path.name != "__init__.py")
# What each folder may import besides itself. Folders that are not named are slices, which may import every shared folder.
SHARED = {"diffusion": {"attention"}, "attention": set(), "text": set(), "files": set(), "display": set()}
PARTS_OF_A_SLICE = {"unclip.prior", "unclip.decoder", "unclip.embeddings"}  # each sees unclip, not the other parts
TOP_LEVEL = {
    *("__init__.py", "pyproject.toml", "README.md", "LICENSE", "Makefile", ".gitignore", ".comfyignore"),
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md"),
    *("nodes", "js", "tests", "docs", "example_workflows", "subgraphs", "locales", ".ci", ".github"),
}
# What ties a module to the running application; the algorithms are plain functions over tensors and ComfyUI's models.
APPLICATION = {"comfy_api", "server", "folder_paths", "nodes"}
MAY_IMPORT = {
    "files/saved_files.py": {"folder_paths"},
    "display/feedback.py": {"comfy_api", "server"},
}
MAY_IMPORT_LIBRARY = {"extension.py": {"importlib"}}
FORBIDDEN_IMPORTS = {"subprocess", "pickle", "joblib", "ctypes", "socket", "urllib", "requests", "importlib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "print", "breakpoint"}
FORBIDDEN_NAMES = {"torch.load", "torch.hub", "os.system", "os.popen"}
MACHINE_PATH = re.compile(r"(?<![\w.$}~-])/(?:root|home|work|tmp|Users|mnt|private)/[\w.-]+|[A-Z]:\\\\Users")


FILES = [ROOT / name for name in repository_files()]
SCRIPTS = [path for path in FILES if path.suffix in (".js", ".mjs")]


def imports(path: Path) -> list[str]:
    """Absolute names of what a module imports; the pack itself is called `palimpsest`."""
    package = ("palimpsest", *path.relative_to(ROOT).parts[:-1])
    names = []
    for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(item, ast.Import):
            names += [alias.name for alias in item.names]
        elif isinstance(item, ast.ImportFrom):
            base = ".".join(package[: len(package) - item.level + 1]) + "." if item.level else ""
            names += [f"{base}{item.module or ''}".rstrip(".") + f".{alias.name}" for alias in item.names]
    return names


def named(path: Path) -> str:
    return path.relative_to(NODES).as_posix()


def folder(module: str) -> str:
    """Of `palimpsest.nodes.text.tokens`, text; of a module in one of unclip's parts, unclip.prior or the like."""
    parts = module.removeprefix("palimpsest.nodes").lstrip(".").split(".")
    part = ".".join(parts[:2])
    return part if part in PARTS_OF_A_SLICE else parts[0]


def may_import(importer: str, imported: str) -> bool:
    if importer in SHARED:
        return imported == importer or imported in SHARED[importer]
    return imported in SHARED or imported == importer or (importer in PARTS_OF_A_SLICE and imported == "unclip")


def own_imports(path: Path) -> list[str]:
    """Modules of the pack that this one imports."""
    found = []
    for name in imports(path):
        if name.startswith("palimpsest.nodes."):
            parent = name.rpartition(".")[0]
            found.append(name if module_file(name).is_file() else parent)
    return found


def module_file(name: str) -> Path:
    return ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")


def module_name(path: Path) -> str:
    return ".".join(("palimpsest", *path.relative_to(ROOT).with_suffix("").parts))


def test_imports_go_from_slices_to_shared_folders_and_slices_do_not_know_each_other():
    offences = [
        f"{named(path)}: {name}"
        for path in MODULES
        if path.parent != NODES
        for name in own_imports(path)
        if not may_import(folder(module_name(path)), folder(name))
    ]
    assert offences == []


def test_no_files_import_each_other_in_a_circle():
    graph = networkx.DiGraph([(module_name(path), name) for path in MODULES for name in own_imports(path)])
    assert list(networkx.simple_cycles(graph)) == []


def test_no_folders_import_each_other_in_a_circle():
    edges = {(folder(module_name(path)), folder(name)) for path in MODULES for name in own_imports(path)}
    assert list(networkx.simple_cycles(networkx.DiGraph([(a, b) for a, b in edges if a != b]))) == []


def test_algorithms_do_not_know_the_application():
    offences = []
    for path in MODULES:
        if path.parent == NODES or path.name in ("nodes.py", "sockets.py"):
            continue
        wanted = {name.split(".")[0] for name in imports(path)} & APPLICATION - MAY_IMPORT.get(named(path), set())
        of_nodes = [name for name in own_imports(path) if name.endswith((".nodes", ".extension"))]
        offences += [f"{named(path)}: {name}" for name in [*sorted(wanted), *of_nodes]]
    assert offences == []


def test_nothing_dangerous_is_imported_or_called():
    offences = []
    for path in MODULES:
        forbidden = FORBIDDEN_IMPORTS - MAY_IMPORT_LIBRARY.get(named(path), set())
        offences += [f"{named(path)}: {name}" for name in imports(path) if name.split(".")[0] in forbidden]
        for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(item, ast.Call) and isinstance(item.func, ast.Name) and item.func.id in FORBIDDEN_CALLS:
                offences.append(f"{named(path)}:{item.lineno}: {item.func.id}()")
            if isinstance(item, ast.Attribute) and ast.unparse(item) in (
                "torch.load",
                "torch.hub",
                "os.system",
                "os.popen",
            ):
                offences.append(f"{named(path)}:{item.lineno}: {ast.unparse(item)}")
    assert offences == []


def test_routes_are_the_pack_s_own_and_few():
    """One module, so that what a browser can ask for is read in one place."""
    serving = [
        path for path in MODULES if re.search(r"\broutes\.\w+\(|\bsend_sync\(|\badd_route", path.read_text("utf-8"))
    ]
    paths = [
        match for path in MODULES for match in re.findall(r'^ROUTE = "(.+)"', path.read_text("utf-8"), re.MULTILINE)
    ]
    assert [named(path) for path in serving] == ["prompt_to_prompt/nodes.py"]
    assert paths == ["/palimpsest/prompt_edit"]


def test_packages_have_empty_init_files():
    """Then a module imports with what it needs itself, and the unit ring needs no ComfyUI."""
    assert [str(path) for path in NODES.rglob("__init__.py") if path.read_text(encoding="utf-8")] == []


def test_every_slice_is_registered_and_every_node_is_listed_once():
    extension = ast.parse((NODES / "extension.py").read_text(encoding="utf-8"))
    [slices] = [
        ast.literal_eval(item.value)
        for item in extension.body
        if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == "SLICES"
    ]
    files = sorted(NODES.rglob("nodes.py"))
    assert sorted(slices) == [".".join(path.relative_to(NODES).parent.parts) for path in files]
    listed: list[str] = []
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [item.name for item in tree.body if isinstance(item, ast.ClassDef) and is_node(item)]
        assert sorted(listed_nodes(tree)) == sorted(classes), path
        listed += classes
    assert listed
    assert len(listed) == len(set(listed))


def listed_nodes(tree: ast.Module) -> list[str]:
    [nodes] = [
        item.value
        for item in tree.body
        if isinstance(item, ast.Assign | ast.AnnAssign)
        and "NODES" in [ast.unparse(target) for target in getattr(item, "targets", None) or [item.target]]
    ]
    return [ast.unparse(entry) for entry in nodes.elts]


def is_node(item: ast.ClassDef) -> bool:
    return any(ast.unparse(base).endswith("ComfyNode") for base in item.bases)


def test_files_are_of_a_size_to_read():
    python = [path for path in FILES if path.suffix == ".py"]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in python}
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def test_the_top_level_holds_what_it_may():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} - TOP_LEVEL == set()


def test_no_file_names_a_machine():
    offences = []
    for path in FILES:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        offences += [f"{path.relative_to(ROOT)}: {match[0]}" for match in MACHINE_PATH.finditer(text)]
    assert offences == []


def test_the_scripts_keep_to_themselves():
    """One entry file that the frontend imports by itself; the rest are modules; no page-wide effects, no markup."""
    assert len([path for path in SCRIPTS if path.suffix == ".js"]) <= 1
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|\bnew Function\b"
        r"|(?:from|import\()\s*[\"']https?:"
        r"|\b(?:window|globalThis)(?:\.\w+|\[[^\]]+\])\s*=[^=]|\bprototype\b|document\.addEventListener"
    )
    offences = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in SCRIPTS
        for match in forbidden.finditer(path.read_text("utf-8"))
    ]
    assert offences == []
