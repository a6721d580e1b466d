"""The slice's own socket type."""

import torch
from comfy_api.latest import io


@io.comfytype(io_type="EMBEDS")
class IPAdapterEmbedsIO(io.ComfyTypeIO):
    """Image embeddings as a plain tensor, as the nodes of IPAdapter give and take them."""

    Type = torch.Tensor
