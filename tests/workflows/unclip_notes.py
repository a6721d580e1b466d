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
    "Of *kakaobrain/karlo-v1-alpha* on Hugging Face, each time the file *diffusion_pytorch_model.safetensors* of a folder, \
into *models/diffusion_models* under another name:"
)
HEAD = "| folder there | name here | size |\n|---|---|---|"
PRIOR_FILE = f"| prior | {PRIOR} | 4.1 GB |"
DECODER_FILES = f"""| decoder | {DECODER} | 3.5 GB |
| text_proj | {TEXT_PROJ} | 32 MB |
| super_res_first | {UPSAMPLER} | 2.8 GB |
| super_res_last | {LAST_UPSAMPLER} | 2.8 GB |"""
TEXT_FILE = (
    f"*model.safetensors* (1.7 GB) of *openai/clip-vit-large-patch14*, as *{CLIP_L}* into *models/text_encoders*."
)
BOTH_FILES = (
    f"*model.safetensors* (1.7 GB) of *openai/clip-vit-large-patch14*, as *{CLIP_L}* into *models/text_encoders* and into \
*models/clip_vision*."
)
KARLO_GET = f"### Get\n{KARLO_FILES}\n\n{HEAD}\n{DECODER_FILES}\n\nAnd {BOTH_FILES}"

UNCLIP_NOTE = f"""## Text to picture by a prior, SD2.1 unCLIP

The prior turns your text into the embedding of a picture, as CLIP would see that picture; Stable Diffusion draws from the \
embedding and the text. Each seed of **unCLIP Sample Prior** is another idea of the text, each seed of **KSampler** another drawing of \
that idea.

### Get
- *{UNCLIP}* (3.2 GB) of *stable-diffusion-2-1-unclip*, into *models/checkpoints*
- {TEXT_FILE}
- Of *kakaobrain/karlo-v1-alpha* on Hugging Face, into *models/diffusion_models*: the folder *prior*'s \
*diffusion_pytorch_model.safetensors* (4.1 GB) as *{PRIOR}*

### Change
- **What it shows**: the text, once for all nodes that read it
- both seeds

### Keep
- **One embedding at a time**, *batch_size* 1: this model puts the embeddings of a batch into one picture.
- A prior and a decoder of the same CLIP. This one goes with ViT-L/14; *sd21-unclip-h* does not."""

PRIOR_TUNING_NOTE = """- **Another idea**: another *seed* in unCLIP Sample Prior.
- **Closer to the text**: more *candidates*; the one nearest to the text is kept. Then *cfg* of unCLIP Sample Prior.
- **Another drawing of the same idea**: the seed of the sampler. The prior does not run again.
- **What must not be in it**: *negative_text*. The priors were trained with an empty one.
- **Words at the end have no effect**: 75 tokens are read; the node says when there are more."""

SCORE_NOTE = """**unCLIP Sample Prior** shows how near the embedding is to the text, **unCLIP Embedding Score** how near the finished picture is, in \
the same CLIP's eyes. The first is high because the prior was trained to make it so; the second is what came of it. \
Compare scores of one text only."""

SAVED_EMBEDDING_NOTE = """**unCLIP Save Embedding** keeps what the prior made. To draw from it another day, un-mute **unCLIP Load Embedding** (Ctrl+M), \
pick the file, and draw its *embedding* to *unCLIPConditioning*."""

KARLO_NOTE = f"""## Text to picture with Karlo

DALL-E 2's way from a text to a picture, with Karlo's public weights: a prior makes the embedding of a picture, a decoder paints \
64 x 64 pixels from it, an upsampler paints them again at 256 x 256.

### Get
{KARLO_FILES}

{HEAD}
{PRIOR_FILE}
{DECODER_FILES}

And {TEXT_FILE}

### Change
- **What it shows**: the text, for the prior and for the decoder
- the seeds: of the idea (unCLIP Sample Prior), the painting (RandomNoise), the details (unCLIP Upsample)

### Keep
- **unCLIP Sampler**, 25 or 50 steps, *cfg* 8: as published. Core's samplers work as well.
- *steps* of unCLIP Upsample at 0, which is the published 7."""

