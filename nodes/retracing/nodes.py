from __future__ import annotations

from comfy_api.latest import io

from ..diffusion.sockets import TrajectoryIO
from ..diffusion.source_run import exact_retracing


class ExactRetracing(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_ExactRetracing",
            display_name="Exact Retracing",
            category="palimpsest/inversion",
            description="Makes a sampler follow a ddim inversion back exactly, at one model call per step. With the inversion's "
            "prompts and guidance, the picture is reconstructed up to rounding.",
            search_aliases=[
                "aligned evaluation",
                "reconstruct",
                "ddim inversion",
                "exact inversion",
                "direct inversion",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The kind of model that the trajectory was made with."),
                TrajectoryIO.Input(
                    "trajectory",
                    tooltip="From DDIM Invert with the method ddim. The sampler must use the same scheduler, steps and denoise.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Connect to a sampler or guider with euler or ddim, and start from the noise or latent of the inversion.",
                )
            ],
        )

    @classmethod
    def execute(cls, model, trajectory) -> io.NodeOutput:
        return io.NodeOutput(exact_retracing(model, trajectory))


NODES = [ExactRetracing]
