"""What every run that follows a trajectory owes to what artists put beside it, shown with Plug-and-Play and Prompt-to-Prompt."""

import dataclasses
import gc
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product

import comfy.context_windows
import comfy.hooks
import comfy.samplers
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from lab.evidence.compatibility.peers import sliding_windows
from palimpsest.nodes.diffusion.evaluation import uncompiled
from palimpsest.nodes.diffusion.source_run import exact_retracing
from palimpsest.nodes.inversion.ddim import invert
from palimpsest.nodes.plug_and_play.nodes import CaptureFeatures, PlugAndPlay
from palimpsest.nodes.prompt_to_prompt.nodes import PromptToPrompt
from palimpsest.nodes.prompt_to_prompt.prompt_edit import prompt_edit
from palimpsest.nodes.text.tokens import tokenize
from support.cases import cases
from support.fixtures import tiny_clip
from support.fixtures.sampling import random_trajectory, sample
from support.fixtures.tiny_models import SD1_UNET, conditioning, control_net, sd15
from support.fixtures.unet_probe import UNetProbe, rows_equal, same

from nodes import ControlNetApplyAdvanced

pytestmark = pytest.mark.model

CFG = 4.0
STEPS = 4
SIZE = (8, 8)


@pytest.fixture(scope="module")
def model():
    return sd15()


@pytest.fixture(scope="module")
def trajectory(model):
    return random_trajectory(model, conditioning(model, 1), STEPS, size=SIZE)


def plug_and_play(model, trajectory, feature_end=0.5, attention_end=0.5, **optional):
    return PlugAndPlay.execute(model, trajectory, feature_end, attention_end, "auto", **optional)[0]


def prompt_to_prompt(model, trajectory, cross_end=0.5, self_end=0.5, blend=""):
    edit = prompt_edit(partial(tokenize, tiny_clip.sd1()), "a red cat", "a blue dog", "auto", "", blend)
    return PromptToPrompt.execute(model, trajectory, edit, cross_end, self_end, 0.25, 0.3)[0]


def with_blend(model, trajectory, cross_end=0.5, self_end=0.5):
    return prompt_to_prompt(model, trajectory, cross_end, self_end, "cat, dog")


EDITS = [plug_and_play, prompt_to_prompt, with_blend]
HOWS = ["core's node", "the whole network", "its transformer blocks"]
DAILY_SAMPLERS = ("euler", "heun", "dpm_2", "dpmpp_2m", "dpmpp_sde", "ddim", "uni_pc")


def run(model, trajectory, positive=None, negative=None, sampler="euler", cfg=CFG, start=None, **options):
    positive, negative = positive or conditioning(model, 2), negative or conditioning(model, 3)
    start = trajectory.start if start is None else start
    return sample(model, start, positive, negative, cfg, trajectory.sigmas, sampler, **options)


