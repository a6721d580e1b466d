"""DALL-E 2's diffusion prior (2204.06125, section 2.2), in the shape Karlo and Kandinsky gave it.

One causal sequence: 77 text states, the text's embedding, the timestep, the noisy image embedding, and a learned query, from
which the clean image embedding is read. A token sees only what comes before it. So the keys and values of the text are computed
once for all steps and candidates, and those of the timesteps for many steps at once; each step computes only the last two tokens.

The tokens of all texts, timesteps and candidates are joined into one sequence, and a mask lets each see its own text alone.
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
    """Keys and values of the tokens of several texts. owners: [tokens], the text that each token belongs to."""

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
        """The last `answers` tokens of x [B, tokens, width] after this block, and the keys and values of all tokens of x.

        past: keys and values of earlier tokens; mask: [B, 1, tokens, past and own tokens], added to the attention's logits.
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
    """width: of the transformer; embedding: of text states, text and image embeddings; compute_dtype: of its activations."""

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
        """states: [P, 77, embedding]; embedding: [P, embedding]; mask: [P, 77], True for the states that are read."""
        count = len(mask)
        owners, places = mask.nonzero().unbind(1)
        text = self.text_proj(states[mask].to(self.compute_dtype))
        whole = self.embedding_proj(embedding.to(self.compute_dtype))
        positions = cast_to_input(self.positions, text)[0]
        x = torch.cat([text + positions[places], whole + positions[EMBEDDING]])
        owners = torch.cat([owners, torch.arange(count, device=owners.device)])
        places = torch.cat([places, places.new_full((count,), EMBEDDING)])
        sees = (owners[:, None] == owners) & (places[:, None] >= places)
        return Reading(self._through(x, [], self._mask(sees), 0)[1], owners, count)

    def read_times(self, reading: Reading, timesteps: torch.Tensor) -> KeysValues:
        """Keys and values of the tokens of these timesteps [S], first all of the first text. Each sees its text and itself alone."""
        embedded = self.time_embed(timestep_embedding(timesteps, self.width).to(self.compute_dtype))
        x = (embedded + cast_to_input(self.positions, embedded)[0, TIME]).repeat(reading.texts, 1)
        owners = torch.arange(reading.texts, device=x.device).repeat_interleave(len(timesteps))
        itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
        sees = torch.cat([owners[:, None] == reading.owners, itself], dim=1)
        return self._through(x, [reading.layers], self._mask(sees), 0)[1]

    def mask(self, reading: Reading, candidates: int) -> torch.Tensor:
        """For `forward` with that many candidates: which tokens each image and each query token sees."""
        device = reading.owners.device
        itself = torch.eye(candidates * reading.texts, dtype=torch.bool, device=device)
        own = torch.cat([torch.cat([itself, torch.zeros_like(itself)], dim=1), itself.repeat(1, 2)])
        text = torch.arange(reading.texts, device=device)
        owners = text.repeat_interleave(candidates).repeat(2)[:, None]
        return self._mask(torch.cat([owners == reading.owners, owners == text, own], dim=1))

    def forward(
        self, z: torch.Tensor, reading: Reading, times: KeysValues, step: int, mask: torch.Tensor
    ) -> torch.Tensor:
        """Noisy image embeddings [N, embedding] -> the clean ones for each of the P texts, [P, N, embedding], float32.

        times: from read_times; step: which of its timesteps this is; mask: from `mask`, for N candidates.
        """
        image = self.image_proj(z.to(self.compute_dtype))
        positions = cast_to_input(self.positions, image)[0]
        query = cast_to_input(self.query, image)[0] + positions[QUERY]
        texts, count = reading.texts, len(z) * reading.texts
        x = torch.cat([(image + positions[IMAGE]).repeat(texts, 1), query.expand(count, -1)])

        time = [tuple(kept.unflatten(1, (texts, -1))[:, :, step] for kept in layer) for layer in times]
        x, _ = self._through(x, [reading.layers, time], mask, count)
        return self.out_proj(self.norm_out(x)).float().unflatten(0, (texts, -1))

    def _mask(self, sees: torch.Tensor) -> torch.Tensor:
        """sees: [tokens, past and own] bool -> what is added to the attention's logits, [1, 1, tokens, past and own]."""
        mask = torch.zeros(sees.shape, dtype=self.compute_dtype, device=sees.device)
        return mask.masked_fill_(~sees, torch.finfo(self.compute_dtype).min)[None, None]

    def _through(
        self, x: torch.Tensor, past: list[KeysValues], mask: torch.Tensor, answers: int
    ) -> tuple[torch.Tensor, KeysValues]:
        """The last `answers` of x [tokens, width] after all blocks, and the keys and values of all of them."""
        x = x[None]
        kept: KeysValues = []
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1
            x, own = block(x, [layers[i] for layers in past], mask, answers if last else x.shape[1])
            kept.append(own)
        return x[0], kept
