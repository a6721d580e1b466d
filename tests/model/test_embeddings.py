"""The embedding nodes on core's own outputs: CLIP Vision Encode before them, stock models and CLIP after them."""

from __future__ import annotations

import comfy.sd1_clip
import numpy as np
import pytest
import torch
from palimpsest.nodes.display.feedback import RESULT, result
from palimpsest.nodes.text.image_embedding import ImageEmbedding, image_embeds, require_match
from palimpsest.nodes.unclip.embeddings.nodes import (
    EmbeddingMix,
    EmbeddingScore,
    EmbeddingSlerp,
    EmbeddingTextDiff,
    LatentSlerp,
)
from scipy.spatial import geometric_slerp
from support.cases import cases
from support.fixtures import tiny_clip, tiny_models, tiny_stock_unclip
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

import nodes as core_nodes

pytestmark = pytest.mark.model

WIDTH = tiny_stock_unclip.WIDTH
EMBEDDING_WIDTHS = {"sd21_unclip": WIDTH, "stage_c": 768, "sdxl": 1280}


@pytest.fixture(autouse=True)
def _as_comfyui_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory):
    return tiny_stock_unclip.clip_vision(tmp_path_factory.mktemp("clip_vision"))


def encoded(encoder, seed: int, batch: int = 1):
    images = torch.rand(batch, 60, 70, 3, generator=torch.Generator().manual_seed(seed))
    return core_nodes.CLIPVisionEncode().encode(encoder, images, "center")[0]


def slerp(a, b, thetas: str, frames: int = 0):
    return EmbeddingSlerp.execute(a, b, thetas, frames).args


def test_slerp_ends_in_what_the_encoder_gave_and_is_scipys_between(encoder):
    a, b = encoded(encoder, 1), encoded(encoder, 2)
    kept = a.image_embeds.clone()
    batch, single, embeds = slerp(a, b, "0, 0.3, 1")
    assert embeds.equal(batch.image_embeds) and slerp(embeds, embeds, "0")[2].equal(embeds)
    assert batch.image_embeds.shape == (3, WIDTH) and batch.image_embeds.dtype == a.image_embeds.dtype
    assert batch.image_embeds[:1].equal(a.image_embeds) and batch.image_embeds[2:].equal(b.image_embeds)
    assert a.image_embeds.equal(kept)
    assert [one.image_embeds.shape for one in single] == [(1, WIDTH)] * 3
    assert torch.cat([one.image_embeds for one in single]).equal(batch.image_embeds)

    u, v = (x.image_embeds[0].double().numpy() for x in (a, b))
    norm = 0.7 * np.linalg.norm(u) + 0.3 * np.linalg.norm(v)
    expected = norm * geometric_slerp(u / np.linalg.norm(u), v / np.linalg.norm(v), [0.3])[0]
    assert np.abs(batch.image_embeds[1].numpy() - expected).max() < 1e-6 * np.abs(expected).max()


def test_batches_go_pairwise_or_one_against_many_thetas_within(encoder):
    a, b = encoded(encoder, 1, 3), encoded(encoder, 2)
    whole = slerp(a, b, "0, 0.5")[0].image_embeds
    for i in range(3):
        one = slerp(a.image_embeds[i : i + 1], b, "0, 0.5")[0].image_embeds
        assert whole[2 * i : 2 * i + 2].equal(one)
    assert slerp(b, a, "1")[0].image_embeds.equal(a.image_embeds)
    assert slerp(a, encoded(encoder, 3, 3), "0 1", 4)[0].image_embeds.shape == (12, WIDTH)
    with pytest.raises(ValueError, match="embedding_b: expected a batch of 3, as embedding_a has, or a single one"):
        slerp(a, encoded(encoder, 3, 2), "0")


def test_what_ipadapter_encoders_give_is_taken_and_what_plus_gives_is_explained(encoder):
    a, b = encoded(encoder, 1), encoded(encoder, 2)
    assert slerp(a.image_embeds, b, "0.5")[0].image_embeds.equal(slerp(a, b, "0.5")[0].image_embeds)
    with pytest.raises(ValueError, match=r"embedding_a: expected CLIP's image embedding.+got \[1, 17, 32\]"):
        slerp(a.penultimate_hidden_states, b, "0.5")
    with pytest.raises(ValueError, match="embedding_b: expected an embedding of a picture, got an embedding of zeros"):
        slerp(a, torch.zeros_like(b.image_embeds), "0.5")
    with pytest.raises(ValueError, match="embedding_b: expected finite numbers"):
        slerp(a, b.image_embeds / 0, "0.5")


