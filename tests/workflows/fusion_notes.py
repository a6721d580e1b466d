"""What the shipped workflows with two models, and with subjects, say to the artist, in Markdown."""

FASTCOMPOSER = """FastComposer's *pytorch_model.bin* (4.5 GB; *mit-han-lab/fastcomposer* on Hugging Face), into \
*models/checkpoints* under the name *fastcomposer.bin*."""

TWO_CHECKPOINTS_NOTE = """## Two checkpoints, one picture

Two models draw one picture together. In every step each place goes to the model whose guidance has more to say there: a \
knight from one, the market square from the other.

### Get
Two SD1.5 checkpoints, into *models/checkpoints*. The two here are examples, both on Hugging Face: \
*v1-5-pruned-emaonly-fp16.safetensors* (*Comfy-Org/stable-diffusion-v1-5-archive*) and *DreamShaper_8_pruned.safetensors* \
(*Lykon/DreamShaper*).

### Change
- the **general model**: any SD1.5 checkpoint; it has all places that the expert does not take
- the **expert**: an SD1.5 checkpoint that knows something the general model does not
- **both prompts**: the same words to begin with. Leave out of one model's prompt what it should not draw.

Then press Run. A step costs what both models' steps cost; ComfyUI moves them in and out of the graphics memory.

### Keep
- Every prompt with **the CLIP of its own model**.
- The picture is decoded by the **general model's VAE**."""

LORA_NOTE = """## A checkpoint and its LoRA, one picture

The same as *Two checkpoints, one picture*, with a LoRA of the checkpoint as the expert. A LoRA in the usual place changes \
the whole picture; here it draws only where its guidance has more to say.

### Get
A LoRA made for SD1.5, into *models/loras*. The one here is an example: *blindbox_v1_mix.safetensors*, of *blindbox* on Civitai.

### Change
- the **general model**: any SD1.5 checkpoint
- the **LoRA**, made for SD1.5
- **both prompts**: the LoRA's trigger words go into the expert's only

Then press Run. The expert takes as much memory as a second checkpoint.

### Keep
- Both models from **one checkpoint loader**, and the expert's prompts with **the LoRA's CLIP**."""

TWO_LORAS_NOTE = """## Two LoRAs, each in its place

Two LoRAs on one model mix everywhere. Here each is an expert of its own, and every place goes to the plain checkpoint, the first \
LoRA or the second, whichever has the most to say.

### Get
Two LoRAs made for SD1.5, into *models/loras*. *blindbox_v1_mix.safetensors* is of *blindbox* on Civitai; \
*pixel_art_sd15.safetensors* stands for any other.

### Change
- the **general model**: any SD1.5 checkpoint
- **both LoRAs**, made for SD1.5
- the **prompts**: each LoRA's trigger words go into its own only

Then press Run. A step costs three times as much as a plain one, and each model takes its own memory.

### One more
**Fusion Expert** holds the second one. A third is another Fusion Expert in the next socket of *experts*. Each has its own guidance, \
window and mask."""

FUSION_TUNING_NOTE = """- **Too little of the expert**: lower *sharpness_expert*, or raise *sharpness_general*.
- **Too much of it**: the opposite, or begin later with *start_percent*.
- **In the wrong place**: connect a *mask*. With *restrict* the expert stays inside it, with *force* it always draws there.
- **Hard seams**: set *mode* to *soft*.

The preview shows the expert's places in orange while it draws."""

FUSION_MAP_NOTE = """**Saliency Map** asks the models once more, at one *step* of the path just drawn: which places are the expert's, and how \
much each model has to say, the general one first."""

SUBJECT_NOTE = f"""## A subject in a scene

Puts the person of a picture into a new scene. The scene model lays the picture out, then both models share it, then the subject \
model finishes it.

### Get
{FASTCOMPOSER} Face-diffuser's SDM (*CodeGoat24/Face-diffuser*) works in its place.

### Change
- the **scene model**: any SD1.5 checkpoint
- **your subject**: a picture cropped to the face. The published files were trained on people.
- *text*: the scene, with `<|image|>` right after the noun of the subject

Then press Run. 50 steps cost 130 model rows; plain sampling costs 100.

### Keep
- A **deterministic sampler** such as *euler*.
- *positive* and *positive_subject* from the same **Subject Conditioning**."""

TWO_SUBJECTS_NOTE = f"""## Two subjects in one picture

As *A subject in a scene*, with a second reference. The first picture belongs to the first `<|image|>`, the second to the second; \
up to four of each.

### Get
{FASTCOMPOSER}

### Change
- the **scene model**: any SD1.5 checkpoint
- **both subjects**: pictures cropped to the face, of any size. Both show ComfyUI's example until you choose yours.
- *text*: one `<|image|>` right after each subject's noun

Then press Run. Subject Conditioning shows which noun got which picture."""

DELAYED_NOTE = f"""## Delayed subject, one model

Puts the person of a picture into a new scene with one model: the first steps follow the plain prompt, which lays out the scene, \
and the others follow the prompt with the subject in it.

### Get
{FASTCOMPOSER} It is the only file needed.

### Change
- **your subject**: a picture cropped to the face
- *text*: the scene, with `<|image|>` right after the noun of the subject

Then press Run. It costs what plain sampling costs."""

DELAY_NOTE = """**First the scene** ends where **then the subject** begins: give both the same percent. 0.22 is the published \
choice.

- **Too little likeness**: lower it in both.
- **The scene is lost**: raise it in both, to 0.32 or more."""

BORDERS_NOTE = """- **Too little likeness**: lower *scene_end* and *fusion_end*.
- **The scene is lost**: raise them.
- **Look at it**: while both models share the picture the preview shows the subject's places in orange. *Saliency Map* shows them \
at one *step*; with 50 steps they share steps 15 to 29.
- **The background of your picture comes along**: crop it closer, or connect a *mask* that is white on the subject. Load Image \
gives masks white where the picture is transparent: put *Invert Mask* between."""
