"""Trains the toy UNet and text encoder together on the latents of scenes and photographs."""

import copy
import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import comfy.sd1_clip
import torch
import torch.nn.functional as F
from comfy.latent_formats import SD3
from comfy.ldm.cascade.stage_a import StageA
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from lab.toy import photos, scenes
from lab.toy.checkpoint import initialise, keep_norm_inputs, load_checkpoint, save_checkpoint, warmup_cosine
from lab.toy.pack.general import WIDTH, new_text_model, new_unet
from lab.toy.train_vae import LATENT_STD, linear_encoder
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import trange

STEPS = 9000
BATCH = 16
LEARNING_RATE = 1e-3
WORD_LEARNING_RATE = 2e-3  # of the text encoder and cross-attention, which learn last
EMA_DECAY = 0.999
SCENES = 8192
PHOTOS = 1024
PHOTO_SHARE = 0.17
CAPTION_DROPOUT = 0.13

# Every look of a photograph as a caption says it, and every scene word at least once.
VOCABULARY = (
    *(
        scenes.caption(scenes.Scene(shape, colour, texture, position, background))
        for shape, colour, texture, position, background in zip(
            *(
                (list(values) * 8)[:8]
                for values in (scenes.SHAPES, scenes.COLOURS, scenes.TEXTURES, scenes.POSITIONS, scenes.BACKGROUNDS)
            ),
            strict=True,
        )
    ),
    *(f"a {look} photo of {subject}" for look in photos.LOOKS for subject, _ in photos.TRAINING.values()),
)


@cache
def token_ids(text: str) -> tuple[int, ...]:
    """The 77 token ids of a short text."""
    return tuple(token for token, _ in _tokenizer().tokenize_with_weights(text)["l"][0])


@cache
def _tokenizer() -> comfy.sd1_clip.SD1Tokenizer:
    return comfy.sd1_clip.SD1Tokenizer()


class Trained(nn.Module):
    """UNet and text encoder; the encoder's token embedding holds the rows of the toy's vocabulary alone."""

    def __init__(self, captions: Iterable[str] = VOCABULARY) -> None:
        super().__init__()
        self.unet: UNetModel = new_unet().diffusion_model
        self.text = new_text_model()
        self.register_buffer("vocabulary", torch.tensor(sorted({t for text in captions for t in token_ids(text)})))
        embeddings = self.text.text_model.embeddings
        embeddings.token_embedding = nn.Embedding(len(self.vocabulary), WIDTH)
        initialise(self)
        # The encoder starts as its word embeddings, and the values of attention as large as 77 tokens make them small.
        nn.init.normal_(embeddings.token_embedding.weight)
        nn.init.normal_(embeddings.position_embedding.weight, std=0.1)
        for layer in self.text.text_model.encoder.layers:
            nn.init.zeros_(layer.self_attn.out_proj.weight)
            nn.init.zeros_(layer.mlp.fc2.weight)
        for layer in self.unet.modules():
            if isinstance(layer, ResBlock):
                nn.init.zeros_(layer.out_layers[-1].weight)
            elif isinstance(layer, SpatialTransformer):
                nn.init.zeros_(layer.proj_out.weight)
                for block in layer.transformer_blocks:
                    block.attn2.to_v.weight.data *= 8
        nn.init.zeros_(self.unet.out[-1].weight)
        keep_norm_inputs(self.text.text_model.encoder)
        self.requires_grad_(True)

    def encode(self, ids: Tensor) -> Tensor:
        """Token ids [B, 77] to conditioning [B, 77, WIDTH]."""
        embeds = self.text.text_model.embeddings.token_embedding(torch.searchsorted(self.vocabulary, ids))
        return self.text(None, embeds=embeds, num_tokens=[77] * len(ids))[0]


