from comfy_api.latest import io

from .guider import FLOW_EDIT, VELOCITY_MASK, FlowEditGuider, Method

CATEGORY = "palimpsest/flow_edit"


class FlowEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_FlowEditGuider",
            display_name="Flow Edit Guider",
            category=CATEGORY,
            description=(
                "Edits a picture with two prompts, one that describes it and one that describes what it should become, without "
                "inverting it first. Made for flow models: Flux, SD3.5, Qwen-Image, Z-Image, Wan. FlowEdit (2412.08629), "
                "Uni-Edit (2504.13109)."
            ),
            search_aliases=["flowedit", "flow edit", "uniedit", "inversion-free", "edit by words", "image to image"],
            inputs=[
                io.Model.Input("model", tooltip="A flow model. SD1.x and SDXL run too; they were not made for it."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="What the picture should become. With Flux, set its guidance in FluxGuidance (5.5 is published).",
                ),
                io.Conditioning.Input("negative", tooltip="Negative prompt of `positive`. Not read at cfg 1."),
                io.Conditioning.Input(
                    "source",
                    tooltip="What the picture shows. With Flux, set its guidance in FluxGuidance (1.5 is published).",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance towards `positive`. 1 for Flux and other guidance-distilled models, 13.5 is published for SD3.",
                ),
                io.Float.Input(
                    "cfg_source",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance towards `source`. 1 for Flux and other guidance-distilled models, 3.5 is published for SD3.",
                ),
                io.DynamicCombo.Input(
                    "method",
                    options=[
                        io.DynamicCombo.Option(
                            FLOW_EDIT,
                            [
                                io.Float.Input(
                                    "strength",
                                    default=0.65,
                                    min=0.0,
                                    max=1.0,
                                    step=0.01,
                                    tooltip="Share of the steps that are taken, counted from the picture (n_max). Higher changes more. "
                                    "Published: 0.66 for SD3, 0.85 for Flux. 0 returns the picture.",
                                ),
                                io.Int.Input(
                                    "averages",
                                    default=1,
                                    min=1,
                                    max=16,
                                    tooltip="How many noises each step is averaged over (n_avg). More is calmer, and costs as many times more.",
                                ),
                            ],
                        ),
                        io.DynamicCombo.Option(
                            VELOCITY_MASK,
                            [
                                io.Float.Input(
                                    "omega",
                                    default=5.0,
                                    min=0.0,
                                    max=50.0,
                                    step=0.1,
                                    tooltip="How hard the places where both prompts differ are pulled towards `positive`.",
                                ),
                            ],
                        ),
                    ],
                    tooltip=(
                        "flow_edit: starts at the picture; connect it to the sampler's latent_image, any noise. "
                        "velocity_mask: starts at an inverted picture; connect DDIM Invert's noise, or Trajectory Start's for a later start."
                    ),
                ),
                io.Conditioning.Input(
                    "source_negative",
                    optional=True,
                    tooltip="Negative prompt of `source`. Unconnected: the same as `negative`.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the picture may change, for example from Attention Mask. Unconnected: everywhere.",
                ),
            ],
            outputs=[
                io.Guider.Output(
                    display_name="guider",
                    tooltip="For SamplerCustomAdvanced, with euler and the schedule of the model.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, source, cfg, cfg_source, method, source_negative=None, mask=None
    ) -> io.NodeOutput:
        options = {name: value for name, value in method.items() if name != "method"}
        return io.NodeOutput(
            FlowEditGuider(
                model,
                (positive, negative),
                (source, negative if source_negative is None else source_negative),
                cfg,
                cfg_source,
                Method(method["method"], **options),
                mask,
            )
        )


NODES = [FlowEdit]
