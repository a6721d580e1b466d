from comfy_api.latest import io, ui

from ...display.feedback import FRAMES


class PreviewMorph(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_PreviewMorph",
            display_name="Preview Morph",
            category="palimpsest/unclip",
            description="Plays the pictures of a morph on the node, or shows them one at a time.",
            search_aliases=["morph", "play frames", "animation preview", "film"],
            inputs=[io.Image.Input("images", tooltip="The frames in order, as a batch or as a list of pictures.")],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images) -> io.NodeOutput:
        saved = [entry for batch in images for entry in ui.PreviewImage(batch, cls=cls).as_dict()["images"]]
        frames = [
            {"picture": entry["filename"], "label": f"frame {number} of {len(saved)}"}
            for number, entry in enumerate(saved, 1)
        ]
        return io.NodeOutput(ui={"images": saved, FRAMES: frames})


NODES = [PreviewMorph]
