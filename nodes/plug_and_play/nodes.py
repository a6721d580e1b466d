from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention.unet_sites import decoder_depths, parse_sites
from ..diffusion.sockets import TrajectoryIO
from ..diffusion.trajectory import Trajectory
from ..display.feedback import RESENDS_RESULT, result
from .features import DTYPES, Features, capture
from .injection import plug_and_play
from .negative_schedule import SCHEDULES, negative_schedule
from .windows import Windows

CATEGORY = "palimpsest/plug_and_play"
ALIASES = ["pnp", "plug and play", "tumanyan", "image to image", "structure", "diffusion features"]
PAPER = "Plug-and-Play diffusion features (Tumanyan 2022, arXiv 2211.12572)"


@io.comfytype(io_type="PAL_FEATURES")
class FeaturesIO(io.ComfyTypeIO):
    Type = Features


def _trajectory_input() -> io.Input:
    return TrajectoryIO.Input(
        "trajectory",
        tooltip="The source picture, from DDIM Invert or Sample Trajectory. Its steps must be the sampler's: same scheduler, "
        "steps and denoise.",
    )


def _window_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "feature_end",
            default=0.8,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Share of the steps, from the noisy end, that take the source's features: 0.8 of 50 is the first 40. "
            "Higher keeps more of the shapes and lets more of the old look through. 0 turns it off.",
        ),
        io.Float.Input(
            "attention_end",
            default=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Share of the steps, from the noisy end, that take the source's self-attention: 0.5 of 50 is the first 25. "
            "Higher keeps more of the layout. 0 turns it off.",
        ),
        io.String.Input(
            "blocks",
            default="auto",
            advanced=True,
            tooltip="auto: the published places for SD1.x and SD2.x (features 4; attention 4-11) and their equals in SDXL "
            "(features 1; attention 1-5). Or name output blocks yourself in that form; leave a part out to inject none of it.",
        ),
    ]


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
    return Windows.of(parse_sites(blocks, decoder_depths(model)), feature_end, attention_end, trajectory.steps)


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
                    "model", tooltip="SD1.x, SD2.x or SDXL: the kind of model the trajectory was made with."
                ),
                _trajectory_input(),
                *_window_inputs(),
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
        )

    @classmethod
    def execute(
        cls, model, trajectory, feature_end, attention_end, blocks, features=None, source=None
    ) -> io.NodeOutput:
        windows = _windows(model, trajectory, feature_end, attention_end, blocks)
        return io.NodeOutput(plug_and_play(model, trajectory, windows, features, source))


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
                _source_input(),
            ],
            outputs=[
                FeaturesIO.Output(
                    display_name="features", tooltip="Connect to Plug-and-Play, with the same trajectory and blocks."
                )
            ],
            **RESENDS_RESULT,
        )

    @classmethod
    def execute(cls, model, trajectory, feature_end, attention_end, blocks, dtype, source=None) -> io.NodeOutput:
        windows = _windows(model, trajectory, feature_end, attention_end, blocks)
        features = capture(model, trajectory, windows, DTYPES[dtype], source)
        return io.NodeOutput(features, ui=result(f"{features.nbytes / 2**20:.1f} MB, {windows.last} steps"))


class NegativeSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_NegativeSchedule",
            display_name="Negative Schedule",
            category=CATEGORY,
            description="Fades from an empty prompt to a negative prompt over the steps, as Plug-and-Play does to push the old "
            f"look away late. {PAPER}.",
            search_aliases=[*ALIASES, "negative prompt", "prompt schedule"],
            inputs=[
                io.Conditioning.Input(
                    "negative",
                    tooltip="The negative prompt: what the picture must not look like. The paper uses words for the source picture.",
                ),
                io.Conditioning.Input(
                    "negative_source",
                    tooltip="The empty prompt that the negative one is faded in from.",
                ),
                io.Sigmas.Input("sigmas", tooltip="The sampler's own sigmas: one weight is set for each of its steps."),
                io.Float.Input(
                    "alpha",
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
    def execute(cls, negative, negative_source, sigmas, alpha, schedule) -> io.NodeOutput:
        return io.NodeOutput(negative_schedule(negative, negative_source, sigmas, alpha, schedule))


NODES = [PlugAndPlay, CaptureFeatures, NegativeSchedule]
