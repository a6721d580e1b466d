import comfy.hooks
import comfy_extras.nodes_cfg as core_cfg
import pytest
import torch
from palimpsest.nodes.null_text.nodes import NullTextOptimize
from support.fixtures import tiny_models
from support.fixtures.sampling import random_trajectory

import nodes as core_nodes

pytestmark = pytest.mark.model


def changed(model, change):
    positive, negative = tiny_models.conditioning(model, 1), tiny_models.conditioning(model, 3)
    inputs = {
        "model": model, "positive": positive, "negative": negative, "trajectory": random_trajectory(model, positive, 3),
        "cfg": 7.5, "inner_steps": 2, "learning_rate": 1e-2, "tolerance": 1e-5, "method": "null_text", "constants": "code",
    }  # fmt: skip
    return {**inputs, **change(inputs)}


def quantised(inputs):
    class Packed(torch.Tensor):
        pass

    model = inputs["model"]
    layer = model.model.diffusion_model.out[-1]
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Packed), requires_grad=False)
    return {}


def other_size(inputs):
    return {"positive": tiny_models.conditioning(inputs["model"], 1, batch=2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: {"cfg": 1.0}, "^cfg: expected .* any value but 1, got 1"),
        (lambda i: {"negative": i["negative"] * 2}, "^negative: expected one prompt, got 2"),
        (lambda i: {"positive": i["positive"] * 2, "method": "fast"}, "^positive: expected one prompt, got 2"),
        (lambda i: {"negative": []}, "^negative: expected one prompt, got 0"),
        (other_size, "^positive: expected one prompt, or one for each of the trajectory's 1 pictures, got 2"),
        (
            lambda i: {"model": tiny_models.small_sdxl()},
            "^model: expected the kind of model the trajectory was made with",
        ),
        (
            lambda i: {"negative": core_nodes.ConditioningSetTimestepRange().set_range(i["negative"], 0.0, 0.5)[0]},
            "^negative: expected conditioning without a time range, .* start_percent",
        ),
        (
            lambda i: {"negative": [[i["negative"][0][0], {"hooks": comfy.hooks.HookGroup()}]]},
            "^negative: expected conditioning without hooks",
        ),
        (
            lambda i: {"positive": core_nodes.ConditioningSetArea().append(i["positive"], 64, 64, 0, 0, 1.0)[0]},
            "^positive: expected prompts for the whole picture or with masks",
        ),
        (
            lambda i: {"model": core_cfg.CFGZeroStar.execute(i["model"])[0]},
            "^model: expected plain classifier-free guidance, .* sampler_post_cfg_function",
        ),
        (quantised, "^model: expected weights that gradients can flow through .* Packed"),
    ],
)
@torch.inference_mode()
def test_bad_inputs_are_refused_before_the_model_runs(change, message):
    model = tiny_models.sd15()
    model.set_model_unet_function_wrapper(lambda apply, args: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=message):
        NullTextOptimize.execute(**changed(model, change))
