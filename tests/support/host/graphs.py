"""Stock parts of workflows in the API format, for tests and the demo to build on."""

from __future__ import annotations

from dataclasses import dataclass

from support.host.client import Graph, Node


@dataclass(frozen=True)
class Stock:
    """A loaded checkpoint, two prompts and an empty latent: what a KSampler wants."""

    checkpoint: Node
    positive: Node
    negative: Node
    latent: Node

    @property
    def model(self) -> list:
        return self.checkpoint[0]

    @property
    def clip(self) -> list:
        return self.checkpoint[1]

    @property
    def vae(self) -> list:
        return self.checkpoint[2]


def add_stock(
    graph: Graph, checkpoint: str, positive: str = "a red circle", negative: str = "", size: int = 64
) -> Stock:
    loader = graph.add("CheckpointLoaderSimple", ckpt_name=checkpoint)
    return Stock(
        loader,
        graph.add("CLIPTextEncode", clip=loader[1], text=positive),
        graph.add("CLIPTextEncode", clip=loader[1], text=negative),
        graph.add("EmptyLatentImage", width=size, height=size, batch_size=1),
    )


def add_ksampler(graph: Graph, stock: Stock, steps: int, **changed) -> Node:
    inputs = {
        "model": stock.model,
        "positive": stock.positive[0],
        "negative": stock.negative[0],
        "latent_image": stock.latent[0],
        "seed": 1,
        "steps": steps,
        "cfg": 7.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    return graph.add("KSampler", **{**inputs, **changed})


def add_preview(graph: Graph, stock: Stock, latent: list) -> Node:
    """Decode a latent and show it."""
    decoded = graph.add("VAEDecode", samples=latent, vae=stock.vae)
    return graph.add("PreviewImage", images=decoded[0])


SOURCE_TEXT = "a red circle on a blue wall"
TARGET_TEXT = "a red square on a blue wall"


@dataclass
class WordEdit:
    """A photo inverted with the source prompt, and an Encode Prompt Edit; the methods add the nodes that edit it."""

    graph: Graph
    stock: Stock
    picture: Node
    sigmas: Node
    words: Node
    invert: Node

    def prompt_to_prompt(self, **changed) -> Node:
        inputs = {
            "model": self.stock.model,
            "trajectory": self.invert[0],
            "edit": self.words[1],
            "cross_end": 0.8,
            "self_end": 0.5,
            "blend_start": 0.2,
            "blend_threshold": 0.3,
        }
        return self.graph.add("PAL_PromptToPrompt", **{**inputs, **changed})

    def attention_mask(self, **changed) -> Node:
        inputs = {
            "model": self.stock.model,
            "clip": self.stock.clip,
            "trajectory": self.invert[0],
            "text": SOURCE_TEXT,
            "words": "circle",
            "start": 0.0,
            "end": 1.0,
            "threshold": 0.0,
        }
        return self.graph.add("PAL_AttentionMask", **{**inputs, **changed})

    def null_text(self, **changed) -> Node:
        inputs = {
            "model": self.stock.model,
            "positive": self.stock.positive[0],
            "negative": self.stock.negative[0],
            "trajectory": self.invert[0],
            "cfg": 4.0,
            "inner_steps": 2,
            "learning_rate": 0.01,
            "tolerance": 1e-5,
            "method": "null_text",
            "constants": "code",
        }
        return self.graph.add("PAL_NullTextOptimize", **{**inputs, **changed})

    def guider(self, **changed) -> Node:
        inputs = {
            "model": self.stock.model,
            "positive": self.words[0],
            "negative": self.stock.negative[0],
            "cfg": 4.0,
        }
        return self.graph.add("CFGGuider", **{**inputs, **changed})

    def sample(self, guider: Node, sampler_name: str = "euler", **changed) -> Node:
        inputs = {
            "guider": guider[0],
            "noise": self.invert[1],
            "latent_image": self.invert[2],
            "sigmas": self.sigmas[0],
            "sampler": self.graph.add("KSamplerSelect", sampler_name=sampler_name)[0],
        }
        return self.graph.add("SamplerCustomAdvanced", **{**inputs, **changed})

    def schedule(self, steps: int, scheduler: str = "ddim_uniform") -> Node:
        return self.graph.add("BasicScheduler", model=self.stock.model, scheduler=scheduler, steps=steps, denoise=1.0)


def add_word_edit(
    graph: Graph, checkpoint: str, image: str, steps: int, source_text: str = SOURCE_TEXT, negative: str = "", **words
) -> WordEdit:
    """`image`: a name that LoadImage knows; `words`: inputs of Encode Prompt Edit.

    What the inversion reads comes from a node of its own, so that another target inverts nothing again.
    """
    stock = add_stock(graph, checkpoint, source_text, negative)
    picture = graph.add("LoadImage", image=image)
    latent = graph.add("VAEEncode", pixels=picture[0], vae=stock.vae)
    sigmas = graph.add("BasicScheduler", model=stock.model, scheduler="ddim_uniform", steps=steps, denoise=1.0)
    inputs = {"source_text": source_text, "target_text": TARGET_TEXT, "mode": "auto", "reweight": "", "blend_words": ""}
    edit = graph.add("PAL_EncodePromptEdit", clip=stock.clip, **{**inputs, **words})
    invert = graph.add(
        "PAL_DDIMInvert", model=stock.model, positive=stock.positive[0], latent_image=latent[0], sigmas=sigmas[0],
        method="ddim", iterations=1,
    )  # fmt: skip
    return WordEdit(graph, stock, picture, sigmas, edit, invert)


@dataclass
class Fusion:
    """A picture that two models make; the methods add others that start from the same noise."""

    graph: Graph
    stock: Stock
    guider: Node
    shown: Node
    steps: int

    def sample(self, guider: Node, sampler_name: str = "euler") -> Node:
        return sample_and_show(self.graph, self.stock, guider, self.steps, sampler_name)

    def plain(self, model: list | None = None) -> Node:
        """One model alone: the general one, or `model`."""
        positive, negative = self.stock.positive[0], self.stock.negative[0]
        guider = self.graph.add(
            "CFGGuider", model=model or self.stock.model, positive=positive, negative=negative, cfg=5.0
        )
        return self.sample(guider)


def sample_and_show(graph: Graph, stock: Stock, guider: Node, steps: int, sampler_name: str = "euler") -> Node:
    sampled = graph.add(
        "SamplerCustomAdvanced",
        noise=graph.add("RandomNoise", noise_seed=7)[0],
        guider=guider[0],
        sampler=graph.add("KSamplerSelect", sampler_name=sampler_name)[0],
        sigmas=graph.add("BasicScheduler", model=stock.model, scheduler="ddim_uniform", steps=steps, denoise=1.0)[0],
        latent_image=stock.latent[0],
    )
    return add_preview(graph, stock, sampled[0])


def saliency_fusion(checkpoint: str, steps: int = 3, expert: str = "", lora: str = "", **changed) -> Fusion:
    """Of a checkpoint and another one, a LoRA of either, or, where nothing is named, the checkpoint itself.

    `changed`: inputs of Saliency Fusion Guider; None leaves one out.
    """
    graph = Graph()
    stock = add_stock(graph, checkpoint)
    model = graph.add("CheckpointLoaderSimple", ckpt_name=expert)[0] if expert else stock.model
    if lora:
        model = graph.add("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0)[0]
    inputs = {
        "model": stock.model, "positive": stock.positive[0], "negative": stock.negative[0], "cfg": 5.0,
        "model_expert": model, "positive_expert": stock.positive[0], "negative_expert": stock.negative[0],
        "cfg_expert": 5.0, "start_percent": 0.0, "end_percent": 1.0, "saliency": "sharpness",
        "saliency.sharpness_general": 1.0, "saliency.sharpness_expert": 3.0, "blur": "box", "expert_uncond": "own",
        "mode": "hard", **changed,
    }  # fmt: skip
    given = {name: value for name, value in inputs.items() if value is not None}
    guider = graph.add("PAL_SaliencyFusionGuider", **given)
    return Fusion(graph, stock, guider, sample_and_show(graph, stock, guider, steps), steps)


def subject_fusion(checkpoint: str, subject: str, steps: int = 3, **changed) -> Fusion:
    """Of two checkpoints; `changed`: inputs of Subject Fusion Guider."""
    graph = Graph()
    stock = add_stock(graph, checkpoint)
    inputs = {
        "model_scene": stock.model, "model_subject": graph.add("CheckpointLoaderSimple", ckpt_name=subject)[0],
        "positive": stock.positive[0], "negative": stock.negative[0], "cfg": 5.0, "scene_end": 0.3, "fusion_end": 0.6,
        "positive_subject": graph.add("CLIPTextEncode", clip=stock.clip, text="a red square")[0],
        "saliency": "published", "saliency.k_scene": 1.0, "saliency.k_subject": 1.0, **changed,
    }  # fmt: skip
    guider = graph.add("PAL_SubjectFusionGuider", **inputs)
    return Fusion(graph, stock, guider, sample_and_show(graph, stock, guider, steps), steps)
