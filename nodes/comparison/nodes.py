from comfy_api.latest import io, ui

from ..display.feedback import result, temporary_pictures
from . import measures


class CompareImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_CompareImages",
            display_name="Compare Images",
            category="palimpsest/inversion",
            description="Measures how similar two pictures are, and shows where they differ.",
            search_aliases=["psnr", "ssim", "image difference", "reconstruction error"],
            inputs=[
                io.Image.Input("image_a", tooltip="The first picture."),
                io.Image.Input("image_b", tooltip="The picture to compare it with, of the same size."),
                io.Float.Input(
                    "gain",
                    default=4.0,
                    min=1.0,
                    max=100.0,
                    step=0.5,
                    tooltip="Makes the error picture brighter. PSNR and SSIM do not change.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    "psnr",
                    tooltip="Peak signal-to-noise ratio in dB. Higher means more similar; infinite for equal pictures.",
                ),
                io.Float.Output(
                    "ssim", tooltip="Structural similarity: 1 for equal pictures, lower for different ones."
                ),
                io.Image.Output("error", tooltip="The absolute difference of the two pictures, multiplied by gain."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image_a, image_b, gain) -> io.NodeOutput:
        a, b = measures.match(image_a, image_b)
        psnr, ssim, error = measures.psnr(a, b), measures.ssim(a, b), measures.error_image(a, b, gain)
        text = f"PSNR {psnr:.2f} dB   SSIM {ssim:.4f}"
        names = zip(temporary_pictures(a, cls), temporary_pictures(b, cls), strict=True)
        pairs = {"palimpsest_pairs": [{"a": before, "b": after} for before, after in names]}
        return io.NodeOutput(
            psnr, ssim, error, ui={**ui.PreviewImage(error, cls=cls).as_dict(), **pairs, **result(text)}
        )


NODES = [CompareImages]
