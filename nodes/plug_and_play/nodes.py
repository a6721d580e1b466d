from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention.structure import structure_of
from ..diffusion.sockets import TrajectoryIO
from ..diffusion.trajectory import Trajectory
from ..display.feedback import show_on_node
from .features import DTYPES, Features, capture
from .injection import plug_and_play
from .negative_schedule import SCHEDULES, negative_schedule
from .windows import Windows

CATEGORY = "palimpsest/plug_and_play"
ALIASES = [
    "pnp",
    "plug and play",
    "tumanyan",
    "image to image",
    "structure",
    "diffusion features",
    "pnp_f_t",
    "pnp_attn_t",
    "tau_f",
    "tau_A",
]
PAPER = "Plug-and-Play diffusion features (Tumanyan 2022, arXiv 2211.12572)"


@io.comfytype(io_type="PAL_FEATURES")
class FeaturesIO(io.ComfyTypeIO):
    Type = Features


def _trajectory_input() -> io.Input:
    return TrajectoryIO.Input(
        "trajectory",
        tooltip="The source picture, from DDIM Invert or Sample Trajectory. Its steps must be the sampler's: same scheduler, "
        "steps and denoise. Any sampler will do that asks the model at these steps only, with noise of its own or without.",
    )


def _window_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "feature_end",
            default=-1.0,
            min=-1.0,
            max=1.0,
            step=0.01,
            tooltip="Share of the steps, from the noisy end, that take the source's features: 0.8 of 50 is the first 40. "
            "-1 chooses what suits the model: 0.8 for SD1.x, SD2.x and SDXL, 0.1 for transformers. "
            "Higher keeps more of the shapes and lets more of the old look through. 0 turns it off; any other value is at least one "
            "step. Published as pnp_f_t or tau_f.",
        ),
        io.Float.Input(
            "attention_end",
            default=-1.0,
            min=-1.0,
            max=1.0,
            step=0.01,
            tooltip="Share of the steps, from the noisy end, that take the source's self-attention: 0.5 of 50 is the first 25. "
            "-1 chooses what suits the model: 0.5 for SD1.x, SD2.x and SDXL, 0.2 for transformers. "
            "Higher keeps more of the layout. 0 turns it off; any other value is at least one step. Published as pnp_attn_t or tau_A.",
        ),
        io.String.Input(
            "blocks",
            default="auto",
            advanced=True,
            tooltip="auto: the published places for SD1.x and SD2.x (features 4; attention 4-11) and their equals in SDXL "
            "(features 1; attention 1-5), or those that suit a transformer. Or name blocks yourself in that form, for transformers also "
            "as 'double 0-18' and 'single 0-37'; leave a part out to inject none of it.",
        ),
    ]


def _exact_input(what: str) -> io.Input:
    return io.Boolean.Input(
        "exact_retracing",
        default=False,
        optional=True,
        advanced=True,
        tooltip=f"{what} Needs a trajectory by method ddim, and euler or ddim as sampler. The source then comes back to rounding at one "
        "model call a step. It keeps more of the source and lets fewer edits through.",
    )


def _source_input() -> io.Input:
    return io.Conditioning.Input(
        "source",
        optional=True,
        tooltip="The prompt that the source picture is read with. Unconnected: the one it was inverted with. The published "
        "results use an empty prompt.",
    )


def _windows(
    model: ModelPatcher, trajectory: Trajectory, feature_end: float, attention_end: float, blocks: str
) -> Windows:
    structure = structure_of(model)
    feature_end = structure.feature_end if feature_end < 0 else feature_end
    attention_end = structure.attention_end if attention_end < 0 else attention_end
    return Windows.of(structure.sites(blocks), feature_end, attention_end, trajectory.steps)


