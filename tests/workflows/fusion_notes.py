"""What the shipped workflows with two models, and with subjects, say to the artist, in Markdown."""

FASTCOMPOSER = """FastComposer's *pytorch_model.bin* (4.5 GB; *mit-han-lab/fastcomposer* on Hugging Face), into \
*models/checkpoints* under the name *fastcomposer.bin*."""

TWO_CHECKPOINTS_NOTE = """## Two checkpoints, one picture

Two models draw one picture together. At every step each pixel goes to the model whose guidance is stronger there: a \
knight from one, the market square from the other.

### Get
Two SD1.5 checkpoints, into *models/checkpoints*. The two here are examples, both on Hugging Face: \
*v1-5-pruned-emaonly-fp16.safetensors* (*Comfy-Org/stable-diffusion-v1-5-archive*) and *DreamShaper_8_pruned.safetensors* \
(*Lykon/DreamShaper*).

### Change
- the **general model**: any SD1.5 checkpoint; it draws everything that the expert does not draw
- the **expert**: an SD1.5 checkpoint that knows something the general model does not
- **both prompts**: start with the same words. Leave out of a model's prompt what it should not draw.

Then press Run. A step costs as much as one step of each model; ComfyUI manages their memory.

### Keep
- Encode every prompt with **the CLIP of its own model**.
- Decode the picture with the **general model's VAE**."""

LORA_NOTE = """## A checkpoint and its LoRA, one picture

The same as *Two checkpoints, one picture*, with a LoRA of the checkpoint as the expert. A LoRA used the normal way changes \
the whole picture; here it draws only where its guidance is stronger.

### Get
A LoRA made for SD1.5, into *models/loras*. The one here is an example: *blindbox_v1_mix.safetensors*, from *blindbox* on Civitai.

### Change
- the **general model**: any SD1.5 checkpoint
- the **LoRA**, made for SD1.5
- **both prompts**: write the LoRA's trigger words into the expert's prompt only

Then press Run. The expert takes as much memory as a second checkpoint.

### Keep
- Both models from **one checkpoint loader**, and the expert's prompts encoded with **the LoRA's CLIP**."""

TWO_LORAS_NOTE = """## Two LoRAs, each in its place

Two LoRAs on one model mix everywhere. Here each LoRA is an expert of its own, and every pixel goes to the plain checkpoint, the \
first LoRA or the second, depending on whose guidance is strongest there.

### Get
Two LoRAs made for SD1.5, into *models/loras*. *blindbox_v1_mix.safetensors* is from *blindbox* on Civitai; \
*pixel_art_sd15.safetensors* stands for any other.

### Change
- the **general model**: any SD1.5 checkpoint
- **both LoRAs**, made for SD1.5
- the **prompts**: write each LoRA's trigger words into its own prompt only

Then press Run. A step costs three times as much as a plain one, and each model needs its own memory.

### One more
**Fusion Expert** holds the second LoRA. For a third, connect another Fusion Expert to the next socket of *experts*. Each has its own \
guidance, time window and mask."""

FUSION_TUNING_NOTE = """- **Too little of the expert**: lower *sharpness_expert*, or raise *sharpness_general*.
- **Too much of it**: do the opposite, or start it later with *start_percent*.
- **In the wrong area**: connect a *mask*. With *restrict* the expert draws only inside it, with *force* it always draws there.
- **Hard seams**: set *mode* to *soft*.

While sampling, the preview shows the expert's area in orange."""

FUSION_MAP_NOTE = """**Saliency Map** evaluates the models once more, at one *step* of this picture's path. It shows the expert's area, and how \
salient each model is, the general model first."""

SUBJECT_NOTE = f"""## A subject in a scene

Puts the person of a picture into a new scene. The scene model starts the picture, then both models share it, then the subject \
model finishes it.

### Get
{FASTCOMPOSER} Face-diffuser's SDM (*CodeGoat24/Face-diffuser*) works too.

### Change
- the **scene model**: any SD1.5 checkpoint
- **your subject**: a picture cropped to the face. The published files were trained on people.
- *text*: the scene, with `<|image|>` right after the noun of the subject

Then press Run. 50 steps evaluate 130 rows; plain sampling evaluates 100.

### Keep
- A **deterministic sampler** such as *euler*.
- *positive* and *positive_subject* from the same **Subject Conditioning**."""

TWO_SUBJECTS_NOTE = f"""## Two subjects in one picture

Like *A subject in a scene*, with a second reference. The first picture belongs to the first `<|image|>`, the second to the second; \
up to four.

### Get
{FASTCOMPOSER}

### Change
- the **scene model**: any SD1.5 checkpoint
- **both subjects**: pictures cropped to the face, of any size. Both show ComfyUI's example until you choose yours.
- *text*: one `<|image|>` right after each subject's noun

Then press Run. Subject Conditioning shows which noun got which picture."""

DELAYED_NOTE = f"""## Delayed subject, one model

Puts the person of a picture into a new scene with one model: the first steps use the plain prompt, which lays out the scene, \
and the others use the prompt with the subject in it.

### Get
{FASTCOMPOSER} It is the only file needed.

### Change
- **your subject**: a picture cropped to the face
- *text*: the scene, with `<|image|>` right after the noun of the subject

Then press Run. It costs as much as plain sampling."""

DELAY_NOTE = """**First the scene** must end where **then the subject** begins: use the same number in both. 0.22 is the published \
value.

- **Too little likeness**: lower it in both.
- **The scene is lost**: raise it in both, to 0.32 or more."""

BORDERS_NOTE = """- **Too little likeness**: lower *scene_end* and *fusion_end*.
- **The scene is lost**: raise them.
- **Look at it**: while both models share the picture, the preview shows the subject's area in orange. *Saliency Map* shows it \
at one *step*; of 50 steps they share steps 15 to 29.
- **The background of your picture appears**: crop it closer, or connect a *mask* that is white on the subject. The mask of Load \
Image is white where the picture is transparent: put *Invert Mask* after it."""
