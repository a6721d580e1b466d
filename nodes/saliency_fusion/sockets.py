"""The slice's own socket type."""

from comfy_api.latest import io

from .guider import Expert


@io.comfytype(io_type="PAL_FUSION_EXPERT")
class FusionExpertIO(io.ComfyTypeIO):
    Type = Expert
