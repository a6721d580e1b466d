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
            description="Lets a sampler go back exactly the way a ddim inversion came, at one model call a step. At guidance 1 with the "
            "inversion's prompt the picture comes back to rounding.",
            search_aliases=[
                "aligned evaluation",
                "reconstruct",
                "ddim inversion",
                "exact inversion",
                "direct inversion",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The kind of model the trajectory was made with."),
                TrajectoryIO.Input(
                    "trajectory",
                    tooltip="From DDIM Invert with method ddim. Its steps must be the sampler's: same scheduler, steps and denoise.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Connect to a sampler or guider with euler or ddim, and start it from the inversion's noise or latent.",
                )
            ],
        )

    @classmethod
    def execute(cls, model, trajectory) -> io.NodeOutput:
        return io.NodeOutput(exact_retracing(model, trajectory))


NODES = [ExactRetracing]
