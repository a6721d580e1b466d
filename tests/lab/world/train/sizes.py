"""What a training costs: the arithmetic of one picture, forward and backward, by the size of what the layers work on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from lab.world.pack.general import LATENT_CHANNELS, new_vae
from lab.world.pack.transformer import TEXT_COLUMNS
from lab.world.pack.unclip import DRAWN, SEEN
from lab.world.train.clip import Pair, pixels_of
from lab.world.train.decoder import Trained as TrainedDecoder
from lab.world.train.general import Trained
from lab.world.train.pool import TOLD
from lab.world.train.prior import answer, new_prior
from lab.world.train.text import COLUMNS, vocabulary
from lab.world.train.transformer import new_transformer
from lab.world.train.upsamplers import CROP, new_upsampler
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
TRAINED = 3  # a step takes three times the forward pass: the backward pass is two more


def by_size(network: nn.Module, forward: Callable[[], object]) -> Counter[str]:
    """Operations of the forward pass of one picture in convolutions, linear layers and attention, by the output's size."""
    found: Counter[str] = Counter()
    counter = FlopCounterMode(display=False, custom_mapping={ATTENTION: _attention})

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            positions = output.numel() // output.shape[-1] // len(output)
            found[f"{positions} tokens"] += 2 * positions * module.weight.numel()
        else:
            weights = module.weight.numel()
            pixels = output.shape[2] * output.shape[3]
            of_input = inputs[0].shape[2] * inputs[0].shape[3]
            transposed = isinstance(module, nn.ConvTranspose2d)
            found[f"{output.shape[2]} x {output.shape[3]}"] += 2 * weights * (of_input if transposed else pixels)

    hooks = [
        layer.register_forward_hook(after)
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    with counter:
        forward()
    for hook in hooks:
        hook.remove()
    found["attention"] = counter.get_flop_counts()["Global"].get(ATTENTION, 0)
    return found


def _attention(query: torch.Size, key: torch.Size, *_shapes: object, **_options: object) -> int:
    """Of shapes [B, heads, tokens, width]."""
    return 4 * query.numel() * key[2]


@torch.no_grad()
def report() -> None:
    vae = new_vae()
    general = Trained(vocabulary())
    transformer = new_transformer()
    latents, time = torch.randn(1, LATENT_CHANNELS, 32, 32), torch.full((1,), 500.0)
    rows = torch.zeros(1, COLUMNS, dtype=torch.long)
    context = torch.randn(1, TEXT_COLUMNS, general.text.clip.text_projection.in_features)
    pair, prior, decoder, upsampler = Pair(vocabulary()), new_prior(), TrainedDecoder(), new_upsampler()
    read = pair.read(torch.full((1, TOLD), pair.end))
    picture = torch.zeros(1, 3, SEEN, SEEN, dtype=torch.uint8)
    told = {
        "context": read.states,
        "text_mask": read.mask.float(),
        "text_embed": read.pooled,
        "image_embed": read.pooled,
    }
    for name, network, forward in (
        ("autoencoder, 128 x 128", vae, lambda: vae.decode(vae.encode(torch.randn(1, 3, 128, 128)))),
        ("general", general, lambda: general(latents, time, rows)),
        ("transformer", transformer, lambda: transformer(latents, time, context=context)),
        ("clip, the image encoder", pair.image, lambda: pair.see(pixels_of(picture))),
        ("clip, the text encoder", pair.text, lambda: pair.read(rows[:, :TOLD])),
        ("prior", prior, lambda: answer(prior, read.pooled, read, time)),
        ("decoder", decoder, lambda: decoder(torch.randn(1, 3, DRAWN, DRAWN), time, **told)),
        (f"upsampler, {CROP} x {CROP}", upsampler, lambda: upsampler(torch.randn(1, 6, CROP, CROP), time)),
    ):
        found = by_size(network, forward)
        parameters = sum(p.numel() for p in network.parameters()) / 1e6
        print(
            f"{name}: {parameters:.2f} million parameters, {TRAINED * sum(found.values()) / 1e9:.2f} GFLOP a picture and step"
        )
        for size, operations in found.most_common():
            print(f"  {size:>14}: {TRAINED * operations / 1e9:6.3f}")