SECOND_UPSAMPLER_NOTE = f"""DALL-E 2 has a second upsampler, from 256 to 1024 pixels. Nobody has published weights of one. If you have \
trained one in this layout, put it into *models/diffusion_models* (here *{SECOND_UPSAMPLER}*) and un-mute the three nodes (Ctrl+M). \
Otherwise ComfyUI's *Upscale Image (using Model)* takes the picture further."""

VARIATIONS_NOTE = f"""## Variations of a picture

Pictures that CLIP would describe as it describes yours. Your picture is opened in the decoder: its embedding says what it is \
about, and DDIM Invert finds the noise it comes from. Sampling from there with new noise on the way varies what the embedding does \
not hold.

{KARLO_GET}

### Change
- **Your picture**: the decoder sees its middle at 64 x 64, CLIP at 224 x 224
- *noise_seed*, and *amount* for how many

### Keep
- **One schedule** for DDIM Invert and both samplers.
- *add_noise* off: the latent is noise already."""

VARIATIONS_TUNING_NOTE = """- **Too close to the picture**: raise *eta*, up to 1.
- **Too far from it**: lower *eta*. At 0, with *cfg* 1, nothing is new: the picture comes back.
- **Vague**: raise *cfg*; 8 is what Karlo is drawn with.
- **Say more**: write into *text* of unCLIP Decoder Conditioning what the picture is of. It is empty for variations, as published.
- **From plain noise instead**: set *add_noise* on, and connect *Empty picture* (Empty Latent Image, 64 x 64) in place of \
DDIM Invert's latent."""

AGAIN_NOTE = """The same start, without new noise and at *cfg* 1, gives the picture back as far as the decoder knows it. \
**Compare Images** shows how far. When this fails, variations have nothing to do with your picture: look at the residual that DDIM \
Invert shows, and raise its *iterations*.

The schedule begins at sigma 32: above it the decoder's own schedule rises to 20000, where a picture is lost in rounding."""

MORPH_NOTE = f"""## Morph between two pictures

Goes from one picture to another in steps. Both things that a picture is made of move: its embedding, by unCLIP Embedding Slerp, and \
the noise it comes from, by Latent Slerp.

{KARLO_GET}

### Change
- **both pictures**. Both show ComfyUI's example until you choose yours.
- **Frames**: how many, the two pictures included
- *thetas* of both Slerp nodes alike: `0, 1` goes there, `0, 1, 0` there and back

### Keep
- **One schedule** for both inversions and the sampler, *euler*, *cfg* 1: then the first and the last frame are your pictures."""

MORPH_TUNING_NOTE = """- **Pale in the middle**: raise *cfg*. The ends then leave your pictures too.
- **Out of memory**: fewer frames. The decoder draws all of them together, the upsampler one by one with the same noise, so that \
details do not flicker.
- **The ends are not your pictures**: look at the residuals that both DDIM Invert show, and raise *iterations*.
- **Only the content is to change, not the noise**: connect one DDIM Invert's latent to both inputs of Latent Slerp."""

MIX_NOTE = """**unCLIP Embedding Mix** makes one embedding of both, and the decoder draws new pictures of it from plain noise, \
with the published sampler.

- *weights*: `1, 1` is half of each, `2, 1` more of the first, `1, -0.5` takes the second away.
- A third picture: connect its embedding to the next socket, and write a third weight.
- In words too: write into *text* of unCLIP Decoder Conditioning."""

DIFF_NOTE = f"""## Move a picture by words

Two texts differ by something; your picture's embedding moves by that difference, a little further in each picture. All start from \
the noise that your own picture comes from.

{KARLO_GET}

### Change
- **Your picture**: the decoder sees its middle at 64 x 64
- *base_text*: what it shows
- *text*: the same with what is to be different
- *thetas*: how far, one picture for each. 0 is your picture.

### Keep
- **One schedule** for DDIM Invert and the sampler, *euler*, *cfg* 1: then theta 0 gives your picture back."""

DIFF_TUNING_NOTE = """- **Too little changes**: higher *thetas*, up to 0.5 as in the paper; then *cfg* above 1, with which theta 0 leaves your picture too.
- **The picture is lost**: lower *thetas*.
- **The wrong thing changes**: make the texts alike but for the one thing. *base_text* `a photo` stands for anything.
- **Theta 0 is not your picture**: look at the residual that DDIM Invert shows, and raise *iterations*."""
