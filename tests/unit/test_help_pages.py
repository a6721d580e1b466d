"""Help pages: one order of headings, and no error message that the nodes do not give."""

import ast
import json
import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in sorted((ROOT / "js/docs").glob("*.md"))}
ON_THE_NODE = "On the node"
HEADINGS = [
    "Inputs",
    "Outputs",
    ON_THE_NODE,
    "How to wire it",
    "Settings that matter",
    "What can go wrong",
    "Cost",
    "Paper",
]
TRANSLATED = {
    "zh": ["输入", "输出", "节点上", "如何连接", "重要设置", "可能出现的问题", "开销", "论文"],
    "ja": ["入力", "出力", "ノード上の表示", "接続方法", "重要な設定", "うまくいかないとき", "コスト", "論文"],
}
VALUE = "\0"  # where a message has a value of the run
HOW_MUCH = 12  # letters of a message that a quotation must have beside the socket's name
LONGEST_TOOLTIP = 300


def messages() -> list[str]:
    """Every text in the nodes' sources, with VALUE for what is filled in."""
    found = []
    for file in sorted((ROOT / "nodes").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else VALUE for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


MESSAGES = messages()


def quotations(page: str) -> list[str]:
    """The messages of the table of faults: rows whose first cell is in backticks. Three dots stand for a value."""
    table = page.split("## What can go wrong")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (.*?) \|", table, flags=re.MULTILINE)
    return [cell.strip("`") for cell in cells if cell.startswith("`")]


def is_given(quotation: str) -> bool:
    """Whether a message of the nodes begins so."""
    socket, rest = quotation.split(":", 1)
    text = ".*?".join(re.escape(part) for part in rest.split("..."))
    pattern = re.compile(f"(?:{re.escape(socket)}|{VALUE}):{text}", flags=re.DOTALL)
    return len(re.findall(r"\w", rest)) >= HOW_MUCH and any(pattern.match(message) for message in MESSAGES)


@pytest.mark.parametrize("name", PAGES)
def test_every_page_has_the_same_headings(name: str):
    page = PAGES[name]
    headings = re.findall(r"^## (.*)$", page, flags=re.MULTILINE)
    assert headings == [heading for heading in HEADINGS if heading != ON_THE_NODE or heading in headings]
    title, opening, picture, caption = page.split("\n\n")[:4]
    assert re.fullmatch(r"# [^\n]+", title) and not opening.startswith(("#", "|", "!"))
    assert re.fullmatch(r"!\[[^\]]+\]\([a-z_]+\.webp\)", picture) and re.fullmatch(r"\*.+\*", caption)


def test_pages_of_nodes_with_a_panel_describe_it():
    views = re.search(r"const VIEWS = \{(.*?)\}", (ROOT / "js/palimpsest.js").read_text(encoding="utf-8"), re.DOTALL)
    drawn = re.findall(r"(PAL_\w+):", views[1])
    assert drawn and [name for name in drawn if f"## {ON_THE_NODE}\n" not in PAGES[name]] == []


@pytest.mark.parametrize("name", PAGES)
def test_quoted_messages_exist(name: str):
    assert [quotation for quotation in quotations(PAGES[name]) if not is_given(quotation)] == []


def test_a_message_that_no_node_gives_is_found():
    assert is_given("sigmas: expected strictly descending values")
    assert not is_given("sigmas: expected strictly ascending values")
    assert not is_given("trajectory: ... which is")


def structure(page: str) -> dict[str, object]:
    """What a translation has in common with its page: rows, lists, wiring, pictures, and everything in backticks."""
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    return {
        "rows": len(re.findall(r"^\|", prose, flags=re.MULTILINE)),
        "items": len(re.findall(r"^(?:- |\d+\. )", prose, flags=re.MULTILINE)),
        "wiring": page.count("```"),
        "pictures": re.findall(r"!\[[^\]]+\]\(([^)]+)\)", prose),
        "quoted": Counter(re.findall(r"`([^`\n]+)`", prose)),
    }


@pytest.mark.parametrize("language", TRANSLATED)
@pytest.mark.parametrize("name", PAGES)
def test_translated_pages_say_the_same(name: str, language: str):
    english, page = PAGES[name], (ROOT / "js/docs" / name / f"{language}.md").read_text(encoding="utf-8")
    headings = dict(zip(HEADINGS, TRANSLATED[language], strict=True))
    wanted = [headings[heading] for heading in re.findall(r"^## (.*)$", english, flags=re.MULTILINE)]
    assert re.findall(r"^## (.*)$", page, flags=re.MULTILINE) == wanted
    assert structure(page) == structure(english)
    names = json.loads((ROOT / f"locales/{language}/nodeDefs.json").read_text(encoding="utf-8"))
    assert page.splitlines()[0] == f"# {names[name]['display_name']}"


def test_translated_pages_are_of_nodes_and_languages_that_exist():
    found = {file.relative_to(ROOT / "js/docs").as_posix() for file in (ROOT / "js/docs").glob("*/*.md")}
    assert found == {f"{name}/{language}.md" for name in PAGES for language in TRANSLATED}


def test_pictures_of_pages_exist_and_are_small():
    used = {link for page in PAGES.values() for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)}
    sizes = {file.name: file.stat().st_size for file in (ROOT / "js/docs").glob("*.webp")}
    assert used == sizes.keys() and all(size < 60_000 for size in sizes.values())


def test_the_readme_leads_to_every_page_and_workflow():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = {unquote(link) for link in re.findall(r"\]\(([^)\s]+)\)", readme)}
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "example_workflows").glob("*.json")}
    assert links >= shipped | {f"js/docs/{name}.md" for name in PAGES}


def test_tooltips_are_short():
    text = (ROOT / "tests/server/object_info.json").read_text(encoding="utf-8")
    long = [tip for tip in re.findall(r'"tooltip": "((?:[^"\\]|\\.)*)"', text) if len(tip) > LONGEST_TOOLTIP]
    assert '"tooltip"' in text and long == []
