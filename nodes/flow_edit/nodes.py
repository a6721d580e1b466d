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
                "Edits a picture with two prompts: one says what it shows now, the other what it should become. The picture is not "
                "inverted first. Made for flow models: Flux, SD3.5, Qwen-Image, Z-Image, Wan. FlowEdit (2412.08629), Uni-Edit "
                "(2504.13109)."
            ),
            search_aliases=["flowedit", "flow edit", "uniedit", "inversion-free", "edit by words", "image to image"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A flow model, such as Flux or SD3.5. SD1.x and SDXL run too, but the method was not made for them.",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="What the picture should become. With Flux, set its guidance with a FluxGuidance node (published value: "
                    "5.5).",
                ),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt for `positive`. It is not used when cfg is 1."
                ),
                io.Conditioning.Input(
                    "source",
                    tooltip="What the picture shows now. With Flux, set its guidance with a FluxGuidance node (published value: 1.5).",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance towards `positive`. Use 1 for Flux and other guidance-distilled models. The published value for "
                    "SD3 is 13.5.",
                ),
                io.Float.Input(
                    "cfg_source",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance towards `source`. Use 1 for Flux and other guidance-distilled models. The published value for SD3 "
                    "is 3.5.",
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
                                    tooltip="The fraction of the steps that is sampled (n_max): 0.65 skips the first, noisiest 35 %. "
                                    "Higher values change more. 0 returns the picture unchanged. Published values: 0.66 for SD3, 0.85 "
                                    "for Flux.",
                                ),
                                io.Int.Input(
                                    "averages",
                                    default=1,
                                    min=1,
                                    max=16,
                                    tooltip="How many random noises each step is averaged over (n_avg). More give a steadier result and "
                                    "cost that many times more.",
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
                                    tooltip="How strongly the areas where the two prompts differ are pulled towards `positive`.",
                                ),
                            ],
                        ),
                    ],
                    tooltip=(
                        "flow_edit: starts from the picture; connect its latent to the sampler's latent_image, with any noise. "
                        "velocity_mask: starts from an inverted picture; connect the noise of DDIM Invert, or of Trajectory Start for a "
                        "later start."
                    ),
                ),
                io.Conditioning.Input(
                    "source_negative",
                    optional=True,
                    tooltip="The negative prompt for `source`. If nothing is connected, `negative` is used.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the picture may change, for example from Attention Mask. Without a mask, all of the picture "
                    "may change.",
                ),
            ],
            outputs=[
                io.Guider.Output(
                    display_name="guider",
                    tooltip="Connect to SamplerCustomAdvanced, with the sampler euler and the model's own schedule.",
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