class TestCompiled:
    """Faults E5 and R6: a compiled network left the edit out, or failed in the middle of sampling."""

    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @staticmethod
    def compiled(model, how):
        """A function that gives a model its compiled parts; the model is as it was loaded last, without any."""
        if how == "core's node":
            from comfy_api.torch_helpers import set_torch_compile_wrapper

            options = {"guard_filter_fn": lambda entries: ["transformer_options" not in e.name for e in entries]}

            def patch(patched):
                set_torch_compile_wrapper(model=patched, backend="eager", options=options)
        else:
            names = [n for n, _ in model.model.named_modules() if n.endswith("transformer_blocks.0")]
            names = ["diffusion_model"] if how == "the whole network" else names
            parts = {name: torch.compile(comfy.utils.get_attr(model.model, name), backend="eager") for name in names}

            def patch(patched):
                for name, part in parts.items():
                    patched.add_object_patch(name, part)

        def apply(source):
            patched = source.clone()
            patch(patched)
            return patched

        return apply

    @pytest.mark.parametrize(("how", "edit"), cases(product(HOWS, EDITS), *zip(HOWS, EDITS, strict=True)))
    def test_edits_are_the_same(self, model, edit, how):
        """Other packs compile the network, or parts of it, as object patches."""
        trajectory = random_trajectory(model, conditioning(model, 1), 2, size=SIZE)
        expected = run(edit(model, trajectory, 1.0, 1.0), trajectory)[-1]
        compiled = self.compiled(model, how)
        assert same(run(edit(compiled(model), trajectory, 1.0, 1.0), trajectory)[-1], expected)
        assert same(run(compiled(edit(model, trajectory, 1.0, 1.0)), trajectory)[-1], expected)

    def test_steps_without_an_edit_stay_compiled(self, model):
        """With windows of different lengths, where features were dropped in silence."""
        trajectory = random_trajectory(model, conditioning(model, 1), 3, size=SIZE)
        expected = run(plug_and_play(model, trajectory, 0.7, 0.4), trajectory)[-1]
        compiled, traced = model.clone(), []

        def backend(graph, inputs):
            traced.append(graph)
            return graph

        module = model.model.diffusion_model.output_blocks[5][1].transformer_blocks[0]
        name = "diffusion_model.output_blocks.5.1.transformer_blocks.0"
        compiled.add_object_patch(name, torch.compile(module, backend=backend))
        run(plug_and_play(compiled, trajectory, 1.0, 1.0), trajectory)
        assert not traced
        assert same(run(plug_and_play(compiled, trajectory, 0.7, 0.4), trajectory)[-1], expected)
        assert traced

    def test_other_threads_run_uncompiled_too(self):
        """As those of core's MultiGPU nodes, one for each device."""
        traced = []
        compiled = torch.compile(torch.nn.Linear(2, 2), backend=lambda graph, inputs: traced.append(graph) or graph)
        with uncompiled({}), ThreadPoolExecutor(1) as pool:
            pool.submit(compiled, torch.ones(1, 2)).result()
        assert not traced
        compiled(torch.ones(1, 2))
        assert traced

    def test_an_older_torch_is_refused(self, model, trajectory, monkeypatch):
        monkeypatch.delattr(torch.compiler, "set_stance")
        run(plug_and_play(model, trajectory), trajectory)
        with pytest.raises(ValueError, match=r"^model: expected a model that is not compiled"):
            run(plug_and_play(self.compiled(model, "core's node")(model), trajectory), trajectory)


class TestControlNet:
    """Fault E6: a ControlNet with a batch of hints lost all but the first after a source pass of one row."""

    @pytest.mark.parametrize(
        ("edit", "chained"), cases(product(EDITS, (False, True)), (plug_and_play, True), (with_blend, False))
    )
    def test_hints_of_a_batch_stay_with_their_rows(self, model, edit, chained):
        def controlled(prompt, net):
            hints = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(4))
            for _ in range(2 if chained else 1):
                prompt = ControlNetApplyAdvanced().apply_controlnet(prompt, prompt, net, hints, 1.0, 0.0, 1.0)[0]
            return prompt

        net = control_net(config=SD1_UNET)
        positive = controlled(conditioning(model, 2), net)  # one ControlNet for inversion and sampling
        trajectory = random_trajectory(model, positive, 2, size=SIZE)
        start = trajectory.start.expand(3, -1, -1, -1)
        shared = run(edit(model, trajectory), trajectory, positive, cfg=1.0, start=start)[-1]
        own = dataclasses.replace(trajectory, positive=controlled(conditioning(model, 2), control_net(config=SD1_UNET)))
        apart = run(edit(model, own), own, positive, cfg=1.0, start=start)[-1]
        assert same(shared, apart)
        assert not same(shared[1:2], shared[:1], 1e-3)


