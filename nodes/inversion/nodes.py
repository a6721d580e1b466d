import logging

import comfy.model_management
import comfy.sample
import comfy.utils
import torch
from comfy_api.latest import io, ui

from ..diffusion.schedule import require_whole_picture, schedule_mismatch
from ..diffusion.sockets import TrajectoryIO
from ..display.feedback import RESENDS_RESULT, result, temporary_frames, temporary_pictures
from ..files.saved_files import fingerprint, invalid_choice, next_file, resolve, saved_files
from . import comparison
from .ddim import METHODS, convergence_report, invert, rounding
from .noise import start_step, trajectory_latent, trajectory_noise
from .preview import preview_frames, preview_steps, strip
from .recording import sample_trajectory
from .trajectory_io import SUFFIX, load_trajectory, save_trajectory

log = logging.getLogger("palimpsest")

LATENT_TOOLTIP = (
    "The same start as a latent. It holds all its noise already: for KSampler (Advanced) with add_noise disabled. A plain KSampler "
    "adds noise once more and cannot sample from it. A noise mask of the picture is not passed on."
)
CATEGORY = "palimpsest/inversion"
TRAJECTORY_TOOLTIP = (
    "The path from noise to the picture: one latent for each step. Editing nodes read it; save it to edit again later."
)


class DDIMInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_DDIMInvert",
            display_name="DDIM Invert",
            category=CATEGORY,
            description=(
                "Opens a picture in the model: finds the noise, and the whole path to it, that sampling with the same sigmas "
                "turns back into the picture (DDIM inversion, 2010.02502)."
            ),
            search_aliases=["ddim inversion", "unsampler", "invert image", "noise inversion", "null-text", "renoise"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to open the picture in. LoRAs and ControlNets apply as in sampling."
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="What the picture shows. Leave the text empty for Plug-and-Play, describe the picture for prompt-to-prompt.",
                ),
                io.Latent.Input("latent_image", tooltip="The picture, from VAE Encode. Any size, any batch."),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The schedule the sampler will use, as a scheduler gives it (do not flip it). ddim_uniform with 50 steps is a good one.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="fixed_point",
                    tooltip=(
                        "fixed_point: solves each step so that sampling retraces the path exactly; up to `iterations` model calls a step on average. "
                        "ddim: one call a step, approximate, as null-text inversion and pnp-diffusers do. "
                        "euler: one call a step at the lower noise level, as the first Plug-and-Play code did."
                    ),
                ),
                io.Int.Input(
                    "iterations",
                    default=5,
                    min=1,
                    max=50,
                    tooltip="Model calls a step on average at most, for fixed_point only. Steps that have converged stop earlier; "
                    "from 4 on, the hard steps next to the picture may use what others leave.",
                ),
            ],
            outputs=[
                TrajectoryIO.Output("trajectory", tooltip=TRAJECTORY_TOOLTIP),
                io.Noise.Output(
                    "noise",
                    tooltip="For SamplerCustomAdvanced with the same sigmas and euler: it starts exactly where the path starts. "
                    "For an edit inside a mask, connect the picture's masked latent there as latent_image.",
                ),
                io.Latent.Output("latent", display_name="noised_latent", tooltip=LATENT_TOOLTIP),
                io.Sigmas.Output("sigmas", tooltip="The schedule as it came in, for the sampler."),
            ],
            **RESENDS_RESULT,
        )

    @classmethod
    def execute(cls, model, positive, latent_image, sigmas, method, iterations) -> io.NodeOutput:
        trajectory = invert(model, positive, latent_image["samples"], sigmas, method, iterations)
        report, converged = convergence_report(trajectory, rounding(model.model))
        if not converged:
            log.warning("DDIM Invert: %s", report)
        # Outside its noise_mask, core would keep this latent as if it were the picture.
        latent = {key: value for key, value in latent_image.items() if key != "noise_mask"}
        latent["samples"] = trajectory_latent(model, trajectory)
        found = result(report, "noised_latent: use add_noise disable")
        return io.NodeOutput(trajectory, trajectory_noise(model, trajectory), latent, sigmas, ui=found)


class SampleTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_SampleTrajectory",
            display_name="Sample Trajectory",
            category=CATEGORY,
            description="Samples like SamplerCustomAdvanced and keeps the whole path, so that a generated picture can be edited like an inverted one.",
            search_aliases=["record sampling", "sampler custom advanced", "trajectory from noise"],
            inputs=[
                io.Noise.Input("noise", tooltip="The noise to start from."),
                io.Guider.Input(
                    "guider",
                    tooltip="Model, prompts and guidance. Its positive prompt becomes the trajectory's source prompt.",
                ),
                io.Sampler.Input("sampler", tooltip="A sampler that follows one deterministic path. euler is DDIM."),
                io.Sigmas.Input("sigmas", tooltip="The schedule, down to 0. Later edits use the same one."),
                io.Latent.Input("latent_image", tooltip="An empty latent of the size to make, or a picture's latent."),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="The sampled latent, the same as SamplerCustomAdvanced gives."),
                TrajectoryIO.Output("trajectory", tooltip=TRAJECTORY_TOOLTIP),
            ],
            **RESENDS_RESULT,
        )

    @classmethod
    def execute(cls, noise, guider, sampler, sigmas, latent_image) -> io.NodeOutput:
        require_whole_picture(guider.original_conds)
        mismatch = schedule_mismatch(guider.original_conds.get("negative", []), sigmas, guider.cfg)
        if mismatch is not None:
            log.warning("Sample Trajectory: %s", mismatch)
        samples = comfy.sample.fix_empty_latent_channels(
            guider.model_patcher, latent_image["samples"], latent_image.get("downscale_ratio_spacial")
        )
        latent = {**latent_image, "samples": samples}
        latent.pop("downscale_ratio_spacial", None)
        disable_pbar = not comfy.utils.PROGRESS_BAR_ENABLED
        samples, trajectory = sample_trajectory(guider, noise, sampler, sigmas, latent, disable_pbar)
        latent["samples"] = samples.to(comfy.model_management.intermediate_device())
        return io.NodeOutput(latent, trajectory, ui=result(*[mismatch] if mismatch else []))