def latent_pool(vae: StageA, cache_file: Path, seed: int) -> tuple[Tensor, list[str], list[scenes.Scene]]:
    """Latents [SCENES + PHOTOS, 16, 16, 16] in the model's space, scenes first; the photographs' captions; the scenes."""
    drawn = scenes.sample_scenes(SCENES, seed + 1, split="train")
    rng = random.Random(seed + 2)
    if cache_file.exists():
        saved = torch.load(cache_file, weights_only=True)
        return saved["latents"], saved["captions"], drawn
    weight, bias = linear_encoder(vae)
    latents: list[Tensor] = []
    captions: list[str] = []
    for start in trange(0, SCENES, 32, desc="encoding scenes"):
        images = scenes.render(drawn[start : start + 32])[0]
        latents.append(F.conv2d(images * 2 - 1, weight, bias, stride=8))
    for _ in trange(PHOTOS, desc="encoding photographs"):
        image, text = photos.training_photo(rng)
        latents.append(F.conv2d(image[None] * 2 - 1, weight, bias, stride=8))
        captions.append(text)
    pool = SD3().process_in(torch.cat(latents)).half()
    torch.save({"latents": pool, "captions": captions}, cache_file)
    return pool, captions, drawn


class Denoising:
    """The velocity loss on SD1.5's schedule, as ComfyUI holds it: sigma = sqrt((1 - alpha) / alpha)."""

    def __init__(self) -> None:
        self.alphas = 1 / (new_unet().model_sampling.sigmas ** 2 + 1)
        # As 2206.00364 weights the denoised picture, for latents of this size: every sigma counts alike at the start.
        self.weights = (1 - self.alphas + self.alphas * LATENT_STD**2) / LATENT_STD**2

    def loss(self, unet: UNetModel, clean: Tensor, context: Tensor) -> Tensor:
        """Latents [B, C, H, W] under random noise at random timesteps, with conditioning [B, tokens, WIDTH]."""
        noise = torch.randn_like(clean)
        timesteps = torch.randint(0, len(self.alphas), (len(clean),))
        alpha = self.alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        errors = (unet(noisy, timesteps.float(), context=context) - velocity).square().mean((1, 2, 3))
        return (self.weights[timesteps] * errors).mean()


def train(cache_folder: Path, vae: StageA, output: Path, seed: int, steps: int = STEPS) -> None:
    latents, photo_captions, drawn = latent_pool(vae, cache_folder / "latents.pt", seed)
    torch.manual_seed(seed)
    model = Trained()
    average = copy.deepcopy(model).requires_grad_(False)
    denoising = Denoising()
    words = [p for name, p in model.named_parameters() if name.startswith("text.") or ".attn2." in name]
    others = [p for name, p in model.named_parameters() if not (name.startswith("text.") or ".attn2." in name)]
    groups = [{"params": others}, {"params": words, "lr": WORD_LEARNING_RATE}]
    optimiser = torch.optim.AdamW(groups, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, warmup_cosine(100, steps))
    state = {"model": model, "average": average, "optimiser": optimiser, "schedule": schedule}
    first = load_checkpoint(cache_folder / "general.pt", state)
    parameters = list(model.parameters())

    running = 1.0
    progress = trange(first, steps, initial=first, total=steps, desc="UNet")
    for step in progress:
        rng = random.Random(step)
        rows = [
            rng.randrange(SCENES, SCENES + PHOTOS) if rng.random() < PHOTO_SHARE else rng.randrange(SCENES)
            for _ in range(BATCH)
        ]
        texts = [
            photo_captions[row - SCENES] if row >= SCENES else scenes.training_caption(drawn[row], rng) for row in rows
        ]
        ids = torch.tensor([token_ids("" if rng.random() < CAPTION_DROPOUT else text) for text in texts])
        torch.manual_seed(seed + step)
        loss = denoising.loss(model.unet, latents[rows].float(), model.encode(ids))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)
        running += 0.02 * (loss.item() - running)
        progress.set_postfix(loss=f"{running:.4f}", refresh=False)
        if step % 250 == 249 or step + 1 == steps:
            save_checkpoint(cache_folder / "general.pt", state, step + 1)
            export(average, output)


def export(model: Trained, file: Path) -> None:
    """Writes SD1.5's key names in fp16, with the vocabulary's token ids beside its embedding rows."""
    weights = {f"model.diffusion_model.{key}": value for key, value in model.unet.state_dict().items()}
    weights |= {f"cond_stage_model.transformer.{key}": value for key, value in model.text.state_dict().items()}
    del weights["cond_stage_model.transformer.text_projection.weight"]
    weights = {key: value.detach().half().contiguous() for key, value in weights.items()}
    save_file({**weights, "toy.token_ids": model.vocabulary.int()}, file)