def test_another_encoders_width_is_explained_by_socket(encoder, tmp_path):
    a, wide = encoded(encoder, 1), encoded(tiny_stock_unclip.clip_vision(tmp_path, width=96), 1)
    with pytest.raises(
        ValueError, match=r"embedding_b: expected an embedding 64 wide, as embedding_a is, got one 96 wide\. Encode"
    ):
        slerp(a, wide, "0.5")
    with pytest.raises(
        ValueError, match="embedding2: expected an embedding 64 wide, as embedding0 is, got one 96 wide"
    ):
        EmbeddingMix.execute({"embedding0": a, "embedding1": a, "embedding2": wide}, "1, 1, 1", "keep")
    with pytest.raises(ValueError, match=r"768 wide \(CLIP ViT-L/14\), as a is, got one 1024 wide \(CLIP ViT-H/14\)"):
        require_match({"a": torch.ones(1, 768), "b": torch.ones(1, 1024)})
    with pytest.raises(ValueError, match="clip: expected a CLIP text encoder of width 96"):
        EmbeddingScore.execute(wide, tiny_clip.sd1(), "a cat")


def test_latent_slerp_goes_from_noise_to_noise_as_one_vector():
    a, b = torch.randn(2, 2, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    marked = {"samples": a, "noise_mask": torch.ones(2, 1, 8, 6)}
    batch, single = LatentSlerp.execute(marked, {"samples": b}, "0, 0.25, 1", 0).args
    assert batch.keys() == {"samples"} and batch["samples"].shape == (6, 4, 8, 6) and batch["samples"].dtype == a.dtype
    assert batch["samples"][0::3].equal(a) and batch["samples"][2::3].equal(b)
    assert torch.cat([one["samples"] for one in single]).equal(batch["samples"])
    for row in range(2):
        u, v = (x[row].flatten().double().numpy() for x in (a, b))
        sizes = np.linalg.norm(u), np.linalg.norm(v)
        expected = (0.75 * sizes[0] + 0.25 * sizes[1]) * geometric_slerp(u / sizes[0], v / sizes[1], [0.25])[0]
        assert np.abs(batch["samples"][3 * row + 1].flatten().numpy() - expected).max() < 1e-6
    assert LatentSlerp.execute({"samples": a[:1]}, {"samples": b}, "1", 0).args[0]["samples"].equal(b)
    with pytest.raises(ValueError, match=r"latent_b: expected the size of latent_a, \[4, 8, 6\], got \[4, 8, 5\]"):
        LatentSlerp.execute({"samples": a}, {"samples": b[..., :5]}, "1", 0)
    with pytest.raises(ValueError, match="latent_b: expected a batch of 2, as latent_a has, or a single one"):
        LatentSlerp.execute({"samples": a}, {"samples": b.repeat(2, 1, 1, 1)}, "1", 0)
    with pytest.raises(ValueError, match="latent_b: expected noise, got an empty latent"):
        LatentSlerp.execute({"samples": a}, {"samples": torch.zeros_like(b)}, "1", 0)


def test_mix_weighs_and_names_what_cancels_out(encoder):
    a, b, c = (encoded(encoder, seed) for seed in (1, 2, 3))
    sockets = {"embedding0": a, "embedding1": b, "embedding2": c}
    batch, single, _ = EmbeddingMix.execute(sockets, "0.5, 2, -1", "sum").args
    plain = 0.5 * a.image_embeds + 2 * b.image_embeds - c.image_embeds
    torch.testing.assert_close(batch.image_embeds, plain, rtol=0, atol=1e-6 * float(plain.abs().max()))
    kept = EmbeddingMix.execute(sockets, "0.5, 2, -1", "keep").args[0].image_embeds
    norms = [float(x.image_embeds.norm()) for x in (a, b, c)]
    assert float(kept.norm()) == pytest.approx((0.5 * norms[0] + 2 * norms[1] + norms[2]) / 3.5, rel=1e-6)
    torch.testing.assert_close(kept / kept.norm(), plain / plain.norm())
    assert len(single) == 1
    alone = EmbeddingMix.execute(sockets, "0, 1, 0", "keep").args[0]
    assert alone.image_embeds.equal(b.image_embeds)
    equal = EmbeddingMix.execute(sockets, "", "sum").args[0].image_embeds
    torch.testing.assert_close(equal, (a.image_embeds + b.image_embeds + c.image_embeds) / 3)
    with pytest.raises(ValueError, match="weights: expected weights that do not cancel out, got '1, -1'"):
        EmbeddingMix.execute({"embedding0": a, "embedding1": a}, "1, -1", "keep")


class Twin:
    """transformers' text encoder on the weights of a tiny CLIP."""

    def __init__(self, clip: comfy.sd.CLIP):
        weights = {name: value.float() for name, value in clip.cond_stage_model.clip_l.transformer.state_dict().items()}
        config = CLIPTextConfig(
            vocab_size=49408, hidden_size=WIDTH, intermediate_size=2 * WIDTH, projection_dim=WIDTH, num_attention_heads=2,
            num_hidden_layers=1, hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407,
        )  # fmt: skip
        self.model = CLIPTextModelWithProjection(config).eval()
        self.model.load_state_dict(weights, strict=False)
        folder = comfy.sd1_clip.__file__.replace("sd1_clip.py", "sd1_tokenizer")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)

    def embed(self, text: str) -> np.ndarray:
        return self.model(self.tokenizer(text, return_tensors="pt").input_ids).text_embeds[0].double().numpy()


