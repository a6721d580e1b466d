"""What the shipped workflows say to the artist, in Markdown."""

RECONSTRUCT_NOTE = """## Invert and reconstruct

Finds the noise from which the model draws **your** picture, then draws it again. Nothing is edited here: this shows \
whether a picture survives the trip, which every edit depends on.

### Change
- the **checkpoint**: any SD1.5 model
- **Your picture**: its middle is cut to 512 x 512

Then press Run. 50 steps cost at most 250 model calls to invert and 50 to draw.

### Keep
- **Guidance stays at 1**: Basic Guider has none. With a CFG above 1 the model leaves the path, and the picture changes.
- **The same scheduler, steps and prompt** for DDIM Invert and the sampler, and the sampler *euler*.

The path is saved in the output folder, under *trajectories*; Load Trajectory opens it again."""

EXACT_NOTE = """## Retrace a photo exactly

Inverts **your** picture with one model call a step and draws it again with one model call a step, and loses nothing on the way \
but what the VAE loses.

### Change
- the **checkpoint**: any SD1.5 model
- **Your picture**: its middle is cut to 512 x 512

### Keep
- *method* **ddim** in DDIM Invert, and the sampler *euler*
- **The same scheduler and steps** for both

Compare Images holds the result against what the VAE alone makes of the picture. Plug-and-Play and Prompt-to-Prompt have the same as \
an option, *exact_retracing*: it keeps more of the picture and lets fewer edits through."""

FIGURES_NOTE = """**DDIM Invert** shows its residual. Below 2e-3 the path is retraced; when it says that it did not \
converge, raise *iterations*.

**PSNR** of two pictures:

| dB | means |
|---|---|
| above 35 | you see no difference |
| 25 to 35 | fine detail is lost |
| below 20 | another picture |

**The VAE alone** is the best there is to have. When both figures are equal, inversion lost nothing."""

PLUG_AND_PLAY_NOTE = """## Plug-and-Play on a photo

Keeps the layout, shapes and pose of your picture and lets a new prompt redraw the rest: material, style, season, \
animal, light.

### Change
- the **checkpoint**: any SD1.5 model
- **Your picture**: its middle is cut to 512 x 512
- **What it becomes**: the whole new picture in one sentence, its subject too: *a snow sculpture of a cat on a sofa*, \
not *make it snow*
- **What it looks like now**: a few words for the old look, such as *a photo of a cat*, or nothing

Then press Run. The first run inverts the picture; the next ones only draw, as long as only the prompts change.

### Keep
- **The same scheduler and steps** for DDIM Invert and the sampler: both take them from one node. 50 steps, *euler*.
- The **source prompt empty**."""

CAPTURE_NOTE = """It reads the source once and keeps what Plug-and-Play needs, about 340 MB of memory at this size; each edit then costs \
no more than plain sampling. Delete it when you make only one edit or when memory is short: the picture stays the same \
but for rounding."""

TUNING_NOTE = """- **Too much of the old picture**: lower *attention_end* first, then *feature_end*, in Capture Features \
and in Plug-and-Play.
- **The shapes drift**: raise them in both. *feature_end* holds the shapes, *attention_end* the layout; at 1 they are \
held to the last step.
- **The old colours stay**: write them into **What it looks like now**. Negative Schedule fades these words in, from \
the empty prompt in the first step to the words alone in the last. Its *empty_weight* at 0 uses the words from the first step, \
which is stronger.
- **Too weak or too harsh**: change *cfg*, 7.5 here.
- **An error about levels of the trajectory**: the scheduler or its steps differ between the inversion and the sampler."""

GENERATED_NOTE = """## Edit a generated picture

Draws a picture, then draws it again from other words with the same layout. **Sample Trajectory** keeps the path from \
noise to picture, so there is nothing to invert.

### Change
- the **checkpoint**: any SD1.5 model
- the **first prompt**, and *noise_seed* until you like the picture
- the **new prompt**: the whole new picture in one sentence

The first picture stays as it is while you try new prompts: only the second one is drawn again.

### When the edit is not what you want
- **Too much of the old picture**: lower *attention_end*, then *feature_end*.
- **The shapes drift**: raise them.

**Trajectory Start** gives the second sampler noise, sigmas and size, so that nothing has to be set twice."""

