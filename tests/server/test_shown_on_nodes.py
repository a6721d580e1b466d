"""What nodes send to the browser: results that stay, and the route that reads prompts while they are typed."""

import json
import time
import urllib.error
import urllib.request

import pytest
from support.host.client import Client, Graph

pytestmark = pytest.mark.server

EDIT = {
    "source_text": "a cat on a mat",
    "target_text": "a dog on a mat",
    "mode": "auto",
    "reweight": "dog: 2",
    "blend_words": "cat",
    "keep_words": "",
    "word_windows": "",
}


def edit(clip_l: str, **changes: str) -> tuple[Graph, object]:
    graph = Graph()
    clip = graph.add("CLIPLoader", clip_name=clip_l, type="stable_diffusion")
    words = graph.add("PAL_EncodePromptEdit", clip=clip[0], **{**EDIT, **changes})
    graph.add("PreviewAny", source=words[1])
    return graph, words


@pytest.fixture(scope="module")
def clip_l(server) -> str:
    from support.fixtures import checkpoints

    return server.link_model("text_encoders", checkpoints.clip_l())


def test_a_result_is_an_output_and_no_progress_text_N3(client: Client, clip_l: str):
    graph, words = edit(clip_l)
    run = client.run(graph)
    assert run.results(words) == ["5 source words, 5 target words"]
    assert run.texts == []


@pytest.mark.newest
def test_a_node_that_is_cached_sends_its_result_again_N3(client: Client, clip_l: str):
    graph, words = edit(clip_l, target_text="a big cat on a mat", reweight="")
    client.run(graph)
    graph.add("PreviewAny", source=graph.add("EmptyImage", width=8, height=8, batch_size=1, color=0)[0])
    again = client.run(graph)
    assert words.id in again.cached
    assert again.results(words) == ["5 source words, 6 target words, 1 added"]


@pytest.mark.parametrize("listed", [False, True], ids=["a batch", "a list"])
def test_a_morph_is_shown_frame_by_frame(client: Client, listed: bool):
    graph = Graph()
    images = graph.add("EmptyImage", width=16, height=8 + 8 * listed, batch_size=3, color=255)
    if listed:
        images = graph.add("RebatchImages", images=images[0], batch_size=1)
    shown = graph.add("PAL_PreviewMorph", images=images[0])
    run = client.run(graph)
    frames = run.outputs[shown.id]["palimpsest_frames"]
    assert [frame["label"] for frame in frames] == ["frame 1 of 3", "frame 2 of 3", "frame 3 of 3"]
    assert [frame["picture"] for frame in frames] == [image["filename"] for image in run.images(shown)]
    assert len({frame["picture"] for frame in frames}) == 3


