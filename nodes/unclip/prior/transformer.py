"""DALL-E 2's diffusion prior (2204.06125, section 2.2), in the shape Karlo and Kandinsky gave it.

One causal sequence: 77 text states, the text's embedding, the time, the noisy image embedding, a learned query whose answer is
the clean image embedding. A token sees what comes before it, so that what the text says is worked out once: its keys and values
serve all steps and all candidates. The time's token comes before the image's, hence its keys and values are had for many
steps at once. Only the last two tokens are left for each step.

The tokens of all texts, times and candidates lie in one row, without gaps, and each sees what belongs to its own text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy.ldm.modules.attention import optimized_attention_for_device
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.ops import cast_to_input

HEAD_WIDTH = 64
TEXT_TOKENS = 77
EMBEDDING, TIME, IMAGE, QUERY = range(TEXT_TOKENS, TEXT_TOKENS + 4)  # positions

KeysValues = list[tuple[torch.Tensor, torch.Tensor]]  # of each layer, [1, tokens, width]


@dataclass(frozen=True)
class Reading:
    """What the network made of several texts. owners: [tokens], which text each token is of."""

    layers: KeysValues
    owners: torch.Tensor
    texts: int


class Block(torch.nn.Module):
    def __init__(self, width: int, dtype: torch.dtype, device: torch.device, operations: type):
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.norm_1 = operations.LayerNorm(width, dtype=dtype, device=device)
        self.qkv = operations.Linear(width, 3 * width, dtype=dtype, device=device)
        self.proj = operations.Linear(width, width, dtype=dtype, device=device)
        self.norm_2 = operations.LayerNorm(width, dtype=dtype, device=device)
        self.up = operations.Linear(width, 4 * width, dtype=dtype, device=device)
        self.down = operations.Linear(4 * width, width, dtype=dtype, device=device)

    def forward(
        self, x: torch.Tensor, past: list[tuple[torch.Tensor, torch.Tensor]], mask: torch.Tensor, answers: int
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """The last `answers` tokens of x [B, tokens, width] after this block, and the keys and values of all of them.

        mask: [B, 1, tokens, past and own tokens], added to the attention's logits.
        """
        q, *own = self.qkv(self.norm_1(x)).chunk(3, dim=-1)
        if answers == 0:
            return x[:, :0], tuple(own)
        x, q, mask = x[:, -answers:], q[:, -answers:], mask[:, :, -answers:]
        k, v = (torch.cat(parts, dim=1) for parts in zip(*past, own, strict=True))
        attention = optimized_attention_for_device(x.device, mask=True, small_input=True)
        x = x + self.proj(attention(q, k, v, self.heads, mask=mask))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm_2(x)))), tuple(own)


class PriorTransformer(torch.nn.Module):
    """width: of the transformer; embedding: of text states and of both embeddings; compute_dtype: of what runs through it."""

    def __init__(
        self, width: int, layers: int, embedding: int, dtype: torch.dtype, compute_dtype: torch.dtype,
        device: torch.device, operations: type,
    ):  # fmt: skip
        super().__init__()
        self.width, self.compute_dtype = width, compute_dtype
        shell = {"dtype": dtype, "device": device}
        self.text_proj = operations.Linear(embedding, width, **shell)
        self.embedding_proj = operations.Linear(embedding, width, **shell)
        self.image_proj = operations.Linear(embedding, width, **shell)
        self.time_embed = torch.nn.Sequential(
            operations.Linear(width, width, **shell), torch.nn.SiLU(), operations.Linear(width, width, **shell)
        )
        self.positions = torch.nn.Parameter(torch.empty(1, TEXT_TOKENS + 4, width, **shell))
        self.query = torch.nn.Parameter(torch.empty(1, 1, width, **shell))
        self.blocks = torch.nn.ModuleList([Block(width, **shell, operations=operations) for _ in range(layers)])
        self.norm_out = operations.LayerNorm(width, **shell)
        self.out_proj = operations.Linear(width, embedding, **shell)

    def read(self, states: torch.Tensor, embedding: torch.Tensor, mask: torch.Tensor) -> Reading:
        """Text states [P, 77, embedding], text embeddings [P, embedding] and which states are the text's own [P, 77].

        Only those are read: what is masked is seen by none.
        """
        count = len(mask)
        owners, places = mask.nonzero().unbind(1)
        text = self.text_proj(states[mask].to(self.compute_dtype))
        whole = self.embedding_proj(embedding.to(self.compute_dtype))
        positions = cast_to_input(self.positions, text)[0]
        x = torch.cat([text + positions[places], whole + positions[EMBEDDING]])
        owners = torch.cat([owners, torch.arange(count, device=owners.device)])
        places = torch.cat([places, places.new_full((count,), EMBEDDING)])
        sees = (owners[:, None] == owners) & (places[:, None] >= places)
        return Reading(self._through(x, [], sees, 0)[1], owners, count)

    def read_times(self, reading: Reading, timesteps: torch.Tensor) -> KeysValues:
        """Of the tokens of these timesteps [S], each of which sees its text and itself alone: all those of a text in a row."""
        embedded = self.time_embed(timestep_embedding(timesteps, self.width).to(self.compute_dtype))
        x = (embedded + cast_to_input(self.positions, embedded)[0, TIME]).repeat(reading.texts, 1)
        owners = torch.arange(reading.texts, device=x.device).repeat_interleave(len(timesteps))
        itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
        return self._through(x, [reading.layers], torch.cat([owners[:, None] == reading.owners, itself], dim=1), 0)[1]

    def forward(self, z: torch.Tensor, reading: Reading, times: KeysValues, step: int) -> torch.Tensor:
        """Noisy image embeddings [N, embedding] -> the clean ones for each of the P texts, [P, N, embedding], float32.

        times, step: what read_times gave, and which of its timesteps this is.
        """
        image = self.image_proj(z.to(self.compute_dtype))
        positions = cast_to_input(self.positions, image)[0]
        query = cast_to_input(self.query, image)[0] + positions[QUERY]
        texts, count = reading.texts, len(z) * reading.texts
        x = torch.cat([(image + positions[IMAGE]).repeat(texts, 1), query.expand(count, -1)])

        itself = torch.eye(count, dtype=torch.bool, device=z.device)
        own = torch.cat([torch.cat([itself, torch.zeros_like(itself)], dim=1), itself.repeat(1, 2)])
        text = torch.arange(texts, device=z.device)
        owners = text.repeat_interleave(len(z)).repeat(2)[:, None]
        sees = torch.cat([owners == reading.owners, owners == text, own], dim=1)

        time = [tuple(kept.unflatten(1, (texts, -1))[:, :, step] for kept in layer) for layer in times]
        x, _ = self._through(x, [reading.layers, time], sees, count)
        return self.out_proj(self.norm_out(x)).float().unflatten(0, (texts, -1))

    def _through(
        self, x: torch.Tensor, past: list[KeysValues], sees: torch.Tensor, answers: int
    ) -> tuple[torch.Tensor, KeysValues]:
        """The last `answers` of x [tokens, width] after all blocks, and all tokens' keys and values. sees: [tokens, past and own] bool."""
        mask = torch.zeros(sees.shape, dtype=x.dtype, device=x.device)
        mask = mask.masked_fill_(~sees, torch.finfo(x.dtype).min)[None, None]
        x = x[None]
        kept: KeysValues = []
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1
            x, own = block(x, [layers[i] for layers in past], mask, answers if last else x.shape[1])
            kept.append(own)
        return x[0], kept
