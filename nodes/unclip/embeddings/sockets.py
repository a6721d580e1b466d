"""The slice's own socket type."""

import torch
from comfy_api.latest import io


@io.comfytype(io_type="EMBEDS")
class IPAdapterEmbedsIO(io.ComfyTypeIO):
    """What IPAdapter's encoder nodes give: image embeddings as a plain tensor."""

    Type = torch.Tensor