class TestContextWindows:
    """Fault E11: with one trajectory row for each frame, a window was given the source's rows of all frames."""

    @staticmethod
    def windowed(model, dim=0, length=4):
        patched = model.clone()
        patched.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
            comfy.context_windows.get_matching_context_schedule("standard_static"),
            comfy.context_windows.get_matching_fuse_method("pyramid"),
            context_length=length,
            context_overlap=2,
            dim=dim,
        )
        return patched

    @pytest.mark.parametrize(("edit", "rows"), cases(product(EDITS, (6, 1)), (plug_and_play, 1), (with_blend, 6)))
    def test_frames_are_edited_as_without_windows(self, model, edit, rows):
        """A picture model's rows do not see each other, so that windows over frames change nothing."""
        trajectory = random_trajectory(model, conditioning(model, 1), 2, batch=rows, size=SIZE)
        start = random_trajectory(model, conditioning(model, 1), 2, batch=6, size=SIZE, seed=9).start
        expected = run(edit(model, trajectory), trajectory, start=start)[-1]
        assert same(run(edit(self.windowed(model), trajectory), trajectory, start=start)[-1], expected, 1e-4)

    def test_frames_with_prompts_of_their_own(self, model):
        source, positive = conditioning(model, 1, batch=6), conditioning(model, 2, batch=6)
        trajectory = random_trajectory(model, source, 2, batch=6, size=SIZE)
        for edit in EDITS:
            expected = run(edit(model, trajectory), trajectory, positive)[-1]
            assert same(run(edit(self.windowed(model), trajectory), trajectory, positive)[-1], expected, 1e-4)

    def test_captured_features_follow_the_windows(self, model):
        trajectory = random_trajectory(model, conditioning(model, 1), 2, batch=6, size=SIZE)
        windowed = self.windowed(model)
        features = CaptureFeatures.execute(windowed, trajectory, 0.5, 0.5, "auto", "fp32")[0]
        live = run(plug_and_play(windowed, trajectory), trajectory)[-1]
        assert same(run(plug_and_play(windowed, trajectory, features=features), trajectory)[-1], live)

    def test_windows_over_a_side_of_the_picture(self, model):
        trajectory = random_trajectory(model, conditioning(model, 1), 2, size=(8, 16))
        windowed = self.windowed(model, dim=3, length=8)
        with UNetProbe(model) as probe:
            run(plug_and_play(windowed, trajectory, 1.0, 1.0), trajectory)
        sources = probe.source_calls(trajectory.latents[..., :8], trajectory.sigmas)
        assert len(sources) == 2
        assert all(same(probe.calls[i + 1].query[:1], probe.calls[i].query) for i in sources)
        features = CaptureFeatures.execute(model, trajectory, 1.0, 1.0, "auto", "fp32")[0]
        live = run(plug_and_play(windowed, trajectory, 1.0, 1.0), trajectory)[-1]
        # What was captured is of the whole picture: the source is evaluated in each window instead.
        assert same(run(plug_and_play(windowed, trajectory, 1.0, 1.0, features=features), trajectory)[-1], live)
        with pytest.raises(ValueError, match=r"^blend_words: expected context windows over pictures"):
            run(with_blend(windowed, trajectory), trajectory)

    @pytest.mark.parametrize("edit", EDITS)
    def test_another_pack_s_windows_are_known_by_what_they_ask(self, model, edit):
        """AnimateDiff-Evolved's kind: a few pictures of the batch in each call, and core is not told which."""
        trajectory = random_trajectory(model, conditioning(model, 1), 2, batch=3, size=SIZE)
        expected = run(edit(model, trajectory), trajectory)[-1]
        for windowed in (edit(sliding_windows(model), trajectory), sliding_windows(edit(model, trajectory))):
            assert same(run(windowed, trajectory)[-1], expected, 1e-4)

    def test_a_trajectory_is_not_read_through_another_pack_s_windows(self, model):
        trajectory = random_trajectory(model, conditioning(model, 1), 2, batch=3, size=SIZE)
        with pytest.raises(ValueError, match=r"^model: expected one whose network sees all 3 pictures"):
            CaptureFeatures.execute(sliding_windows(model), trajectory, 0.5, 0.5, "auto", "fp32")


class TestSparing:
    """Fault E17: records stayed on the device after the window, and the source was evaluated for nothing."""

    @pytest.mark.parametrize("edit", [plug_and_play, prompt_to_prompt])
    def test_records_are_freed_when_the_window_ends(self, model, trajectory, edit):
        def held():
            return sum(
                type(value) is dict
                and any(isinstance(key, tuple) and key[:1] in {("query",), ("cross",)} for key in value)
                for value in gc.get_objects()
            )

        gc.collect()  # what other tests left
        others, counts = held(), []
        run(edit(model, trajectory), trajectory, on_step=lambda step: counts.append(held() - others))
        assert counts[0] > 0 and counts[2:] == [0, 0]

    @pytest.mark.parametrize("edit", [prompt_to_prompt, with_blend])
    def test_no_source_pass_while_the_edited_prompt_rests(self, model, trajectory, edit):
        late = [
            [conditioning(model, 2)[0][0], {"timestep_start": float(trajectory.sigmas[3]) + 1e-3, "timestep_end": 0.0}]
        ]
        with UNetProbe(model) as probe:
            run(edit(model, trajectory), trajectory, late, start=trajectory.start.flip(-1))
        assert len(probe.source_calls(trajectory.latents[:3], trajectory.sigmas[:3])) == 0