def test_text_diff_is_the_paper_on_transformers_text_embeddings(encoder):
    clip, image = tiny_clip.sd1(), encoded(encoder, 1, 2)
    twin = Twin(clip)
    batch, single, _ = EmbeddingTextDiff.execute(image, clip, "a cat in winter", "a cat", "0, 0.2, 0.5", 0).args
    assert batch.image_embeds.shape == (6, WIDTH) and len(single) == 6
    text, base = (x / np.linalg.norm(x) for x in (twin.embed("a cat in winter"), twin.embed("a cat")))
    z_d = (text - base) / np.linalg.norm(text - base)
    for row in range(2):
        z_i = image.image_embeds[row].double().numpy()
        assert batch.image_embeds[3 * row].equal(image.image_embeds[row])
        expected = np.linalg.norm(z_i) * geometric_slerp(z_i / np.linalg.norm(z_i), z_d, [0.2, 0.5])
        found = batch.image_embeds[3 * row + 1 : 3 * row + 3].numpy()
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
        assert np.linalg.norm(found, axis=-1) == pytest.approx(np.linalg.norm(z_i), rel=1e-6)
    to_text = EmbeddingTextDiff.execute(image, clip, "a cat in winter", "  ", "1", 0).args[0].image_embeds[0].numpy()
    assert to_text @ text == pytest.approx(np.linalg.norm(to_text), rel=1e-5)
    with pytest.raises(ValueError, match="text: expected other words than base_text, got 'a cat' for both"):
        EmbeddingTextDiff.execute(image, clip, "a cat", "A cat", "0.5", 0)


def test_score_is_the_cosine_of_transformers_embeddings(encoder):
    clip, image = tiny_clip.sd1(), encoded(encoder, 1, 3)
    out = EmbeddingScore.execute(image, clip, "a red circle")
    text = Twin(clip).embed("a red circle")
    z = image.image_embeds.double().numpy()
    expected = z @ text / np.linalg.norm(z, axis=-1) / np.linalg.norm(text)
    assert out.args[0] == pytest.approx(list(expected), abs=1e-6)
    assert out.ui == result("  ".join(f"{i}: {score:.4f}" for i, score in enumerate(out.args[0], 1)))
    long = EmbeddingScore.execute(image.image_embeds[:1], clip, "word " * 80)
    assert long.ui == result(f"{long.args[0][0]:.4f}  (5 tokens beyond the 75 that CLIP reads)")


