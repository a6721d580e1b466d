from __future__ import annotations

from comfy_api.latest import io

from ..diffusion.sockets import TrajectoryIO
from ..display.feedback import RESENDS_RESULT, result, temporary_frames
from ..display.heatmap import heatmap
from .blending import Mask
from .common_ground import require_different
from .every_step import look_at_every_step
from .expert import Expert, Prompted
from .guider import Blending, FusionGuider
from .saliency import BLURS
from .saliency_map import along, decide, mask_of, saliency_of, under_noise
from .sockets import FusionExpertIO, cfg_input, expert_inputs, mask_inputs, saliency_input, sharpness_of
from .stages import SubjectFusionGuider

CATEGORY = "palimpsest/saliency_fusion"
ALIASES = ["magicfusion", "saliency-aware noise blending", "snb", "snf", "two models", "merge models", "blend models"]
PAPER = "MagicFusion (Zhao 2023, arXiv 2303.13126)"
MAX_EXPERTS = 8


def _expert(
    model_expert, positive_expert, negative_expert, cfg_expert, start_percent, end_percent, saliency=None,
    mask=None, mask_use="restrict",
) -> Expert:  # fmt: skip
    return Expert(
        *(model_expert, positive_expert, negative_expert, cfg_expert, sharpness_of(saliency, "expert")),
        socket="model_expert",
        span=(start_percent, end_percent),
        mask=None if mask is None else Mask(mask, mask_use),
    )


class SaliencyFusionGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_SaliencyFusionGuider",
            display_name="Saliency Fusion Guider",
            category=CATEGORY,
            description="Two models draw one picture together: at every step each pixel goes to the model whose guidance is stronger "
            f"there. {PAPER}.",
            search_aliases=[*ALIASES, "dual model guider"],
            inputs=[
                io.Model.Input("model", tooltip="The general model. It draws wherever no expert is more salient."),
                io.Conditioning.Input(
                    "positive", tooltip="What the general model should draw, encoded by its own CLIP."
                ),
                io.Conditioning.Input("negative", tooltip="The general model's negative prompt."),
                cfg_input("cfg", "The general model's guidance."),
                *expert_inputs(),
                saliency_input("general", "expert"),
                io.Combo.Input(
                    "blur",
                    options=list(BLURS),
                    default="box",
                    advanced=True,
                    tooltip="How the saliency is smoothed. box: the published mean over 4 x 4 latent pixels, which is darker at the "
                    "picture's edges. gaussian: the same width, without dark edges.",
                ),
                io.Combo.Input(
                    "expert_uncond",
                    options=["own", "general"],
                    default="own",
                    advanced=True,
                    tooltip="Which unconditional prediction the expert is compared with. own: its own, as in the paper. general: the "
                    "general model's, as in the published code; then every difference between the two models counts as salient.",
                ),
                io.DynamicCombo.Input(
                    "mode",
                    options=[
                        io.DynamicCombo.Option("hard", []),
                        io.DynamicCombo.Option(
                            "soft",
                            [
                                io.Float.Input(
                                    "temperature",
                                    default=0.5,
                                    min=0.0,
                                    max=1000.0,
                                    step=0.05,
                                    round=0.001,
                                    tooltip="0 is the same as hard. 1 mixes in proportion to saliency. High values approach the plain "
                                    "average of the models.",
                                )
                            ],
                        ),
                    ],
                    tooltip="hard: each pixel belongs to one model, as published. soft: the models are mixed in proportion to their saliency.",
                ),
                *mask_inputs(),
                io.Autogrow.Input(
                    "experts",
                    io.Autogrow.TemplatePrefix(
                        FusionExpertIO.Input("expert", tooltip="One more model, from a Fusion Expert node."),
                        prefix="expert",
                        min=0,
                        max=MAX_EXPERTS - 1,
                    ),
                    optional=True,
                    tooltip="More models, each from a Fusion Expert node. The most salient of all models gets the pixel.",
                ),
            ],
            outputs=[
                io.Guider.Output(
                    display_name="guider",
                    tooltip="For SamplerCustomAdvanced, with any sampler. While it samples, the preview tints the experts' areas.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, cfg, blur, expert_uncond, mode=None, saliency=None, experts=None, **first
    ) -> io.NodeOutput:
        everyone = [_expert(saliency=saliency, **first), *(experts or {}).values()]
        require_different([model, *(expert.model for expert in everyone)])
        general = Prompted(model, positive, negative, cfg, sharpness_of(saliency, "general"))
        blending = Blending(blur, expert_uncond == "general", (mode or {}).get("temperature"))
        return io.NodeOutput(FusionGuider(general, everyone, blending))


class FusionExpert(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_FusionExpert",
            display_name="Fusion Expert",
            category=CATEGORY,
            description=f"One more model for Saliency Fusion Guider, with its own prompts, time window and mask. {PAPER}.",
            search_aliases=[*ALIASES, "three models"],
            inputs=[*expert_inputs(), saliency_input("expert"), *mask_inputs()],
            outputs=[
                FusionExpertIO.Output(
                    display_name="expert", tooltip="Connect to `experts` of a Saliency Fusion Guider."
                )
            ],
        )

    @classmethod
    def execute(cls, **expert) -> io.NodeOutput:
        return io.NodeOutput(_expert(**expert))


class SubjectFusion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        border = {"min": 0.0, "max": 1.0, "step": 0.01, "round": 0.0001}
        return io.Schema(
            node_id="PAL_SubjectFusionGuider",
            display_name="Subject Fusion Guider",
            category=CATEGORY,
            description="Puts a given subject into a new scene: the scene model starts the picture, then both models share it by "
            "saliency, and the subject model finishes it. Face-diffuser (Wang 2024, arXiv 2311.10329).",
            search_aliases=["face-diffuser", "face diffuser", "snf", "subject fusion", "fastcomposer", "two models"],
            inputs=[
                io.Model.Input("model_scene", tooltip="The model that draws the scene: a text-to-image checkpoint."),
                io.Model.Input(
                    "model_subject",
                    tooltip="The model that was trained with positive_subject, from Load Subject Checkpoint. It may be the scene model "
                    "with a LoRA.",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The plain prompt, encoded by the subject model's CLIP: `positive` of Subject Conditioning.",
                ),
                io.Conditioning.Input(
                    "positive_subject",
                    tooltip="The same prompt with the subjects in it: `positive_subject` of Subject Conditioning.",
                ),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt of the scene model. The published one is empty."
                ),
                cfg_input(
                    "cfg",
                    "Guidance of both models. For the subject model, the plain prompt takes the role of the negative prompt.",
                    5.0,
                ),
                io.Float.Input(
                    "scene_end",
                    default=0.3,
                    tooltip="Up to this fraction of the sampling, the scene model samples alone.",
                    **border,
                ),
                io.Float.Input(
                    "fusion_end",
                    default=0.6,
                    tooltip="Up to this fraction of the sampling, both models share the picture. After it the subject model samples "
                    "alone.",
                    **border,
                ),
                saliency_input("scene", "subject"),
            ],
            outputs=[
                io.Guider.Output(
                    display_name="guider",
                    tooltip="For SamplerCustomAdvanced with a sampler that adds no noise: euler, ddim, heun, dpmpp_2m.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, model_scene, model_subject, positive, positive_subject, negative, cfg, scene_end, fusion_end, saliency=None
    ) -> io.NodeOutput:
        models, prompts = (model_scene, model_subject), (positive, positive_subject, negative)
        sharpness = [sharpness_of(saliency, model) for model in ("scene", "subject")]
        return io.NodeOutput(SubjectFusionGuider(*models, *prompts, cfg, scene_end, fusion_end, *sharpness))


class SaliencyMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_SaliencyMap",
            display_name="Saliency Map",
            category=CATEGORY,
            description="Shows which model a fusion guider would choose for each pixel at a given step, without sampling, and how "
            f"salient every model is there. {PAPER}.",
            search_aliases=[*ALIASES, "fusion mask", "heatmap"],
            inputs=[
                io.Guider.Input("guider", tooltip="From Saliency Fusion Guider or Subject Fusion Guider."),
                io.Int.Input(
                    "step",
                    default=10,
                    min=0,
                    max=9999,
                    tooltip="The step to look at; 0 is the noisiest. The guider's start and end are ignored here.",
                ),
                io.Int.Input(
                    "expert",
                    default=1,
                    min=1,
                    max=MAX_EXPERTS,
                    tooltip="Which expert the mask shows. 1 is the guider's own expert.",
                ),
                TrajectoryIO.Input(
                    "trajectory",
                    optional=True,
                    tooltip="The picture to look at, as a trajectory from Sample Trajectory or DDIM Invert.",
                ),
                io.Latent.Input(
                    "latent_image",
                    optional=True,
                    tooltip="In place of a trajectory: a picture, or a latent that is already noisy.",
                ),
                io.Sigmas.Input(
                    "sigmas", optional=True, tooltip="With latent_image: the schedule whose steps `step` counts."
                ),
                io.Noise.Input(
                    "noise",
                    optional=True,
                    tooltip="With latent_image: the noise to add to the picture. Without it, the latent must already be as noisy as the step.",
                ),
                io.Boolean.Input(
                    "every_step",
                    default=False,
                    optional=True,
                    tooltip="Also shows on the node, step by step, who draws where, with the guider's windows. Evaluates the models at "
                    "every step.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask", tooltip="White where the expert draws, at the size of the picture."
                ),
                io.Image.Output(
                    display_name="heatmap",
                    tooltip="Saliency as colours: the general model and each expert, side by side.",
                ),
            ],
            **RESENDS_RESULT,
        )

    @classmethod
    def execute(
        cls, guider, step, expert, trajectory=None, latent_image=None, sigmas=None, noise=None, every_step=False
    ) -> io.NodeOutput:
        if not isinstance(guider, FusionGuider):
            raise ValueError(
                f"guider: expected a Saliency Fusion Guider or Subject Fusion Guider, got {type(guider).__name__}. Connect one of these."
            )
        if expert > len(guider.experts):
            known = len(guider.experts)
            raise ValueError(f"expert: expected 1 to {known}, the guider's experts, got {expert}. Choose one of them.")
        beside = [
            name
            for name, value in (("latent_image", latent_image), ("sigmas", sigmas), ("noise", noise))
            if value is not None
        ]
        if trajectory is not None and beside:
            raise ValueError(
                f"trajectory: expected nothing else to look at, got {', '.join(beside)} too. Disconnect one of the two."
            )
        if trajectory is not None:
            looked, socket = along(guider, trajectory), "trajectory"
        elif latent_image is not None and sigmas is not None:
            looked, socket = under_noise(guider, latent_image, noise, sigmas), "sigmas"
        else:
            raise ValueError(
                "trajectory: expected one, or latent_image and sigmas, got neither. Connect what to look at."
            )
        looked.require_step(step, socket)
        decision = decide(guider, looked, step)
        frames = temporary_frames(look_at_every_step(guider, looked) if every_step else [], cls)
        mask = mask_of(guider, decision, expert - 1)
        share = f"expert {expert}: {100 * float(mask.mean()):.1f} % of the picture"
        return io.NodeOutput(mask, heatmap(saliency_of(guider, decision), None), ui={**result(share), **frames})


NODES = [SaliencyFusionGuider, FusionExpert, SubjectFusion, SaliencyMap]
