"""What the pack draws on its nodes, in both renderers: it shows, it writes into widgets, it outlives what an artist does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect
from support.host.client import Client
from support.host.drawn import STEPS, open_drawn
from support.host.frontend import Frontend
from support.host.server import Server

pytestmark = pytest.mark.browser

WIDGET = (
    """([type, name]) => app.graph.nodes.find(node => node.type === type)?.widgets.find(w => w.name === name).value"""
)
SET_WIDGET = """([type, name, value]) => {
    app.graph.nodes.find(node => node.type === type).widgets.find(w => w.name === name).value = value
}"""
BOX_INPUTS = "app.graph.nodes.find(node => node.isSubgraphNode?.()).inputs.filter(input => !input.widget)"
CHANGES = "app.extensionManager.workflow.activeWorkflow.changeTracker"


@pytest.fixture(scope="module", params=["canvas", "nodes2"])
def drawn(request: pytest.FixtureRequest, server: Server, screenshots: Path) -> Iterator[Frontend]:
    """A page whose workflow has run, for all tests of this file."""
    opened = request.getfixturevalue(f"{request.param}_page")
    opened.start_over()
    with Client(server.address) as client:
        open_drawn(opened, seed=int(opened.renderer == "nodes2"))
        opened.run()
        client.wait_until_idle()
    expect(line(opened, "PSNR")).to_be_visible()
    opened.page.screenshot(path=screenshots / f"drawn {opened.renderer}.png")
    yield opened
    assert opened.errors == []
    assert opened.outside == []


def line(frontend: Frontend, text: str) -> Locator:
    return frontend.page.locator(".palimpsest-result", has_text=text)


def widget(frontend: Frontend, type: str, name: str):
    return frontend.page.evaluate(WIDGET, [type, name])


def test_results_stay_when_the_job_has_ended_N3(drawn: Frontend):
    expect(line(drawn, "PSNR")).to_have_text(re.compile(r"^PSNR \d+\.\d\d dB   SSIM -?0\.\d{4}$"))
    expect(line(drawn, "of the picture")).to_have_text(re.compile(rf"^\d+\.\d % of the picture, {STEPS} steps read$"))
    expect(line(drawn, "7 target words")).to_be_visible()
    expect(drawn.page.locator(".palimpsest-result:not(:empty)")).to_have_count(3)


def test_a_run_without_a_result_takes_the_line_away_N3(drawn: Frontend):
    show = """lines => app.graph.nodes.find(node => node.type === 'PAL_PromptToPrompt').onExecuted({palimpsest_result: lines})"""
    drawn.page.evaluate(show, ["one thing", "another"])
    expect(line(drawn, "one thing")).to_have_text("one thing\nanother", use_inner_text=True)
    drawn.page.evaluate(show, [])
    expect(line(drawn, "one thing")).to_have_count(0)


def test_words_show_their_place_and_are_chosen_by_a_click(drawn: Frontend):
    page = drawn.page
    heat, chips = page.locator("canvas.palimpsest-picture"), page.locator(".palimpsest-chips .palimpsest-chip")
    expect(chips).to_have_count(7)
    expect(heat).to_have_attribute("data-words", "circle")
    chips.filter(has_text="background").hover()
    expect(heat).to_have_attribute("data-words", "background")
    chips.filter(has_text="red").click()
    assert widget(drawn, "PAL_AttentionMask", "words") == "circle, red"
    expect(chips.filter(has_text="red")).to_have_attribute("aria-pressed", "true")
    chips.filter(has_text="red").click()
    assert widget(drawn, "PAL_AttentionMask", "words") == "circle"
    page.evaluate(SET_WIDGET, ["PAL_AttentionMask", "words", "red circle"])
    expect(page.locator(".palimpsest-chips .palimpsest-chip[aria-pressed=true]")).to_have_count(2)
    chips.filter(has_text="red").focus()
    page.keyboard.press("Enter")
    assert widget(drawn, "PAL_AttentionMask", "words") == ""
    page.evaluate(SET_WIDGET, ["PAL_AttentionMask", "words", "circle"])


def test_the_pointer_on_the_picture_ranks_the_words_there(drawn: Frontend):
    stage = drawn.page.locator(".palimpsest-stage", has=drawn.page.locator("canvas"))
    stage.hover()
    expect(stage.locator("li")).to_have_count(4)
    lifts = [float(re.search(r"([\d.]+)×", text)[1]) for text in stage.locator("li").all_inner_texts()]
    assert lifts == sorted(lifts, reverse=True) and lifts[0] > 1
    drawn.page.mouse.move(5, 5)
    expect(stage.locator("li")).to_have_count(0)


def test_an_edit_s_words_are_exact_after_a_run_and_live_while_typing(drawn: Frontend):
    page = drawn.page
    edit = page.locator(".palimpsest-edit")
    expect(edit.locator(".palimpsest-group")).to_have_count(7)
    exchanged = edit.locator(".palimpsest-exchanged")
    expect(exchanged).to_have_text("circlesquare")
    expect(exchanged.locator(".palimpsest-chip[aria-pressed=true]")).to_have_text("circle")
    expect(edit.locator(".palimpsest-weight.palimpsest-set")).to_have_value("2")

    page.evaluate(SET_WIDGET, ["PAL_EncodePromptEdit", "target_text", "a circle on a blue background"])
    expect(edit.locator(".palimpsest-gone")).to_have_text("red")
    page.evaluate(SET_WIDGET, ["PAL_EncodePromptEdit", "target_text", "a big red circle on a blue background"])
    expect(edit.locator(".palimpsest-added")).to_have_text("big")
    expect(edit.locator(".palimpsest-gone, .palimpsest-exchanged")).to_have_count(0)

    edit.locator(".palimpsest-added .palimpsest-chip").click()
    assert widget(drawn, "PAL_EncodePromptEdit", "blend_words") == "circle, big"
    weight = edit.locator(".palimpsest-added .palimpsest-weight")
    weight.fill("1.5")
    weight.press("Enter")
    assert widget(drawn, "PAL_EncodePromptEdit", "reweight") == "blue: 2, big: 1.5"
    page.evaluate(SET_WIDGET, ["PAL_EncodePromptEdit", "reweight", "green: 2"])
    expect(page.locator(".palimpsest-label", has_text="reweight: expected words")).to_be_visible()


def test_step_windows_follow_the_numbers_and_set_them(drawn: Frontend):
    page = drawn.page
    row = page.locator(".palimpsest-window", has_text="cross-attention")
    expect(row).to_have_text("cross-attention 0–80 %")
    box = row.bounding_box()
    page.mouse.move(box["x"] + 0.79 * box["width"], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    assert abs(widget(drawn, "PAL_PromptToPrompt", "cross_end") - 0.5) <= 0.01
    page.keyboard.press("ArrowRight")
    assert abs(widget(drawn, "PAL_PromptToPrompt", "cross_end") - 0.51) <= 0.01
    page.evaluate(SET_WIDGET, ["PAL_PromptToPrompt", "cross_end", 0.25])
    expect(row).to_have_text("cross-attention 0–25 %")
    page.evaluate(SET_WIDGET, ["PAL_PromptToPrompt", "cross_end", 0])
    expect(row).to_have_text("cross-attention never")


def test_frames_turn_and_play(drawn: Frontend):
    page = drawn.page
    slider, label = page.get_by_label("Frame", exact=True), page.locator(".palimpsest-label", has_text="sigma")
    expect(label).to_have_text(re.compile(rf"^step {STEPS} of {STEPS}, sigma 0$"))
    slider.focus()
    page.keyboard.press("Home")
    expect(label).to_have_text(re.compile(rf"^step 0 of {STEPS}"))
    page.get_by_label("Play", exact=True).click()
    # At every redraw: a frame stands for an eighth of a second.
    page.wait_for_function(
        "() => [...document.querySelectorAll('.palimpsest-label')].some(e => /^step 2/.test(e.textContent))"
    )
    page.get_by_label("Play", exact=True).click()
    stopped = label.inner_text()
    page.wait_for_timeout(400)  # three frames, if it went on
    assert label.inner_text() == stopped


def test_two_pictures_are_parted_where_the_pointer_is(drawn: Frontend):
    stage = drawn.page.locator(".palimpsest-wipe")
    box = stage.bounding_box()
    drawn.page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    expect(drawn.page.get_by_label("How much of image_a")).to_have_value(re.compile("^2[456]"))
    assert all(stage.locator("img").evaluate_all("images => images.map(image => image.naturalWidth === 128)"))


def test_the_wheel_over_it_zooms_the_canvas_and_it_works_at_any_zoom(drawn: Frontend):
    page = drawn.page
    view = "({scale, offset}) => { Object.assign(app.canvas.ds, {scale, offset: [...offset]}); app.canvas.setDirty(true, true) }"
    before = page.evaluate("() => ({scale: app.canvas.ds.scale, offset: [...app.canvas.ds.offset]})")
    line(drawn, "of the picture").hover()
    page.mouse.wheel(0, 300)
    page.wait_for_function("before => app.canvas.ds.scale < before - 0.01", arg=before["scale"])
    page.evaluate(view, {**before, "scale": 0.5})
    drawn.wait_for_redraws()
    chips = page.locator(".palimpsest-chips .palimpsest-chip")
    chips.filter(has_text="blue").click()
    assert widget(drawn, "PAL_AttentionMask", "words") == "circle, blue"
    chips.filter(has_text="blue").click()
    page.locator(".palimpsest-stage", has=page.locator("canvas")).hover()
    expect(page.locator(".palimpsest-ranking li")).to_have_count(4)
    page.evaluate(view, before)
    drawn.wait_for_redraws()


def still_drawn(frontend: Frontend) -> None:
    expect(line(frontend, "PSNR")).to_be_visible()
    expect(line(frontend, "of the picture")).to_be_visible()
    expect(frontend.page.locator(".palimpsest-chips .palimpsest-chip")).to_have_count(7)
    expect(frontend.page.locator(".palimpsest-label", has_text="sigma")).to_be_visible()
    expect(frontend.page.locator(".palimpsest-wipe img").first).to_be_visible()


def test_it_outlives_undo_and_a_visit_to_another_tab(drawn: Frontend):
    page = drawn.page
    page.locator(".palimpsest-chips .palimpsest-chip", has_text="red").click()
    page.mouse.click(1700, 1100)
    page.wait_for_function(f"() => JSON.stringify({CHANGES}.activeState).includes('circle, red')")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    page.wait_for_function(f"wanted => ({WIDGET})(wanted) === 'circle'", arg=["PAL_AttentionMask", "words"])
    still_drawn(drawn)
    page.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.wait_for_function("() => app.graph.nodes.length === 0")
    page.evaluate("() => app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    page.wait_for_function("() => app.graph.nodes.length > 10")
    still_drawn(drawn)


def test_a_run_is_opened_from_the_history(drawn: Frontend):
    """As the queue's list opens one: its workflow, then what its nodes have shown."""
    drawn.page.evaluate(
        """async () => {
            const [run] = Object.values(await (await fetch('/history?max_items=1')).json())
            const workflow = run.prompt[3].extra_pnginfo.workflow
            await app.loadGraphData(JSON.parse(JSON.stringify({...workflow, nodes: []})))
            await app.loadGraphData(workflow)
            app.nodeOutputs = run.outputs
        }"""
    )
    still_drawn(drawn)


