from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from support.host.browser import HOW_TO_GET_ONE, find_browser
from support.host.frontend import PATIENCE, Frontend, launch, open_frontend
from support.host.frontends import NEWEST, OLDEST, provide_frontend
from support.host.server import WITH_TOY, Server

# What js/ does, and the blueprints, run at other releases of the frontend too, as `slow`.
ON_OTHER_FRONTENDS = ("test_drawn", "test_drawn_by_hand", "test_drawn_serialised", "test_opening", "test_subgraphs")
INSTALLED = "installed"

expect.set_options(timeout=PATIENCE)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        others = (OLDEST, NEWEST) if metafunc.definition.path.stem in ON_OTHER_FRONTENDS else ()
        releases = [pytest.param(INSTALLED, id=pytest.HIDDEN_PARAM)]
        releases += [pytest.param(release, marks=pytest.mark.slow) for release in others]
        metafunc.parametrize("server", releases, indirect=True, scope="session")


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest, comfyui: Path, tmp_path_factory: pytest.TempPathFactory, server: Server
) -> Iterator[Server]:
    """The server of all rings, or another whose frontend is of another release."""
    if request.param == INSTALLED:
        yield server
        return
    root = ("--front-end-root", str(provide_frontend(request.param)))
    with Server(comfyui, tmp_path_factory.mktemp(request.param), WITH_TOY, root) as running:
        yield running


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
def frontend(request: pytest.FixtureRequest, server: Server) -> Frontend:
    """Either page: the test runs once in each renderer."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def screenshots(server: Server) -> Path:
    """Where the browser ring leaves its pictures, those of another frontend in a folder of their own."""
    folder = Path(__file__).resolve().parents[2] / ".comfyui" / "screenshots"
    if server.arguments:  # --front-end-root <release>/comfyui_frontend_package/static
        folder /= Path(server.arguments[-1]).parents[1].name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
