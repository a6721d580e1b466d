from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention.structure import structure_of
from ..diffusion.sockets import TrajectoryIO
from ..diffusion.trajectory import Trajectory
from ..display.feedback import RESENDS_RESULT, result, show_progress
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
        tooltip="The source picture, from DDIM Invert or Sample Trajectory. The sampler must use the same scheduler, steps and denoise. "
        "Samplers that also evaluate the model between these steps (dpm_2, dpmpp_sde) do not work; samplers that add noise do.",
    )


def _window_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "feature_end",
            default=-1.0,
            min=-1.0,
            max=1.0,
            step=0.01,
            tooltip="Fraction of the steps, from the first on, that use the source's features: 0.8 of 50 steps is the first 40. Higher "
            "keeps more of the shapes and of the old look. -1 is automatic: 0.8 for UNets, 0.1 for transformers. 0 is off. Published as "
            "pnp_f_t or tau_f.",
        ),
        io.Float.Input(
            "attention_end",
            default=-1.0,
            min=-1.0,
            max=1.0,
            step=0.01,
            tooltip="Fraction of the steps, from the first on, that use the source's self-attention: 0.5 of 50 steps is the first 25. "
            "Higher keeps more of the layout. -1 is automatic: 0.5 for UNets, 0.2 for transformers. 0 is off. Published as pnp_attn_t "
            "or tau_A.",
        ),
        io.String.Input(
            "blocks",
            default="auto",
            advanced=True,
            tooltip="auto: the published blocks for SD1.x and SD2.x (features 4; attention 4-11), the matching ones for SDXL (features "
            "1; attention 1-5), suitable ones for transformers. You can also write block numbers in this form, for transformers like "
            "'features single 20-37; attention double 0-18'.",
        ),
    ]


def _exact_input(what: str) -> io.Input:
    return io.Boolean.Input(
        "exact_retracing",
        default=False,
        optional=True,
        advanced=True,
        tooltip=f"{what} Needs a trajectory made with the method ddim, and the sampler euler or ddim. For exact reconstruction: "
        "edits do not come out better with it.",
    )


def _source_input() -> io.Input:
    return io.Conditioning.Input(
        "source",
        optional=True,
        tooltip="The prompt used to read the source picture. If nothing is connected, the prompt it was inverted with is used. The "
        "published results use an empty prompt.",
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
                    tooltip="The kind of model that the trajectory was made with: SD1.x, SD2.x, SDXL, or a transformer such as Flux, "
                    "SD3.5, Qwen-Image or Z-Image.",
                ),
                _trajectory_input(),
                *_window_inputs(),
                _exact_input("Corrects every step so that sampling follows the inversion back exactly."),
                FeaturesIO.Input(
                    "features",
                    optional=True,
                    tooltip="From Capture Features, to make many edits of one picture: the source is then not evaluated again for each "
                    "of them.",
                ),
                _source_input(),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Connect to a sampler or guider. Start sampling from the noise or latent of the inversion.",
                )
            ],
            **RESENDS_RESULT,
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
        return io.NodeOutput(patched, ui=result(f"{windows}, of {trajectory.steps} in all"))


class CaptureFeatures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_CaptureFeatures",
            display_name="Capture Features",
            category=CATEGORY,
            description="Optional. Evaluates an inverted picture once and keeps what Plug-and-Play needs from it, so that each later "
            f"edit costs no more than plain sampling. {PAPER}.",
            search_aliases=ALIASES,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The kind of model that the trajectory was made with, with the same LoRAs as the edits.",
                ),
                _trajectory_input(),
                *_window_inputs(),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="fp16",
                    advanced=True,
                    tooltip="Precision of the stored values. fp16 and bf16 need half the memory of fp32; fp32 loses nothing.",
                ),
                _exact_input("Set it as in the Plug-and-Play node that uses these features."),
                _source_input(),
            ],
            outputs=[
                FeaturesIO.Output(
                    display_name="features",
                    tooltip="Connect to Plug-and-Play, together with the same trajectory and blocks.",
                )
            ],
            hidden=[io.Hidden.unique_id],
            **RESENDS_RESULT,
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

        def tell(size: int) -> None:
            show_progress(cls, f"Capturing {size / 2**20:.1f} MB")

        features = capture(model, trajectory, windows, DTYPES[dtype], source, exact_retracing, tell)
        size = f"{features.nbytes / 2**20:.1f} MB; {windows}, of {trajectory.steps} in all"
        return io.NodeOutput(features, ui=result(size))


class NegativeSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_NegativeSchedule",
            display_name="Negative Schedule",
            category=CATEGORY,
            description="Fades from an empty prompt to a negative prompt over the steps. Plug-and-Play uses it to remove the old look "
            f"in the late steps. {PAPER}.",
            search_aliases=[*ALIASES, "negative prompt", "prompt schedule", "negative_prompt_alpha"],
            inputs=[
                io.Conditioning.Input(
                    "negative",
                    tooltip="The negative prompt: what the picture should not look like. The paper describes the source picture here.",
                ),
                io.Conditioning.Input(
                    "empty",
                    tooltip="The empty prompt, from which the fade begins.",
                ),
                io.Sigmas.Input("sigmas", tooltip="The sampler's sigmas. Each step gets its own weight."),
                io.Float.Input(
                    "empty_weight",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Weight of the empty prompt in the first step. With constant, 1 is plain sampling with the empty prompt and "
                    "0 is plain sampling with the negative prompt.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default="linear",
                    tooltip="How the weight of the empty prompt falls. linear: evenly, to 0 in the last step. exp: fast at first, to "
                    "0.25 % at the end. constant: it does not fall.",
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
