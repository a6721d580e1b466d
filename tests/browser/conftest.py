from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from support.host.browser import HOW_TO_GET_ONE, find_browser
from support.host.frontend import Frontend, launch, open_frontend
from support.host.server import Server


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if find_browser() is None:
        pytest.fail(HOW_TO_GET_ONE)
    with launch() as launched:
        yield launched


@pytest.fixture(scope="session")
def canvas_page(browser: Browser, server: Server) -> Iterator[Frontend]:
    with open_frontend(browser, server.address) as opened:
        yield opened


@pytest.fixture(scope="session")
def nodes2_page(browser: Browser, server: Server) -> Iterator[Frontend]:
    with open_frontend(browser, server.address, vue_nodes=True) as opened:
        yield opened


@pytest.fixture
def canvas(canvas_page: Frontend) -> Frontend:
    """The page with the classic renderer, which all tests share, emptied."""
    canvas_page.start_over()
    return canvas_page


@pytest.fixture
def nodes2(nodes2_page: Frontend) -> Frontend:
    """The same with Nodes 2.0."""
    nodes2_page.start_over()
    return nodes2_page


@pytest.fixture(params=["canvas", "nodes2"])
def frontend(request: pytest.FixtureRequest) -> Frontend:
    """Either page: the test runs once in each renderer."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where the browser ring leaves its pictures."""
    folder = Path(__file__).resolve().parents[2] / ".comfyui" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
