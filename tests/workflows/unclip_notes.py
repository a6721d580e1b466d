"""What the shipped workflows with image embeddings say to the artist, in Markdown."""

from workflows.files_and_colours import (
    CLIP_L,
    DECODER,
    LAST_UPSAMPLER,
    PRIOR,
    SECOND_UPSAMPLER,
    TEXT_PROJ,
    UNCLIP,
    UPSAMPLER,
)

KARLO_FILES = (
    "From *kakaobrain/karlo-v1-alpha* on Hugging Face, the file *diffusion_pytorch_model.safetensors* of each folder, \
into *models/diffusion_models* under another name:"
)
HEAD = "| folder there | name here | size |\n|---|---|---|"
PRIOR_FILE = f"| prior | {PRIOR} | 4.1 GB |"
DECODER_FILES = f"""| decoder | {DECODER} | 3.5 GB |
| text_proj | {TEXT_PROJ} | 32 MB |
| super_res_first | {UPSAMPLER} | 2.8 GB |
| super_res_last | {LAST_UPSAMPLER} | 2.8 GB |"""
TEXT_FILE = (
    f"*model.safetensors* (1.7 GB) from *openai/clip-vit-large-patch14*, as *{CLIP_L}* into *models/text_encoders*."
)
BOTH_FILES = (
    f"*model.safetensors* (1.7 GB) from *openai/clip-vit-large-patch14*, as *{CLIP_L}* into *models/text_encoders* and into \
*models/clip_vision*."
)
KARLO_GET = f"### Get\n{KARLO_FILES}\n\n{HEAD}\n{DECODER_FILES}\n\nAnd {BOTH_FILES}"

UNCLIP_NOTE = f"""## Text to picture by a prior, SD2.1 unCLIP

The prior makes an image embedding from your text, as if CLIP had seen a matching picture. Stable Diffusion then generates a \
picture from the embedding and the text. Each seed of **unCLIP Sample Prior** gives another picture idea, each seed of **KSampler** \
another version of it.

### Get
- *{UNCLIP}* (3.2 GB) from *stable-diffusion-2-1-unclip*, into *models/checkpoints*
- {TEXT_FILE}
- From *kakaobrain/karlo-v1-alpha* on Hugging Face, into *models/diffusion_models*: the folder *prior*'s \
*diffusion_pytorch_model.safetensors* (4.1 GB) as *{PRIOR}*

### Change
- **What it shows**: the text, used by all nodes
- both seeds

### Keep
- **One embedding at a time**, *batch_size* 1: this model mixes the embeddings of a batch into one picture.
- A prior and a model of the same CLIP, here ViT-L/14. *sd21-unclip-h* uses another one."""

PRIOR_TUNING_NOTE = """- **Another idea**: another *seed* in unCLIP Sample Prior.
- **Closer to the text**: more *candidates*; the closest one is kept. Then raise *cfg* of unCLIP Sample Prior.
- **Another version of the same idea**: another seed of the sampler. The prior does not run again.
- **What should not be in it**: *negative_text*. The priors were trained with an empty one.
- **Words at the end have no effect**: 75 tokens are read; the node tells you if there are more."""

SCORE_NOTE = """**unCLIP Sample Prior** shows how well the embedding matches the text, **unCLIP Embedding Score** how well the finished picture \
matches it, by the same CLIP. The first is high because the prior was trained for it; the second is about the result. \
Compare only scores of the same text."""

SAVED_EMBEDDING_NOTE = """**unCLIP Save Embedding** keeps what the prior made. To use it another day, un-mute **unCLIP Load Embedding** (Ctrl+M), \
choose the file, and connect its *embedding* to *unCLIPConditioning*."""

KARLO_NOTE = f"""## Text to picture with Karlo

DALL-E 2's way from a text to a picture, with Karlo's public weights: a prior makes an image embedding, a decoder generates \
64 x 64 pixels from it, and an upsampler enlarges them to 256 x 256.

### Get
{KARLO_FILES}

{HEAD}
{PRIOR_FILE}
{DECODER_FILES}

And {TEXT_FILE}

### Change
- **What it shows**: the text, for the prior and for the decoder
- the seeds: for the idea (unCLIP Sample Prior), the picture (RandomNoise) and the details (unCLIP Upsample)

### Keep
- **unCLIP Sampler**, 25 or 50 steps, *cfg* 8: as published. ComfyUI's samplers work too.
- *steps* of unCLIP Upsample at 0, which is the published 7."""