class TestHooks:
    """A source prompt with hooks, such as the scheduled LoRA that the picture was inverted with."""

    @staticmethod
    def hooked(model, prompt, seed=5, keyframes=True):
        names = [name for name in model.model.state_dict() if name.endswith("attn1.to_q.weight")]
        generator = torch.Generator().manual_seed(seed)
        weights = {
            name: (0.5 * torch.randn(model.model.state_dict()[name].shape, generator=generator),) for name in names
        }
        group = comfy.hooks.HookGroup()
        hook = comfy.hooks.WeightHook(strength_model=1.0, strength_clip=0.0)
        hook.need_weight_init = False
        hook.weights = {name: ("diff", weight) for name, weight in weights.items()}
        group.add(hook)
        if keyframes:
            frames = comfy.hooks.HookKeyframeGroup()
            frames.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.0, guarantee_steps=0))
            frames.add(comfy.hooks.HookKeyframe(strength=0.2, start_percent=0.3, guarantee_steps=0))
            group.set_keyframes_on_hooks(frames)
        return [[embedding, {**options, "hooks": group}] for embedding, options in prompt]

    @pytest.mark.parametrize("positive", cases(["plain", "the same hook", "another hook"], "another hook"))
    def test_the_source_is_read_with_them(self, model, positive):
        source = self.hooked(model, conditioning(model, 1))
        trajectory = random_trajectory(model, source, STEPS, size=SIZE)
        target = conditioning(model, 2)
        if positive != "plain":
            target = self.hooked(model, target, 6)
        if positive == "the same hook":
            target[0][1]["hooks"] = source[0][1]["hooks"]
        features = CaptureFeatures.execute(model, trajectory, 1.0, 1.0, "auto", "fp32")[0]
        captured = run(plug_and_play(model, trajectory, 1.0, 1.0, features=features), trajectory, target)[-1]
        assert same(run(plug_and_play(model, trajectory, 1.0, 1.0), trajectory, target)[-1], captured)
        plain = plug_and_play(model, trajectory, 1.0, 1.0, source=conditioning(model, 1))
        assert not same(run(plain, trajectory, target)[-1], captured, 1e-3)

    def test_an_inversion_climbs_their_schedule(self, model):
        """Core's schedules go down only: every level of the way up had the strength of the last one."""
        source = self.hooked(model, conditioning(model, 1))
        grid = random_trajectory(model, source, STEPS, size=SIZE)
        trajectory = invert(model, source, model.model.process_latent_out(grid.latents[-1]), grid.sigmas, "ddim")
        back = sample(exact_retracing(model, trajectory), trajectory.start, source, source, 1.0, grid.sigmas)[-1]
        assert same(back, trajectory.latents[-1], 1e-4)

    def test_nothing_of_them_stays(self, model):
        trajectory = random_trajectory(model, self.hooked(model, conditioning(model, 1)), STEPS, size=SIZE)
        before = run(model, trajectory)[-1]
        run(plug_and_play(model, trajectory), trajectory)
        assert torch.equal(run(model, trajectory)[-1], before)


@pytest.mark.parametrize(
    ("edit", "cache"),
    cases(product(EDITS, (EasyCacheNode, LazyCacheNode)), (plug_and_play, LazyCacheNode), (with_blend, EasyCacheNode)),
)
def test_a_network_that_does_not_run_is_refused(model, edit, cache):
    """Beside a cache that answers in the network's place an edit is right, or refused by name."""
    trajectory = random_trajectory(model, conditioning(model, 1), 10, size=SIZE)
    cached = cache.execute(model, 5.0, 0.0, 1.0, False)[0]
    try:
        assert bool(torch.isfinite(run(edit(cached, trajectory), trajectory)[-1]).all())
    except ValueError as error:
        assert str(error).startswith("model: expected one whose network runs at every step")


@pytest.mark.parametrize("sampler", cases(comfy.samplers.SAMPLER_NAMES, *DAILY_SAMPLERS))
def test_any_sampler_that_keeps_to_the_levels(model, trajectory, sampler):
    """The source comes from the trajectory, so that noise of the sampler's own does not matter. Others are refused by name."""
    patched = plug_and_play(model, trajectory, 1.0, 1.0)
    with UNetProbe(model) as probe:
        try:
            result = run(patched, trajectory, sampler=sampler)[-1]
        except ValueError as error:
            assert re.search(
                r"^sampler: expected .* got [\w]+, which also needs sigma .* between two of them", str(error)
            )
            return
    sources = probe.source_calls(trajectory.latents, trajectory.sigmas)
    assert len(sources) >= STEPS and bool(torch.isfinite(result).all())
    assert all(rows_equal(probe.calls[i + 1].query, probe.calls[i].query) for i in sources)
