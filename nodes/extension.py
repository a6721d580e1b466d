from comfy_api.latest import ComfyExtension, io

from .embeddings.nodes import NODES as EMBEDDINGS
from .inversion.nodes import NODES as INVERSION
from .null_text.nodes import NODES as NULL_TEXT
from .plug_and_play.nodes import NODES as PLUG_AND_PLAY
from .prompt_to_prompt.nodes import NODES as PROMPT_TO_PROMPT
from .saliency_fusion.nodes import NODES as SALIENCY_FUSION
from .subject.nodes import NODES as SUBJECT
from .unclip_decoder.nodes import NODES as UNCLIP_DECODER
from .unclip_prior.nodes import NODES as UNCLIP_PRIOR


class PalimpsestExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            *EMBEDDINGS,
            *INVERSION,
            *NULL_TEXT,
            *PLUG_AND_PLAY,
            *PROMPT_TO_PROMPT,
            *SALIENCY_FUSION,
            *SUBJECT,
            *UNCLIP_DECODER,
            *UNCLIP_PRIOR,
        ]
