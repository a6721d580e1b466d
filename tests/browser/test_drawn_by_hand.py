"""What the pack draws before anything has run: by keyboard, in both themes, on the two pages that all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect
from support.host.frontend import Frontend

pytestmark = pytest.mark.browser

ADD = """async nodes => {
    let x = 20
    for (const [type, values, height] of nodes) {
        const node = LiteGraph.createNode(type)
        node.pos = [x, 60]
        x += 380
        app.graph.add(node)
        node.setSize([340, height])
        for (const [name, value] of Object.entries(values)) node.widgets.find(widget => widget.name === name).value = value
    }
    await app.loadGraphData(app.graph.serialize())
    app.canvas.ds.scale = 1
    app.canvas.ds.offset[0] = app.canvas.ds.offset[1] = 20
    app.canvas.setDirty(true, true)
}"""
SET = "([name, value]) => { app.graph.nodes[0].widgets.find(widget => widget.name === name).value = value }"
VALUE = "name => app.graph.nodes.flatMap(node => node.widgets ?? []).find(widget => widget.name === name).value"
# WCAG's contrast of every text that the pack shows with what is behind it: the worst, and whose it is.
WORST_CONTRAST = """() => {
    const light = colour => {
        const [r, g, b] = colour.slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    }
    const parsed = text => text.match(/[\\d.]+/g).map((value, i) => value * (text.startsWith('color(') && i < 3 ? 255 : 1))
    const over = ([r, g, b, a = 1], under) => [r, g, b].map((v, i) => v * a + under[i] * (1 - a))
    const canvas = document.createElement('canvas').getContext('2d')
    canvas.fillStyle = LiteGraph.NODE_DEFAULT_BGCOLOR
    const node = canvas.fillStyle.match(/[0-9a-f]{2}/g).map(hex => parseInt(hex, 16))
    const behind = element => {
        const colours = []
        for (let at = element; at; at = at.parentElement) {
            const colour = parsed(getComputedStyle(at).backgroundColor)
            if (LiteGraph.vueNodesMode || at.closest('.palimpsest')) colours.unshift(colour)
        }
        return colours.reduce((under, colour) => over(colour, under), node)
    }
    const rows = [...document.querySelectorAll('.palimpsest *')]
        .filter(e => e.checkVisibility() && [...e.childNodes].some(c => c.nodeType === 3 && c.data.trim()))
        .map(e => {
            const under = behind(e)
            const text = over(parsed(getComputedStyle(e).color), under)
            const [low, high] = [light(text), light(under)].sort((a, b) => a - b)
            return [(high + 0.05) / (low + 0.05), `${e.className}: ${e.textContent}`]
        })
    return rows.sort((a, b) => a[0] - b[0])[0]
}"""
# Whether so many words are there, none below the end of their list, and the list and its panel within the node, which is drawn so.
ALL_SHOWN = """count => {
    const bottom = element => element.getBoundingClientRect().bottom
    const panel = document.querySelector('.palimpsest')
    const list = panel?.querySelector('.palimpsest-edit, .palimpsest-chips')
    const words = [...list?.querySelectorAll('.palimpsest-chip') ?? []]
    if (words.length !== count) return false
    const [node] = app.graph.nodes
    const { scale, offset } = app.canvas.ds
    const end = panel.closest('.lg-node')
        ? bottom(panel.closest('.lg-node'))
        : app.canvas.canvas.getBoundingClientRect().top + (node.pos[1] + node.size[1] + offset[1]) * scale
    const ends = [...words.map(word => [word, list]), [list, panel]].map(([inner, outer]) => bottom(outer) - bottom(inner))
    if (Math.min(...ends, end - bottom(panel)) <= -1) return false
    const low = [node.pos[0] + 20 + offset[0], node.pos[1] + node.size[1] - 6 + offset[1]].map(value => value * scale)
    const [red, green, blue] = app.canvas.canvas.getContext('2d').getImageData(...low, 1, 1).data
    return LiteGraph.vueNodesMode || (red << 16 | green << 8 | blue) === parseInt(LiteGraph.NODE_DEFAULT_BGCOLOR.slice(1), 16)
}"""
# Of the node, of the boxes that one types in, and of the list of words.
HEIGHTS = """() => [app.graph.nodes[0].size[1],
    ...[...document.querySelectorAll('textarea, .palimpsest-edit')].map(element => element.offsetHeight)]"""
# The colours of a message about a wrong word, of other text, and of other messages.
COLOURS = """() => {
    const message = document.querySelector('.palimpsest-label:not(.palimpsest-wrong)')
    const shown = [document.querySelector('.palimpsest-wrong'), message.closest('.palimpsest'), message]
    return shown.map(element => getComputedStyle(element).color)
}"""
ADD_NEW = """type => {
    const node = LiteGraph.createNode(type)
    node.pos = [40, 60]
    app.graph.add(node)
    app.canvas.ds.scale = 1
    app.canvas.ds.offset[0] = app.canvas.ds.offset[1] = 20
    app.canvas.setDirty(true, true)
}"""
PICTURE = """([width, height]) => {
    const drawn = Object.assign(document.createElement('canvas'), {width, height})
    for (const image of document.querySelectorAll('.palimpsest-wipe img')) image.src = drawn.toDataURL()
}"""
# Whether the place of the pictures is so much higher than wide, at this width or more, and the panel within the node.
WIPE = """([width, aspect]) => {
    const stage = document.querySelector('.palimpsest-wipe')
    const [node] = app.graph.nodes
    const { scale, offset } = app.canvas.ds
    const box = stage.closest('.lg-node')
    const end = box
        ? box.getBoundingClientRect().bottom
        : app.canvas.canvas.getBoundingClientRect().top + (node.pos[1] + node.size[1] + offset[1]) * scale
    return stage.offsetWidth >= width && stage.offsetHeight >= aspect * stage.offsetWidth - 1
        && stage.parentElement.getBoundingClientRect().bottom <= end + 1
        && node.size[1] < stage.offsetHeight + 250
}"""
SENTENCE = "a red cat sits on an old wooden chair in the garden of a small house"
EDIT = ("PAL_EncodePromptEdit", {"source_text": "a red cat", "target_text": "a red dog barks"}, 560)


@pytest.fixture(params=["dark", "light"])
def theme(request: pytest.FixtureRequest, frontend: Frontend) -> Iterator[str]:
    choose = "theme => app.extensionManager.setting.set('Comfy.ColorPalette', theme)"
    frontend.page.evaluate(choose, request.param)
    yield request.param
    frontend.page.evaluate(choose, "dark")


def chip(frontend: Frontend, word: str) -> Locator:
    return frontend.page.locator(".palimpsest-edit .palimpsest-chip", has_text=word)


def test_all_text_reads_in_either_theme(frontend: Frontend, theme: str, screenshots: Path):
    edit = (EDIT[0], {**EDIT[1], "blend_words": "bird"}, EDIT[2])
    frontend.page.evaluate(ADD, [edit, ("PAL_PromptToPrompt", {}, 420), ("PAL_SaliencyMap", {}, 520)])
    expect(chip(frontend, "barks")).to_be_visible()
    expect(frontend.page.locator(".palimpsest-wrong", has_text="'bird'")).to_be_visible()
    frontend.page.screenshot(path=screenshots / f"by hand {theme} {frontend.renderer}.png")
    wrong, *others = frontend.page.evaluate(COLOURS)
    assert wrong not in others
    worst, whose = frontend.page.evaluate(WORST_CONTRAST)
    assert worst >= 3, whose
    assert frontend.errors == []


def test_the_result_of_a_run_with_other_texts_is_not_shown(frontend: Frontend):
    page = frontend.page
    texts = {"source_text": "a red cat", "target_text": "a red dog", "mode": "auto", "reweight": ""}
    texts |= {"blend_words": "", "keep_words": "", "word_windows": ""}
    page.evaluate(ADD, [("PAL_EncodePromptEdit", texts, 560)])
    expect(chip(frontend, "cat")).to_be_visible()
    drawn = {"mode": "refine", "groups": [{"kind": "kept", "source": ["pink"], "target": ["pink"], "weight": 1}]}
    show = "output => app.graph.nodes[0].onExecuted(output)"
    page.evaluate(show, {"palimpsest_edit": [drawn], "palimpsest_texts": [{**texts, "source_text": "a pink dress"}]})
    frontend.wait_for_redraws()
    expect(chip(frontend, "pink")).to_have_count(0)
    expect(chip(frontend, "cat")).to_be_visible()
    page.evaluate(show, {"palimpsest_edit": [drawn], "palimpsest_texts": [texts]})
    expect(chip(frontend, "pink")).to_have_count(2)
    assert frontend.errors == []


def test_words_and_weights_are_set_by_keyboard(frontend: Frontend):
    page = frontend.page
    page.evaluate(ADD, [("PAL_EncodePromptEdit", {**EDIT[1], "target_text": "a red dog"}, 560)])
    chip(frontend, "cat").focus()
    page.keyboard.press("Enter")
    page.wait_for_function(f"() => ({VALUE})('blend_words') === 'cat'")
    expect(chip(frontend, "cat")).to_have_attribute("aria-pressed", "true")
    expect(chip(frontend, "cat")).to_be_focused()
    page.keyboard.press("Tab")  # the word that takes its place
    expect(chip(frontend, "dog")).to_be_focused()
    page.keyboard.press("Tab")  # and its weight
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.wait_for_function(f"() => ({VALUE})('reweight') === 'dog: 1.1'")
    assert page.evaluate("() => app.graph.nodes.length") == 1
    assert frontend.errors == []


def test_a_low_node_grows_until_all_words_of_an_edit_are_shown(frontend: Frontend, screenshots: Path):
    texts = {"source_text": SENTENCE, "target_text": SENTENCE.replace("cat", "dog")}
    frontend.page.evaluate(ADD, [("PAL_EncodePromptEdit", texts, 100)])
    frontend.page.wait_for_function(ALL_SHOWN, arg=2 * len(SENTENCE.split()))
    frontend.wait_for_redraws()
    frontend.page.screenshot(path=screenshots / f"all words {frontend.renderer}.png")
    assert frontend.errors == []


def test_typing_moves_nothing(frontend: Frontend, screenshots: Path):
    page, chips = frontend.page, frontend.page.locator(".palimpsest-edit .palimpsest-chip")
    page.evaluate(ADD, [("PAL_EncodePromptEdit", {"source_text": SENTENCE, "target_text": SENTENCE}, 100)])
    page.wait_for_function(ALL_SHOWN, arg=2 * len(SENTENCE.split()))
    frontend.wait_for_redraws()
    before = page.evaluate(HEIGHTS)
    for box in (0, 1):
        page.locator("textarea").nth(box).fill("a red cat")
    expect(chips).to_have_count(6)
    frontend.wait_for_redraws()
    assert page.evaluate(HEIGHTS) == before
    page.evaluate(SET, ["blend_words", "bird"])
    expect(page.locator(".palimpsest-wrong")).to_be_visible()
    frontend.wait_for_redraws()
    page.screenshot(path=screenshots / f"typing {frontend.renderer}.png")
    assert page.evaluate(HEIGHTS) == before
    assert frontend.errors == []


def test_a_low_node_grows_until_all_words_of_a_mask_are_shown(frontend: Frontend):
    frontend.page.evaluate(ADD, [("PAL_AttentionMask", {}, 100)])
    words = [{"word": word, "peak": 2.0, "map": "/w=="} for word in SENTENCE.split()]
    drawn = {"palimpsest_words": [{"words": words, "width": 1, "height": 1, "chosen_by": "words"}]}
    frontend.page.evaluate("drawn => app.graph.nodes[0].onExecuted(drawn)", drawn)
    frontend.page.wait_for_function(ALL_SHOWN, arg=len(words))
    assert frontend.errors == []


def test_more_words_than_a_node_should_hold_are_scrolled_by_the_wheel(frontend: Frontend):
    page = frontend.page
    texts = {"source_text": " ".join([SENTENCE] * 4), "target_text": " ".join([SENTENCE] * 4)}
    page.evaluate(ADD, [("PAL_EncodePromptEdit", texts, 100)])
    words = page.locator(".palimpsest-edit")
    expect(words).to_have_attribute("data-capture-wheel", "true")
    assert words.evaluate("words => words.clientHeight") in range(200, 300)
    words.locator(".palimpsest-chip").first.focus()  # Nodes 2.0 zooms over what has no focus
    scale = page.evaluate("() => app.canvas.ds.scale")
    words.hover()
    page.mouse.wheel(0, 200)
    page.wait_for_function("() => document.querySelector('.palimpsest-edit').scrollTop > 100")
    assert page.evaluate("() => app.canvas.ds.scale") == scale
    assert frontend.errors == []


def test_the_steps_of_a_fusion_are_turned_and_taken_away(frontend: Frontend):
    page = frontend.page
    page.evaluate(ADD, [("PAL_SaliencyMap", {}, 520)])
    show = "frames => app.graph.nodes[0].onExecuted({palimpsest_frames: frames})"
    label = page.locator(".palimpsest-label")
    expect(label).to_contain_text("every_step")
    page.evaluate(show, [{"picture": f"none{n}.png", "label": f"step {n} of 3, expert 1 {n} %"} for n in range(3)])
    expect(label).to_have_text("step 2 of 3, expert 1 2 %")
    page.get_by_label("Frame", exact=True).focus()
    page.keyboard.press("ArrowLeft")
    expect(label).to_have_text("step 1 of 3, expert 1 1 %")
    page.evaluate(show, [])
    expect(label).to_contain_text("every_step")
    expect(page.get_by_label("Frame", exact=True)).to_be_disabled()
    assert frontend.errors == [] or all("none" in error for error in frontend.errors)


def test_a_morph_plays(frontend: Frontend):
    page = frontend.page
    page.evaluate(ADD, [("PAL_PreviewMorph", {}, 520)])
    label = page.locator(".palimpsest-label")
    expect(label).to_contain_text("frame by frame")
    frames = [{"picture": f"none{n}.png", "label": f"frame {n} of 9"} for n in range(1, 10)]
    page.evaluate("frames => app.graph.nodes[0].onExecuted({palimpsest_frames: frames})", frames)
    expect(label).to_have_text("frame 9 of 9")
    page.get_by_label("Play", exact=True).click()
    # At every redraw: an expectation looks once a second, and each frame stands for an eighth.
    page.wait_for_function("() => document.querySelector('.palimpsest-label').textContent === 'frame 3 of 9'")
    page.get_by_label("Play", exact=True).click()


def test_the_wipe_is_moved_by_keyboard(frontend: Frontend):
    frontend.page.evaluate(ADD, [("PAL_CompareImages", {}, 520)])
    slider = frontend.page.get_by_label("How much of image_a")
    slider.focus()
    frontend.page.keyboard.press("ArrowRight")
    expect(slider).to_have_value("51")
    stage = frontend.page.locator(".palimpsest-wipe")
    assert stage.evaluate("stage => stage.style.getPropertyValue('--palimpsest-at')") == "51%"


@pytest.mark.parametrize(("size", "aspect"), [((300, 200), 2 / 3), ((200, 300), 1.2)], ids=["wide", "high"])
def test_pictures_to_compare_fill_the_width_of_a_new_node(
    frontend: Frontend, screenshots: Path, size: tuple[int, int], aspect: float
):
    page = frontend.page
    page.evaluate(ADD_NEW, "PAL_CompareImages")
    page.wait_for_function(WIPE, arg=[370, 1])
    page.evaluate("() => app.graph.nodes[0].setSize([400, 100])")
    page.evaluate(PICTURE, size)
    page.wait_for_function(WIPE, arg=[370, aspect])
    frontend.wait_for_redraws()
    page.screenshot(path=screenshots / f"compare {size[0]} {frontend.renderer}.png")
    assert frontend.errors == []
