"""The ablations of 2211.09794 on the toy model: constants, one embedding for all steps, random pivots, guided inversion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import comfy.samplers
import torch
from lab.evidence.world import World, psnr_each
from lab.toy.scenes import Scene, caption
from palimpsest.nodes.diffusion.conditioning import Conditioning
from palimpsest.nodes.diffusion.evaluation import Inside, run_inside
from palimpsest.nodes.diffusion.trajectory import Trajectory
from palimpsest.nodes.inversion.ddim import Climb, climb
from palimpsest.nodes.inversion.noise import trajectory_noise
from palimpsest.nodes.null_text.gradients import Denoiser, differentiable
from palimpsest.nodes.null_text.optimize import optimize
from palimpsest.nodes.null_text.solvers import Effort, Step
from torch import Tensor
from tqdm import tqdm

ROWS = 6  # scenes
INVERSION_GUIDANCE = (2.0, 7.5)
GLOBAL_PASSES = 12  # over all steps, for the one embedding
GLOBAL_RATE = 1e-2

ABLATIONS = {
    "code": "nothing changed",
    "paper": "the constants of the paper instead of those of its code",
    "ddim": "pivot: inverted by `ddim` instead of `fixed_point`",
    "global": "one null embedding for all steps",
    "random": "pivot: the picture with the same random noise at every noise level",
    **{f"w {w}": f"pivot: inverted by `ddim` at guidance {w:g}" for w in INVERSION_GUIDANCE},
}


@dataclass(frozen=True)
class Ablation:
    psnrs: list[float]  # dB of each picture
    to_pivot: float  # dB, of the latent
    evaluations: int


def ablate(world: World, scenes: list[Scene], images: Tensor, steps: int, cfg: float) -> dict[str, Ablation]:
    sigmas, empty = world.sigmas(steps), world.prompts([""])
    latent, positive = world.encode(images), world.prompts([caption(scene) for scene in scenes])
    exact = world.invert(latent, positive, sigmas)[0]
    noise = torch.randn(exact.latents[:1].shape, generator=torch.Generator().manual_seed(0))
    pivots = {
        "code": exact,
        "paper": exact,
        "ddim": world.invert(latent, positive, sigmas, "ddim")[0],
        "global": exact,
        "random": replace(exact, latents=exact.latents[-1:] + sigmas.view(-1, 1, 1, 1, 1) * noise),
        **{f"w {w}": guided_inversion(world, latent, positive, exact, w) for w in INVERSION_GUIDANCE},
    }
    found: dict[str, Ablation] = {}
    for name, pivot in tqdm(pivots.items(), desc="ablations"):
        if name == "global":
            negative, evaluations = one_embedding(world, positive, empty, pivot, cfg)
        else:
            constants = "paper" if name == "paper" else "code"
            negative, course = optimize(
                world.model, positive, empty, pivot, cfg, Effort(constants=constants), "null_text"
            )
            evaluations = course.evaluations.forwards + course.evaluations.backwards
        result = world.sample(trajectory_noise(world.model, pivot), positive, cfg, sigmas, latent, negative)
        error = (world.model.model.process_latent_in(result) - pivot.latents[-1]).square().flatten(1).mean(1)
        span = pivot.latents[-1].flatten(1).amax(1) - pivot.latents[-1].flatten(1).amin(1)
        found[name] = Ablation(
            psnrs=psnr_each(world.decode(result), images).tolist(),
            to_pivot=float((20 * span.log10() - 10 * error.log10()).mean()),
            evaluations=evaluations,
        )
    return found


def guided_inversion(
    world: World, latent: Tensor, positive: Conditioning, like: Trajectory, guidance: float
) -> Trajectory:
    paths: list[Climb] = []
    run_guided(
        world.model,
        latent,
        positive,
        world.prompts([""]),
        like.sigmas,
        guidance,
        lambda inside: paths.append(climb(inside, "ddim")),
    )
    return replace(like, latents=torch.stack(paths[0][0][::-1]), method="ddim")


def one_embedding(
    world: World, positive: Conditioning, negative: Conditioning, pivot: Trajectory, cfg: float
) -> tuple[Conditioning, int]:
    """The paper's "global null-text": one embedding for all steps, by Adam along the pivot, step after step and again."""
    search = _OneEmbedding(pivot, cfg)
    latent = world.model.model.process_latent_out(pivot.latents[-1])
    run_guided(differentiable(world.model), latent, positive, negative, pivot.sigmas, cfg, search.run)
    return [[search.embedding, {}]], search.evaluations


def run_guided(
    model,
    latent: Tensor,
    positive: Conditioning,
    negative: Conditioning,
    sigmas: Tensor,
    cfg: float,
    body: Callable[[Inside], None],
) -> None:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    run_inside(guider, latent, sigmas, len(sigmas) - 1, body)


class _OneEmbedding:
    def __init__(self, pivot: Trajectory, cfg: float) -> None:
        self.pivot = pivot
        self.cfg = cfg
        self.evaluations = 0

    def run(self, inside: Inside) -> None:
        positive, (negative,) = inside.conds["positive"], inside.conds["negative"]
        denoiser = Denoiser(inside.model, inside.model_options, checkpoint=False)
        rows = self.pivot.batch
        self.embedding = negative["cross_attn"].float().expand(rows, -1, -1).clone()
        optimiser = torch.optim.Adam([self.embedding], lr=GLOBAL_RATE)
        steps = [self.at(i, denoiser, positive) for i in range(self.pivot.steps)]
        for _ in range(GLOBAL_PASSES):
            for step in steps:
                level = step.x.new_full((rows,), step.sigma)
                uncond, pullback = denoiser.predict_with_pullback(step.x, level, negative, self.embedding)
                self.embedding.grad = pullback(step.loss_slope(uncond))
                optimiser.step()
        self.embedding.grad = None
        self.evaluations = denoiser.evaluations.forwards + denoiser.evaluations.backwards

    def at(self, i: int, denoiser: Denoiser, positive: list[dict]) -> Step:
        x, target = self.pivot.latents[i], self.pivot.latents[i + 1]
        sigma, sigma_next = self.pivot.sigmas[i : i + 2].tolist()
        cond = denoiser.predict(x, x.new_full((self.pivot.batch,), sigma), "positive", positive)
        return Step(x, target, cond, sigma, sigma_next, self.cfg, (sigma_next**2 + 1.0) ** 0.5)
