"""The pack's socket types. Imported by nodes.py modules only: algorithms know the plain classes behind them."""

import torch
from comfy_api.latest import io

from .diffusion.trajectory import Trajectory
from .plug_and_play.features import Features
from .prompt_to_prompt.prompt_edit import PromptEdit
from .saliency_fusion.guider import Expert
from .subject.encoder import SubjectEncoder
from .unclip_decoder.loading import Upsampler
from .unclip_prior.prior import Prior


@io.comfytype(io_type="PAL_TRAJECTORY")
class TrajectoryIO(io.ComfyTypeIO):
    Type = Trajectory


@io.comfytype(io_type="PAL_FEATURES")
class FeaturesIO(io.ComfyTypeIO):
    Type = Features


@io.comfytype(io_type="PAL_PROMPT_EDIT")
class PromptEditIO(io.ComfyTypeIO):
    Type = PromptEdit


@io.comfytype(io_type="PAL_FUSION_EXPERT")
class FusionExpertIO(io.ComfyTypeIO):
    Type = Expert


@io.comfytype(io_type="PAL_SUBJECT_ENCODER")
class SubjectEncoderIO(io.ComfyTypeIO):
    Type = SubjectEncoder


@io.comfytype(io_type="PAL_UPSAMPLER")
class UpsamplerIO(io.ComfyTypeIO):
    Type = Upsampler


@io.comfytype(io_type="PAL_PRIOR")
class PriorIO(io.ComfyTypeIO):
    Type = Prior


@io.comfytype(io_type="EMBEDS")
class IPAdapterEmbedsIO(io.ComfyTypeIO):
    """What IPAdapter's encoder nodes give: image embeddings as a plain tensor."""

    Type = torch.Tensor