class TrajectoryStart(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_TrajectoryStart",
            display_name="Trajectory Start",
            category=CATEGORY,
            description="Where a sampler starts on a trajectory, for one that was loaded or recorded, or to start at an inner level.",
            search_aliases=["trajectory noise", "inverted noise"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample."),
                TrajectoryIO.Input("trajectory", tooltip="A trajectory of that model."),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="The schedule the sampler will use, if it is not the trajectory's own: a part of it, such as the low part of "
                    "Split Sigmas, or fewer steps (invert 100, edit with 20). It must start at a level of the trajectory.",
                ),
            ],
            outputs=[
                io.Noise.Output("noise", tooltip="For SamplerCustomAdvanced with the sigmas of this node."),
                io.Latent.Output("latent", display_name="noised_latent", tooltip=LATENT_TOOLTIP),
                io.Sigmas.Output(
                    "sigmas", tooltip="The sigmas that were connected; without any, the trajectory's own."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, trajectory, sigmas=None) -> io.NodeOutput:
        trajectory.model.require_match(model)
        step = 0 if sigmas is None else start_step(trajectory, sigmas)
        latent = {"samples": trajectory_latent(model, trajectory, step)}
        noise = trajectory_noise(model, trajectory, step)
        return io.NodeOutput(noise, latent, trajectory.sigmas if sigmas is None else sigmas)


class SaveTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_SaveTrajectory",
            display_name="Save Trajectory",
            category=CATEGORY,
            description="Writes a trajectory to the output folder as one safetensors file, so that a picture is inverted once and edited many times.",
            search_aliases=["export trajectory", "save inversion"],
            inputs=[
                TrajectoryIO.Input("trajectory", tooltip="The trajectory to keep."),
                io.String.Input(
                    "filename_prefix",
                    default="trajectories/palimpsest",
                    tooltip="Folder and name below the output folder; a counter is added.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trajectory, filename_prefix) -> io.NodeOutput:
        path, named = next_file(filename_prefix, SUFFIX)
        save_trajectory(trajectory, path)
        return io.NodeOutput(ui={"trajectories": [named]})


class LoadTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_LoadTrajectory",
            display_name="Load Trajectory",
            category=CATEGORY,
            description="Reads a trajectory that Save Trajectory wrote, from the output or the input folder.",
            search_aliases=["import trajectory", "open inversion"],
            inputs=[
                io.Combo.Input(
                    "trajectory_file",
                    options=saved_files(SUFFIX),
                    tooltip="A file of the output or input folder. Refresh the list (R) after saving a new one.",
                ),
            ],
            outputs=[TrajectoryIO.Output("trajectory", tooltip=TRAJECTORY_TOOLTIP)],
        )

    @classmethod
    def validate_inputs(cls, trajectory_file) -> bool | str:
        return invalid_choice("trajectory_file", trajectory_file, SUFFIX) or True

    @classmethod
    def fingerprint_inputs(cls, trajectory_file) -> str:
        return fingerprint(resolve("trajectory_file", trajectory_file, SUFFIX))

    @classmethod
    def execute(cls, trajectory_file) -> io.NodeOutput:
        return io.NodeOutput(load_trajectory(resolve("trajectory_file", trajectory_file, SUFFIX)))


class PreviewTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_PreviewTrajectory",
            display_name="Preview Trajectory",
            category=CATEGORY,
            description="Shows the path from noise to picture as a strip.",
            search_aliases=["trajectory strip", "inversion preview"],
            inputs=[
                TrajectoryIO.Input("trajectory", tooltip="The trajectory to look at."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the frames. Without it the latent's own colours are shown, which costs nothing.",
                ),
                io.Int.Input(
                    "frames", default=8, min=2, max=100, tooltip="Pictures in the strip, evenly spaced over the steps."
                ),
            ],
            outputs=[io.Image.Output("image", tooltip="One strip for each picture of the batch, noise on the left.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trajectory, frames, vae=None) -> io.NodeOutput:
        steps = preview_steps(trajectory, frames)
        states = preview_frames(trajectory, steps, vae.decode if vae is not None else None)
        labels = [f"step {step} of {trajectory.steps}, sigma {trajectory.sigmas[step]:.3g}" for step in steps.tolist()]
        # A batch stands side by side in each frame.
        frames = temporary_frames(zip(torch.cat(states.unbind(0), dim=2), labels, strict=True), cls)
        image = strip(states)
        return io.NodeOutput(image, ui={**ui.PreviewImage(image, cls=cls).as_dict(), **frames})


class CompareImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_CompareImages",
            display_name="Compare Images",
            category=CATEGORY,
            description="Measures how close two pictures are, and where they differ.",
            search_aliases=["psnr", "ssim", "image difference", "reconstruction error"],
            inputs=[
                io.Image.Input("image_a", tooltip="A picture."),
                io.Image.Input("image_b", tooltip="The picture to compare with, of the same size."),
                io.Float.Input(
                    "gain",
                    default=4.0,
                    min=1.0,
                    max=100.0,
                    step=0.5,
                    tooltip="Brightens the picture of the error; the figures are not affected.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    "psnr", tooltip="Peak signal-to-noise ratio in dB; higher is closer, infinite when equal."
                ),
                io.Float.Output("ssim", tooltip="Structural similarity, 1 when equal."),
                io.Image.Output("error", tooltip="Absolute difference, brightened by gain."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image_a, image_b, gain) -> io.NodeOutput:
        a, b = comparison.match(image_a, image_b)
        psnr, ssim, error = comparison.psnr(a, b), comparison.ssim(a, b), comparison.error_image(a, b, gain)
        text = f"PSNR {psnr:.2f} dB   SSIM {ssim:.4f}"
        names = zip(temporary_pictures(a, cls), temporary_pictures(b, cls), strict=True)
        pairs = {"palimpsest_pairs": [{"a": before, "b": after} for before, after in names]}
        return io.NodeOutput(
            psnr, ssim, error, ui={**ui.PreviewImage(error, cls=cls).as_dict(), **pairs, **result(text)}
        )


NODES = [
    DDIMInvert,
    SampleTrajectory,
    TrajectoryStart,
    SaveTrajectory,
    LoadTrajectory,
    PreviewTrajectory,
    CompareImages,
]
