import logging

import comfy.model_management
import comfy.sample
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..diffusion.conditioning import is_guidance_distilled
from ..diffusion.schedule import require_whole_picture, schedule_mismatch
from ..diffusion.sockets import TrajectoryIO
from ..diffusion.trajectory import Trajectory
from ..display.feedback import RESENDS_RESULT, result, temporary_frames
from ..files.prompt_values import left_out_of
from ..files.saved_files import fingerprint, invalid_choice, next_file, resolve, saved_files, size_line
from .ddim import METHODS, convergence_report, invert, rounding
from .noise import start_step, trajectory_latent, trajectory_noise
from .preview import preview_frames, preview_steps, strip
from .recording import sample_trajectory
from .trajectory_io import SUFFIX, load_trajectory, save_trajectory

log = logging.getLogger("palimpsest")

LATENT_TOOLTIP = (
    "The same start as a latent, for KSampler (Advanced) with add_noise disabled. The noise is already in it: a plain KSampler would add noise a "
    "second time and give a bad picture. A noise mask of the picture is not passed on."
)
CFG_TOOLTIP = (
    "The guidance (cfg) of the inversion. 1 reads no negative and suits guidance-distilled models such as Flux. Otherwise each call evaluates both "
    "prompts: sample with the same cfg and prompts to reconstruct the picture. At a high cfg use ddim with Exact Retracing."
)
CATEGORY = "palimpsest/inversion"
TRAJECTORY_TOOLTIP = "The path from noise to the picture: one latent for each step. The editing nodes read it. Save it to edit the picture again later."


class DDIMInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_DDIMInvert",
            display_name="DDIM Invert",
            category=CATEGORY,
            description=(
                "Inverts a picture: finds the noise, and every latent on the way to it, from which sampling with the same sigmas reconstructs the "
                "picture. DDIM inversion (2010.02502)."
            ),
            search_aliases=["ddim inversion", "unsampler", "invert image", "noise inversion", "null-text", "renoise"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model for the inversion. LoRAs and ControlNets work as in sampling."
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="What the picture shows. Leave the text empty for Plug-and-Play; describe the picture for Prompt-to-Prompt.",
                ),
                io.Latent.Input("latent_image", tooltip="The picture to invert, from VAE Encode. Any size, any batch."),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The sampler's schedule, as a scheduler node gives it. Do not flip it. ddim_uniform with 50 "
                    "steps is a good choice.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="fixed_point",
                    tooltip=(
                        "fixed_point: solves each step until sampling follows the path back exactly; up to `iterations` model calls per step on "
                        "average. ddim: one call per step, approximate, as in null-text inversion and pnp-diffusers. euler: one call per step at the "
                        "lower noise level, as in the first Plug-and-Play code."
                    ),
                ),
                io.Int.Input(
                    "iterations",
                    default=5,
                    min=1,
                    max=50,
                    tooltip="Used by fixed_point only: the most model calls per step, on average. Steps that converge early use fewer. From 4 "
                    "upwards, difficult steps near the picture may use the calls that other steps saved.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    optional=True,
                    tooltip=CFG_TOOLTIP,
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The sampler's negative prompt, often an empty one. Needed if cfg is not 1; not read at cfg 1.",
                ),
            ],
            outputs=[
                TrajectoryIO.Output("trajectory", tooltip=TRAJECTORY_TOOLTIP),
                io.Noise.Output(
                    "noise",
                    tooltip="For SamplerCustomAdvanced with the same sigmas and the sampler euler: sampling starts exactly where the path starts. To "
                    "edit only inside a mask, connect the picture's masked latent to the sampler's latent_image.",
                ),
                io.Latent.Output("latent", display_name="noised_latent", tooltip=LATENT_TOOLTIP),
                io.Sigmas.Output("sigmas", tooltip="The input sigmas, unchanged. Connect them to the sampler."),
            ],
            **RESENDS_RESULT,
        )

    @classmethod
    def execute(
        cls, model, positive, latent_image, sigmas, method, iterations, cfg=1.0, negative=None
    ) -> io.NodeOutput:
        trajectory = invert(model, positive, latent_image["samples"], sigmas, method, iterations, negative, cfg)
        report, converged = convergence_report(trajectory, rounding(model.model))
        if not converged:
            log.warning("DDIM Invert: %s", report)
        # Outside its noise_mask, core would keep this latent as if it were the picture.
        latent = {key: value for key, value in latent_image.items() if key != "noise_mask"}
        latent["samples"] = trajectory_latent(model, trajectory)
        found = result(report, *_guidance(trajectory, model))
        return io.NodeOutput(trajectory, trajectory_noise(model, trajectory), latent, sigmas, ui=found)


class SampleTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_SampleTrajectory",
            display_name="Sample Trajectory",
            category=CATEGORY,
            description="Samples like SamplerCustomAdvanced and records the latent of every step, so that a generated picture can be edited in the "
            "same way as an inverted one.",
            search_aliases=["record sampling", "sampler custom advanced", "trajectory from noise"],
            inputs=[
                io.Noise.Input("noise", tooltip="The noise to start from."),
                io.Guider.Input(
                    "guider",
                    tooltip="Model, prompts and guidance. Its positive prompt becomes the trajectory's source prompt.",
                ),
                io.Sampler.Input("sampler", tooltip="A sampler that adds no noise: euler (DDIM), heun, dpmpp_2m."),
                io.Sigmas.Input("sigmas", tooltip="The whole schedule, down to 0. Later edits must use the same one."),
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent of the size you want, or the latent of a picture."
                ),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="The sampled latent, the same as SamplerCustomAdvanced would give."),
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
            description="Gives a sampler the noise, latent and sigmas to start from on a trajectory. For a trajectory that was loaded or recorded, or "
            "to start later than its first step.",
            search_aliases=["trajectory noise", "inverted noise"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample."),
                TrajectoryIO.Input("trajectory", tooltip="A trajectory that was made with this kind of model."),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="The sampler's schedule, if it differs from the trajectory's: a part of it, such as the low part of Split Sigmas, or "
                    "fewer steps (for example 20 steps of a 100-step inversion). It must start at a noise level of the trajectory.",
                ),
            ],
            outputs=[
                io.Noise.Output("noise", tooltip="For SamplerCustomAdvanced, together with the sigmas of this node."),
                io.Latent.Output("latent", display_name="noised_latent", tooltip=LATENT_TOOLTIP),
                io.Sigmas.Output(
                    "sigmas", tooltip="The connected sigmas. If none are connected, those of the trajectory."
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
            description="Saves a trajectory to the output folder as one safetensors file. Invert a picture once, then edit it as often as you like.",
            search_aliases=["export trajectory", "save inversion"],
            inputs=[
                TrajectoryIO.Input("trajectory", tooltip="The trajectory to save."),
                io.String.Input(
                    "filename_prefix",
                    default="trajectories/palimpsest",
                    tooltip="Folder and file name inside the output folder. A counter is added to the name.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trajectory, filename_prefix) -> io.NodeOutput:
        path, named = next_file(filename_prefix, SUFFIX)
        save_trajectory(trajectory, path)
        return io.NodeOutput(ui={"trajectories": [named], **result(size_line(path), *_lacks(trajectory))})


class LoadTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_LoadTrajectory",
            display_name="Load Trajectory",
            category=CATEGORY,
            description="Loads a trajectory that Save Trajectory wrote, from the output or the input folder.",
            search_aliases=["import trajectory", "open inversion"],
            inputs=[
                io.Combo.Input(
                    "trajectory_file",
                    options=saved_files(SUFFIX),
                    tooltip="A file in the output or input folder. Press R to refresh the list after saving a new one.",
                ),
            ],
            outputs=[TrajectoryIO.Output("trajectory", tooltip=TRAJECTORY_TOOLTIP)],
            **RESENDS_RESULT,
        )

    @classmethod
    def validate_inputs(cls, trajectory_file) -> bool | str:
        return invalid_choice("trajectory_file", trajectory_file, SUFFIX) or True

    @classmethod
    def fingerprint_inputs(cls, trajectory_file) -> str:
        return fingerprint(resolve("trajectory_file", trajectory_file, SUFFIX))

    @classmethod
    def execute(cls, trajectory_file) -> io.NodeOutput:
        trajectory = load_trajectory(resolve("trajectory_file", trajectory_file, SUFFIX))
        return io.NodeOutput(trajectory, ui=result(*_guidance(trajectory), *_lacks(trajectory)))


def _guidance(trajectory: Trajectory, inverted_by: ModelPatcher | None = None) -> list[str]:
    lines = []
    if inverted_by is not None and is_guidance_distilled(inverted_by):
        lines.append("Inverted at FluxGuidance 1: reconstruct it with this guidance")
    if trajectory.cfg is None:
        lines.append("Made by a guider with its own guidance: reconstruct it with that guider")
    elif trajectory.cfg != 1.0:
        lines.append(f"Made at cfg {trajectory.cfg:g}: reconstruct it with this cfg and its negative prompt")
    return lines


def _lacks(trajectory: Trajectory) -> list[str]:
    names = left_out_of(trajectory.positive)
    return [f"the file has no {name}: connect a prompt with it to `source` of the edit" for name in names]


class PreviewTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_PreviewTrajectory",
            display_name="Preview Trajectory",
            category=CATEGORY,
            description="Shows the path from noise to picture as a strip of pictures, and step by step on the node.",
            search_aliases=["trajectory strip", "inversion preview"],
            inputs=[
                TrajectoryIO.Input("trajectory", tooltip="The trajectory to look at."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the frames. Without a VAE the node shows a rough preview from the latent's colours, at no cost.",
                ),
                io.Int.Input(
                    "frames",
                    default=8,
                    min=2,
                    max=100,
                    tooltip="How many frames the strip has, evenly spaced over the steps.",
                ),
            ],
            outputs=[
                io.Image.Output("image", tooltip="One strip for each picture of the batch, with the noise on the left.")
            ],
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


NODES = [
    DDIMInvert,
    SampleTrajectory,
    TrajectoryStart,
    SaveTrajectory,
    LoadTrajectory,
    PreviewTrajectory,
]