def ask(client: Client, body: bytes, kind: str = "application/json") -> tuple[int, dict]:
    request = urllib.request.Request(f"http://{client.address}/palimpsest/prompt_edit", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refusal:
        return refusal.code, json.loads(refusal.read())


def test_the_route_tells_what_a_run_tells_and_is_quick(client: Client, clip_l: str):
    graph, words = edit(clip_l)
    status, told = ask(client, json.dumps(EDIT).encode())
    assert status == 200
    assert told["edit"] == client.run(graph).outputs[words.id]["palimpsest_edit"][0]
    durations = []
    for number in range(20):
        text = f"a photo of {number} cats " + "in a garden of roses and lilies " * 4
        start = time.perf_counter()
        ask(
            client,
            json.dumps(
                {
                    **EDIT,
                    "source_text": text,
                    "target_text": text.replace("cats", "dogs"),
                    "reweight": "",
                    "blend_words": "",
                }
            ).encode(),
        )
        durations.append(time.perf_counter() - start)
    assert min(durations) < 0.05  # the others may have waited for a busy machine


def test_texts_that_make_no_edit_are_told_as_the_node_tells_them(client: Client):
    status, told = ask(client, json.dumps({**EDIT, "reweight": "bird: 2"}).encode())
    assert status == 200 and told["problem"].startswith("reweight: expected words as they stand in target_text")


@pytest.mark.parametrize("field", ["reweight", "blend_words", "keep_words", "word_windows"])
def test_a_word_that_is_in_no_prompt_hides_nothing_of_the_prompts(client: Client, field: str):
    plain = {**EDIT, "reweight": "", "blend_words": ""}
    _, wanted = ask(client, json.dumps(plain).encode())
    status, told = ask(client, json.dumps({**plain, field: "bird: 0.5"}).encode())
    assert status == 200 and told["problem"].startswith(f"{field}: expected words") and told["edit"] == wanted["edit"]
    _, told = ask(client, json.dumps({**EDIT, "mode": "replace", "target_text": "a dog"}).encode())
    assert told.keys() == {"problem"}


@pytest.mark.parametrize(
    ("body", "kind", "status", "says"),
    [
        (b"{", "application/json", 400, "JSON"),
        (b"{}", "application/json; charset=nope", 400, "JSON in UTF-8"),
        (b"\xff\xfe", "application/json", 400, "JSON in UTF-8"),
        (b"[" * 100_000, "application/json", 400, "JSON in UTF-8"),
        (json.dumps({**EDIT, "source_text": "a \ud800"}).encode(), "application/json", 400, "surrogate pair"),
        (b"[]", "application/json", 400, "object with the fields"),
        (json.dumps({**EDIT, "clip": "../../x"}).encode(), "application/json", 400, "object with the fields"),
        (json.dumps({**EDIT, "source_text": 3}).encode(), "application/json", 400, "source_text: expected text"),
        (json.dumps({**EDIT, "target_text": "a" * 9000}).encode(), "application/json", 400, "at most 8000 characters"),
        (json.dumps({**EDIT, "mode": "other"}).encode(), "application/json", 400, "mode: expected one of auto"),
        (json.dumps(EDIT).encode(), "text/plain", 415, "expected application/json"),
        (b"[" + b" " * 300_000 + b"]", "application/json", 413, "at most 262144 bytes"),
    ],
)
def test_the_route_refuses_bad_requests_in_clear_words(client: Client, body: bytes, kind: str, status: int, says: str):
    answered, told = ask(client, body, kind)
    assert answered == status and says in told["error"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("(" * 3900 + "cat" + ")" * 3900, "too many inside each other"),
        ("\u241f\u241e\u241d\u241c", "got all of them"),
    ],
)
def test_text_that_no_prompt_has_is_answered_too(client: Client, text: str, problem: str):
    status, told = ask(client, json.dumps({**EDIT, "source_text": text}).encode())
    assert status == 200 and problem in told["problem"]


def test_the_route_reads_no_file(client: Client, server):
    """A textual inversion is read by the node that was told to, not by a request; outside its folder by nobody."""
    embedding = server.base / "models" / "embeddings" / "secret.pt"
    embedding.parent.mkdir(parents=True, exist_ok=True)
    embedding.write_bytes(b"no embedding: who reads it fails")
    for name in ("secret", "secret.pt", "../../user/comfyui.db"):
        status, told = ask(client, json.dumps({**EDIT, "source_text": f"a cat on embedding:{name}"}).encode())
        assert status == 200 and f"embedding:{name}" in [word for g in told["edit"]["groups"] for word in g["source"]]
    assert str(embedding) not in server.log and "does not exist" not in server.log


def test_the_route_answers_only_what_it_is_for(client: Client):
    for method, path in (("GET", ""), ("PUT", ""), ("DELETE", ""), ("POST", "/other"), ("POST", "/../prompt_edits")):
        request = urllib.request.Request(f"http://{client.address}/palimpsest/prompt_edit{path}", b"{}", method=method)
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request, timeout=60)
        assert refusal.value.code in (404, 405)