class PlugAndPlay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_PlugAndPlay",
            display_name="Plug-and-Play",
            category=CATEGORY,
            description=f"Keeps the layout and shapes of an inverted picture while a new prompt redraws everything else. {PAPER}.",
            search_aliases=[*ALIASES, "style transfer"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The kind of model the trajectory was made with: SD1.x, SD2.x, SDXL, or a transformer such as Flux, SD3.5, "
                    "Qwen-Image or Z-Image.",
                ),
                _trajectory_input(),
                *_window_inputs(),
                _exact_input("Corrects every step so that sampling goes back exactly the way the inversion came."),
                FeaturesIO.Input(
                    "features",
                    optional=True,
                    tooltip="From Capture Features, for many edits of one picture: saves evaluating the source again in each.",
                ),
                _source_input(),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Connect to a sampler or guider. Start it from the inversion's noise or latent.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        trajectory,
        feature_end,
        attention_end,
        blocks,
        exact_retracing=False,
        features=None,
        source=None,
    ) -> io.NodeOutput:
        windows = _windows(model, trajectory, feature_end, attention_end, blocks)
        patched = plug_and_play(model, trajectory, windows, features, source, exact_retracing)
        show_on_node(cls, f"{windows}, of {trajectory.steps}")
        return io.NodeOutput(patched)


class CaptureFeatures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_CaptureFeatures",
            display_name="Capture Features",
            category=CATEGORY,
            description="Evaluates an inverted picture once and keeps what Plug-and-Play reads from it, so that every edit "
            f"afterwards costs no more than plain sampling. Optional. {PAPER}.",
            search_aliases=ALIASES,
            inputs=[
                io.Model.Input("model", tooltip="The kind of model the trajectory was made with."),
                _trajectory_input(),
                *_window_inputs(),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="fp16",
                    advanced=True,
                    tooltip="How the values are kept in memory. fp32 takes twice as much and loses nothing.",
                ),
                _exact_input("As in the Plug-and-Play that the features are for."),
                _source_input(),
            ],
            outputs=[
                FeaturesIO.Output(
                    display_name="features", tooltip="Connect to Plug-and-Play, with the same trajectory and blocks."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        trajectory,
        feature_end,
        attention_end,
        blocks,
        dtype,
        exact_retracing=False,
        source=None,
    ) -> io.NodeOutput:
        windows = _windows(model, trajectory, feature_end, attention_end, blocks)
        features = capture(model, trajectory, windows, DTYPES[dtype], source, exact_retracing)
        show_on_node(cls, f"{features.nbytes / 2**20:.1f} MB; {windows}, of {trajectory.steps}")
        return io.NodeOutput(features)


class NegativeSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_NegativeSchedule",
            display_name="Negative Schedule",
            category=CATEGORY,
            description="Fades from an empty prompt to a negative prompt over the steps, as Plug-and-Play does to push the old "
            f"look away late. {PAPER}.",
            search_aliases=[*ALIASES, "negative prompt", "prompt schedule", "negative_prompt_alpha"],
            inputs=[
                io.Conditioning.Input(
                    "negative",
                    tooltip="The negative prompt: what the picture must not look like. The paper uses words for the source picture.",
                ),
                io.Conditioning.Input(
                    "empty",
                    tooltip="The empty prompt that the negative one is faded in from.",
                ),
                io.Sigmas.Input("sigmas", tooltip="The sampler's own sigmas: one weight is set for each of its steps."),
                io.Float.Input(
                    "empty_weight",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Weight of the empty prompt in the first step. 1 with constant is plain sampling with the empty prompt, "
                    "0 is plain sampling with the negative prompt.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default="linear",
                    tooltip="How the empty prompt's weight falls: linear reaches 0 in the last step, exp falls to a quarter of a "
                    "per cent, most of it early, constant stays.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="negative", tooltip="Connect to the negative input of a sampler or guider."
                )
            ],
        )

    @classmethod
    def execute(cls, negative, empty, sigmas, empty_weight, schedule) -> io.NodeOutput:
        return io.NodeOutput(negative_schedule(negative, empty, sigmas, empty_weight, schedule))


NODES = [PlugAndPlay, CaptureFeatures, NegativeSchedule]
