"""The socket type that several slices share."""

from comfy_api.latest import io

from .trajectory import Trajectory


@io.comfytype(io_type="PAL_TRAJECTORY")
class TrajectoryIO(io.ComfyTypeIO):
    Type = Trajectory