def test_a_node_with_nothing_to_say_takes_away_what_it_said_before_N3(encoder):
    """Fault N3: no lines are sent as no lines, so that those of the run before do not stay on the node."""
    clip, image = tiny_clip.sd1(), encoded(encoder, 1, 1)
    assert EmbeddingTextDiff.execute(image, clip, "a red circle", "a photo", "0, 1", 0).ui == result()
    [told] = EmbeddingTextDiff.execute(image, clip, "word " * 80, "a photo", "0, 1", 0).ui[RESULT]
    assert told == "5 and 0 tokens beyond the 75 that CLIP reads"


def test_a_clip_whose_file_lacked_the_projection_is_refused(encoder):
    clip = tiny_clip.sd1()
    clip.cond_stage_model.clip_l.transformer.text_projection.weight.data.zero_()
    with pytest.raises(ValueError, match=r"clip: expected a text encoder with its projection"):
        EmbeddingScore.execute(encoded(encoder, 1), clip, "a cat")


def unclip(model: str, embedding, batch: int, seed: int = 5, strength: float = 1.0, dtype: torch.dtype = torch.float32):
    """A stock model's picture of an embedding by core's own nodes."""
    patcher = getattr(tiny_stock_unclip, model)(dtype=dtype)
    positive, negative = tiny_models.conditioning(patcher, 1), tiny_models.conditioning(patcher, 2)
    for conditioning in (positive, negative):
        width = {"sdxl": 1280, "stage_c": 64}.get(model, 1)
        conditioning[0][1]["pooled_output"] = torch.randn(1, width, generator=torch.Generator().manual_seed(3))
    positive = core_nodes.unCLIPConditioning().apply_adm(positive, embedding, strength, 0.1)[0]
    channels = patcher.get_model_object("latent_format").latent_channels
    latent = {"samples": torch.zeros(batch, channels, 8, 8)}
    return core_nodes.KSampler().sample(
        patcher, seed, 3, 4.0, "euler", "normal", positive, negative, latent
    )[0]["samples"]  # fmt: skip


@pytest.mark.parametrize("dtype", cases([torch.float32, torch.bfloat16], torch.float32))
@pytest.mark.parametrize("model", cases(["sd21_unclip", "stage_c", "sdxl"], "sd21_unclip"))
def test_stock_models_cannot_tell_theta_0_from_the_encoders_own_output(model: str, dtype: torch.dtype, tmp_path):
    encoder = tiny_stock_unclip.clip_vision(tmp_path, width=EMBEDDING_WIDTHS[model])
    a, b = encoded(encoder, 1), encoded(encoder, 2)
    direct, other = (unclip(model, x, 2, dtype=dtype) for x in (a, b))
    start, between, end = slerp(a, b, "0, 0.5, 1")[1]
    assert unclip(model, start, 2, dtype=dtype).equal(direct) and unclip(model, end, 2, dtype=dtype).equal(other)
    middle = unclip(model, between, 2, dtype=dtype)
    assert torch.isfinite(middle).all() and not middle.equal(direct) and not middle.equal(other)
    assert unclip(model, between, 2, dtype=dtype).equal(middle)


@pytest.mark.parametrize("model", cases(["sd21_unclip", "stage_c"], "sd21_unclip"))
def test_stock_models_put_a_batch_into_one_picture_as_the_help_says(model: str, tmp_path):
    encoder = tiny_stock_unclip.clip_vision(tmp_path, width=EMBEDDING_WIDTHS[model])
    a, b = encoded(encoder, 1), encoded(encoder, 2)
    both = slerp(a, b, "0, 1")[0]
    picture = unclip(model, both, 1)
    assert picture.shape[0] == 1 and torch.isfinite(picture).all()
    assert not picture.equal(unclip(model, a, 1)) and not picture.equal(unclip(model, b, 1))


def test_a_node_that_wants_patches_says_so(encoder):
    result = slerp(encoded(encoder, 1), encoded(encoder, 2), "0")[0]
    assert isinstance(result, ImageEmbedding) and not hasattr(result, "penultimate_hidden_states")
    with pytest.raises(
        AttributeError, match="clip_vision_output: expected an encoded picture with its last_hidden_state"
    ):
        core_nodes.StyleModelApply().apply_stylemodel([], _StyleModel(), result, 1.0, "multiply")
    assert result["image_embeds"].equal(image_embeds(result, "x"))


class _StyleModel:
    """comfy.sd.StyleModel reads its input so."""

    def get_cond(self, output):
        return output.last_hidden_state