SAVED_PATH_NOTE = """*Invert and reconstruct* saves its path. To edit that picture here, un-mute **Load Trajectory** \
(Ctrl+M), pick the file, and draw its output to *Plug-and-Play* and *Trajectory Start*. Mute the nodes of group 2 but \
the negative prompt, and *Before*."""

SWAP_NOTE = """## Swap a word in a photo

Opens your picture in the model and draws it again with a word of its description exchanged.

### Change
- the **checkpoint**: any SD1.5 model
- **Your picture**: its middle is cut to 512 x 512
- *source_text*: one sentence about it
- *target_text*: the same sentence with another word in its place
- *blend_words*: the words whose place may change; everything else stays the picture's

Then press Run. The first run inverts the picture. The next ones only draw, whatever you write.

**Encode Prompt Edit** shows what happens to each word, **Before and after** what happened to the picture."""

SWAP_KEEP_NOTE = """- **The same steps and scheduler** in Basic Scheduler and in KSampler (Advanced), with the sampler *euler*. If they differ, \
Prompt-to-Prompt says so.
- *add_noise* **disable**: what DDIM Invert gives is noisy already.
- **Empty prompt** goes to DDIM Invert and to *negative*.
- *target* goes to *positive*, just as it comes."""

REFINE_NOTE = """## Add words to a photo

As *Swap a word in a photo*, with words added: *refine* aligns the two sentences, the words both have keep the attention they \
had, and new words find their own.

### Change
- the **checkpoint**, **your picture** and **what it shows**
- *target_text*: the same sentence with words added or left out"""

REWEIGHT_NOTE = """## Reweight a word in a photo

Both sentences are the same; *reweight* makes words of it count more or less: *pink: 3* for more of it, *pink: -1* against it, \
several with commas.

### Change
- the **checkpoint** and **your picture**
- **What it shows** and *target_text*: the same sentence
- *reweight*: stay within -2 and 4 or so"""

BY_WORDS_NOTE = """- **The same cfg** in Null-Text Optimize and CFG Guider: what it finds holds for one value.
- **The same scheduler and steps** for all: one node gives them. The sampler *euler*.
- *target* to the guider, just as it comes.

The first run inverts the picture and finds a negative prompt for every step, so that guidance gives your picture back. As long \
as your picture and **what it shows** stay, the next runs only draw.

**Null-Text Optimize** shows how close guidance comes to the picture's latent, as PSNR. The method *null_text* is the published \
optimisation: slower, and needs memory for gradients. What it finds is saved in the output folder, under *conditionings*. To use it on \
another day, un-mute **Load Conditioning** (Ctrl+M), pick the file, connect it to *CFG Guider* and mute *Null-Text Optimize*."""

BLEND_NOTE = """- **Too little changes**: lower *self_end* first, then *cross_end*, in Prompt-to-Prompt; widen *blend_words*.
- **The picture falls apart**: raise them.
- **Places change that should not**: write *blend_words*, or raise *blend_threshold*.
- **An error about a word**: it must stand in the sentence as you write it."""

MASK_NOTE = """## Mask by a word, then inpaint

Finds where a word is in your picture, by the model's own attention to it, and paints that place anew with ComfyUI's own \
nodes.

### Change
- the **checkpoint**: any SD1.5 model
- **Your picture**: its middle is cut to 512 x 512
- **What it shows**, and the same sentence in Attention Mask
- *words*: what the mask is to cover, words of that sentence
- **What it becomes**

Then press Run. The inversion is only there to be read; 20 steps are enough for it."""

MASK_TUNING_NOTE = """- **Too small or too large**: set *threshold*: 0 finds a level by itself, higher values make it smaller. *Grow Mask* \
widens it by some pixels.
- **Other things are in it**: name them in the sentence too, so that they have words of their own.
- **Only an outline is in it**: read fewer of the late steps: lower *end*."""