def test_the_menu_of_a_picture_drops_a_box_that_is_wired(drawn: Frontend):
    page = drawn.page
    page.locator(".palimpsest-chips").wait_for()
    before = page.evaluate("() => app.graph.nodes.length")
    title = page.evaluate(
        """() => {
            const [x, y] = app.graph.nodes.find(node => node.type === "PreviewImage").pos
            const { scale, offset } = app.canvas.ds
            const { left, top } = app.canvas.canvas.getBoundingClientRect()
            return [left + (x + 60 + offset[0]) * scale, top + (y - 15 + offset[1]) * scale]
        }"""
    )
    page.mouse.click(*title, button="right")
    page.get_by_text("Edit this picture by words").first.click()
    page.wait_for_function("before => app.graph.nodes.length === before + 1", arg=before)
    page.wait_for_function(f"() => {BOX_INPUTS}.every(input => input.link != null)")
    sources = page.evaluate(
        f"""() => {{
            const from = input => app.graph.getNodeById(app.graph.links.get(input.link)?.origin_id)?.type
            return Object.fromEntries({BOX_INPUTS}.map(input => [input.name, from(input)]))
        }}"""
    )
    toy = "TOY_LoadGeneral"
    assert sources.pop("image") in ("PreviewImage", "VAEDecode")  # ComfyUI 0.16's Preview Image has no output
    assert sources == {"model": toy, "clip": toy, "vae": toy}
