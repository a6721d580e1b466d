from comfy_api.latest import io

from ..diffusion.schedule import MADE_FOR
from ..diffusion.sockets import TrajectoryIO
from ..display.feedback import RESENDS_RESULT, result, show_progress
from ..files.prompt_values import left_out_of
from ..files.saved_files import fingerprint, invalid_choice, next_file, resolve, saved_files, size_line
from .conditioning_io import SUFFIX, load_conditioning, save_conditioning
from .optimize import METHODS, optimize
from .report import draw_report
from .solvers import CONSTANTS, Effort

CATEGORY = "palimpsest/null_text"


class NullTextOptimize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_NullTextOptimize",
            display_name="Null-Text Optimize",
            category=CATEGORY,
            description=(
                "Finds a negative prompt for every step so that sampling with guidance still reconstructs the inverted picture, which "
                "can then be edited by words at that guidance. Null-text inversion (Mokady 2022, arXiv 2211.09794)."
            ),
            search_aliases=["null text inversion", "negative prompt inversion", "npi", "nti", "edit real image"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The kind of model that the trajectory was made with. It must use classifier-free guidance, as SD1.x, "
                    "SD2.x, SDXL and SD3 do.",
                ),
                io.Conditioning.Input(
                    "negative",
                    tooltip="Where the search starts, usually an empty prompt. Its ControlNet, mask or area is kept.",
                ),
                TrajectoryIO.Input(
                    "trajectory",
                    tooltip="The inverted picture. The result is valid only for its schedule: sample with the same scheduler, steps and "
                    "denoise.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="The guidance (cfg) of the sampler. The result is valid only for this value.",
                ),
                io.Int.Input(
                    "inner_steps",
                    default=10,
                    min=1,
                    max=500,
                    tooltip="Used by null_text only: the most optimiser steps for each sampling step.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=1e-2,
                    min=1e-6,
                    max=1.0,
                    step=1e-4,
                    round=False,
                    tooltip="Used by null_text only: the learning rate of the Adam optimiser.",
                ),
                io.Float.Input(
                    "tolerance",
                    default=1e-5,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=False,
                    tooltip="A step is finished when its loss is below this value. With fast, a higher value stays closer to your own "
                    "negative prompt.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="negative_prompt",
                    tooltip="fast: moves from your negative prompt towards the source prompt, only as far as each step needs; no "
                    "gradients. null_text: the published optimisation, slowest, needs more memory. negative_prompt: uses the source "
                    "prompt as the negative prompt, at no cost.",
                ),
                io.Combo.Input(
                    "constants",
                    options=list(CONSTANTS),
                    default="code",
                    advanced=True,
                    tooltip="Used by null_text only. code: as in the published code, which lowers the learning rate and raises the "
                    "tolerance from step to step. paper: both stay fixed, as in the paper.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The source prompt, which describes the picture. If nothing is connected, the prompt that the picture was "
                    "inverted with is used.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="Connect to the negative input of any sampler or guider, with this cfg and the trajectory's schedule.",
                ),
                io.Image.Output(
                    display_name="report",
                    tooltip="A plot of the loss and the PSNR of each step, with the number of model calls.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            **RESENDS_RESULT,
        )

    @classmethod
    def execute(
        cls,
        model,
        negative,
        trajectory,
        cfg,
        inner_steps,
        learning_rate,
        tolerance,
        method,
        constants,
        positive=None,
    ) -> io.NodeOutput:
        def show(step: int, steps: int, psnr: float) -> None:
            show_progress(cls, f"step {step + 1} of {steps}: latent PSNR {psnr:.1f} dB")

        positive = trajectory.positive if positive is None else positive
        effort = Effort(inner_steps, learning_rate, tolerance, constants)
        optimised, course = optimize(model, positive, negative, trajectory, cfg, effort, method, show)
        found = [f"latent PSNR {course.psnr[-1]:.1f} dB, {course.evaluations}, for cfg {cfg:g}"] if course.psnr else []
        report = draw_report(course, f"{method}, cfg {cfg:g}, {trajectory.steps} steps")
        return io.NodeOutput(optimised, report, ui=result(*found))


class SaveConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_SaveConditioning",
            display_name="Save Conditioning",
            category=CATEGORY,
            description="Saves an encoded prompt to the output folder as one safetensors file, such as the negative of Null-Text "
            "Optimize, so that it has to be found only once.",
            search_aliases=["save null-text", "save negative", "save prompt", "export conditioning"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning", tooltip="The conditioning to save, with its areas, masks and time ranges."
                ),
                io.String.Input(
                    "filename_prefix",
                    default="conditionings/palimpsest",
                    tooltip="Folder and file name inside the output folder. A counter is added to the name.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, conditioning, filename_prefix) -> io.NodeOutput:
        path, named = next_file(filename_prefix, SUFFIX)
        save_conditioning(conditioning, path)
        return io.NodeOutput(ui={"conditionings": [named], **result(size_line(path), *_lacks(conditioning))})


class LoadConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAL_LoadConditioning",
            display_name="Load Conditioning",
            category=CATEGORY,
            description="Loads a conditioning that Save Conditioning wrote, from the output or the input folder.",
            search_aliases=["load null-text", "load negative", "load prompt", "import conditioning"],
            inputs=[
                io.Combo.Input(
                    "conditioning_file",
                    options=saved_files(SUFFIX),
                    tooltip="A file in the output or input folder. Press R to refresh the list after saving a new one.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip="The saved conditioning. A negative of Null-Text Optimize is valid only for its cfg and its schedule.",
                )
            ],
            **RESENDS_RESULT,
        )

    @classmethod
    def validate_inputs(cls, conditioning_file) -> bool | str:
        return invalid_choice("conditioning_file", conditioning_file, SUFFIX) or True

    @classmethod
    def fingerprint_inputs(cls, conditioning_file) -> str:
        return fingerprint(resolve("conditioning_file", conditioning_file, SUFFIX))

    @classmethod
    def execute(cls, conditioning_file) -> io.NodeOutput:
        conditioning = load_conditioning(resolve("conditioning_file", conditioning_file, SUFFIX))
        made_for = next((entry[1][MADE_FOR] for entry in conditioning if MADE_FOR in entry[1]), None)
        fits = [] if made_for is None else [f"for cfg {made_for['cfg']:g}, {len(made_for['sigmas']) - 1} steps"]
        return io.NodeOutput(conditioning, ui=result(*fits, *_lacks(conditioning)))


def _lacks(conditioning) -> list[str]:
    names = left_out_of(conditioning)
    return [f"the file has no {name}: apply it again after loading" for name in names]


NODES = [NullTextOptimize, SaveConditioning, LoadConditioning]