SECOND_UPSAMPLER_NOTE = f"""DALL-E 2 has a second upsampler, from 256 to 1024 pixels. No weights of it are public. If you have \
trained one in this layout, put it into *models/diffusion_models* (here *{SECOND_UPSAMPLER}*) and un-mute the three nodes (Ctrl+M). \
Otherwise ComfyUI's *Upscale Image (using Model)* can enlarge the picture."""

VARIATIONS_NOTE = f"""## Variations of a picture

Pictures that CLIP would describe in the same way as yours. The embedding of your picture says what it is about, and DDIM Invert \
finds its noise. Sampling from there, with new noise at each step, varies what the embedding does \
not describe.

{KARLO_GET}

### Change
- **Your picture**: the decoder sees its centre at 64 x 64, CLIP at 224 x 224
- *noise_seed*, and *amount* for how many

### Keep
- **One schedule** for DDIM Invert and both samplers.
- *add_noise* disabled: the latent already is noise."""

VARIATIONS_TUNING_NOTE = """- **Too close to the picture**: raise *eta*, up to 1.
- **Too far from it**: lower *eta*. At 0, with *cfg* 1, the picture is reconstructed.
- **Vague**: raise *cfg*; 8 is the published value for Karlo.
- **Describe it**: write what the picture shows into *text* of unCLIP Decoder Conditioning. It is empty for variations, as published.
- **Start from random noise**: enable *add_noise*, and connect *Empty picture* (Empty Latent Image, 64 x 64) instead of \
DDIM Invert's latent."""

AGAIN_NOTE = """The same start, without new noise and at *cfg* 1, reconstructs the picture as exactly as the decoder can. \
**Compare Images** measures it. If this fails, the variations have nothing to do with your picture: look at the residual that DDIM \
Invert shows, and raise its *iterations*.

The schedule begins at sigma 32: the decoder's own schedule goes up to 20000, where rounding errors are larger than the picture."""

MORPH_NOTE = f"""## Morph between two pictures

Goes from one picture to another in steps. Both its embedding and its noise are interpolated: the embedding by unCLIP Embedding \
Slerp, the noise by Latent Slerp.

{KARLO_GET}

### Change
- **both pictures**. Both show ComfyUI's example until you choose yours.
- **Frames**: how many, including the two pictures
- *thetas*, the same in both Slerp nodes: `0, 1` goes there, `0, 1, 0` there and back

### Keep
- **One schedule** for both inversions and the sampler, *euler*, *cfg* 1. Then the first and the last frame are your pictures."""

MORPH_TUNING_NOTE = """- **Pale in the middle**: raise *cfg*. Then the first and last frame change too.
- **Out of memory**: use fewer frames. The decoder makes all of them together, the upsampler one by one with the same noise, so that \
details do not flicker.
- **The first and last frame are not your pictures**: look at the residuals that both DDIM Invert show, and raise *iterations*.
- **To keep the noise and change only the content**: connect one DDIM Invert's latent to both inputs of Latent Slerp."""

MIX_NOTE = """**unCLIP Embedding Mix** makes one embedding from both, and the decoder makes new pictures from it and random noise, \
with the published sampler.

- *weights*: `1, 1` is half of each, `2, 1` more of the first, `1, -0.5` removes what the second shows.
- A third picture: connect its embedding to the next socket, and write a third weight.
- To add words: write into *text* of unCLIP Decoder Conditioning."""

DIFF_NOTE = f"""## Move a picture by words

Your picture's embedding is moved by the difference of two texts, a little further in each picture. All start from \
the noise of your own picture.

{KARLO_GET}

### Change
- **Your picture**: the decoder sees its centre at 64 x 64
- *base_text*: what it shows
- *text*: the same, with what should be different
- *thetas*: how far to move, one picture for each number. 0 is your picture.

### Keep
- **One schedule** for DDIM Invert and the sampler, *euler*, *cfg* 1. Then theta 0 is your picture."""

DIFF_TUNING_NOTE = """- **Too little changes**: higher *thetas*, up to 0.5 as in the paper; then *cfg* above 1, which also changes the picture of theta 0.
- **The picture is lost**: lower *thetas*.
- **The wrong thing changes**: make both texts the same except for one thing. *base_text* `a photo` fits any picture.
- **Theta 0 is not your picture**: look at the residual that DDIM Invert shows, and raise *iterations*."""
