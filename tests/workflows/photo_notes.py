"""What the shipped workflows say to the artist, in Markdown."""

from workflows.families import Family

RECONSTRUCT_NOTE = """## Invert and reconstruct

Finds the noise from which the model generates **your** picture, then reconstructs the picture from it. Nothing is edited \
here: this shows how exactly a picture can be reconstructed, which every edit depends on.

### Change
- the **checkpoint**: any SD1.5 model
- **Your picture**: its centre is cropped to 512 x 512

Then press Run. 50 steps cost at most 250 model calls to invert and 50 to sample.

### Keep
- **Guidance 1**: Basic Guider uses no guidance. With a CFG above 1 the picture changes.
- **The same scheduler, steps and prompt** for DDIM Invert and the sampler, and the sampler *euler*.

The path is saved in the output folder, under *trajectories*. Load Trajectory loads it again."""

EXACT_NOTE = """## Retrace a photo exactly

Inverts **your** picture with one model call per step and reconstructs it with one model call per step. Nothing is lost \
except what the VAE loses.

### Change
- the **checkpoint**: any SD1.5 model
- **Your picture**: its centre is cropped to 512 x 512

### Keep
- *method* **ddim** in DDIM Invert, and the sampler *euler*
- **The same scheduler and steps** for both

Compare Images compares the result with the picture after VAE Encode and VAE Decode alone. Plug-and-Play and Prompt-to-Prompt \
have the same as an option, *exact_retracing*. Edits do not come out better with it."""

FIGURES_NOTE = """**DDIM Invert** shows its residual. Below 2e-3 the picture is reconstructed well. If it says that steps did not \
converge, raise *iterations*.

**PSNR** of two pictures:

| dB | means |
|---|---|
| above 35 | you see no difference |
| 25 to 35 | fine detail is lost |
| below 20 | another picture |

**The VAE alone** is the best possible result. If both figures are equal, inversion lost nothing."""


def plug_and_play_note(family: Family) -> str:
    return f"""## Plug-and-Play on a photo{family.suffix}

Keeps the layout, shapes and pose of your picture while a new prompt redraws the rest: material, style, season, \
animal, light.

{family.files}### Change
{family.change}- **Your picture**: its centre is cropped to {family.size} x {family.size}
- **What it becomes**: the whole new picture in one sentence, its subject too: *a snow sculpture of a cat on a sofa*, \
not *make it snow*
- **What it looks like now**: a few words for the old look, such as *a photo of a cat*, or nothing

Then press Run. The first run inverts the picture. If you change only the prompts, the next runs only sample.

### Keep
- **The same scheduler and steps** for DDIM Invert and the sampler: both take them from one node. {family.steps} steps, *euler*.
- The **source prompt empty**."""


CAPTURE_NOTE = """It evaluates the source once and keeps what Plug-and-Play needs, about 340 MB of memory at this size; each edit then \
costs no more than plain sampling. Delete it if you make only one edit or if memory is short: the picture stays the same \
except for rounding."""


def tuning_note(family: Family) -> str:
    return f"""- **Too much of the old picture**: lower *attention_end* first, then *feature_end*. If you use Capture Features, \
change both nodes.
- **The shapes drift**: raise them. *feature_end* keeps the shapes, *attention_end* the layout; at 1 they are \
kept to the last step.
- **The old colours stay**: write them into **What it looks like now**. Negative Schedule fades these words in, from \
the empty prompt in the first step to the words alone in the last. Its *empty_weight* at 0 uses the words from the first step, \
which is stronger.
- **Too weak or too harsh**: change *cfg*, {family.cfg} here.
- **An error about levels of the trajectory**: the scheduler or its steps differ between the inversion and the sampler."""


GENERATED_NOTE = """## Edit a generated picture

Generates a picture, then a second one from other words with the same layout. **Sample Trajectory** records the path from \
noise to picture, so nothing has to be inverted.

### Change
- the **checkpoint**: any SD1.5 model
- the **first prompt**, and *noise_seed* until you like the picture
- the **new prompt**: the whole new picture in one sentence

The first picture stays as it is while you try new prompts: only the second one is sampled again.

### When the edit is not what you want
- **Too much of the old picture**: lower *attention_end*, then *feature_end*.
- **The shapes drift**: raise them.

**Trajectory Start** gives the second sampler noise, sigmas and size, so that nothing has to be set twice."""

SAVED_PATH_NOTE = """*Invert and reconstruct* saves its path. To edit that picture here, un-mute **Load Trajectory** \
(Ctrl+M), choose the file, and connect its output to *Plug-and-Play* and *Trajectory Start*. Mute *Before* and all nodes of \
group 2 except the negative prompt."""


def swap_note(family: Family) -> str:
    return f"""## Swap a word in a photo{family.suffix}

Inverts your picture and samples it again with one word of its description replaced.

{family.files}### Change
{family.change}- **Your picture**: its centre is cropped to {family.size} x {family.size}
- *source_text*, the upper box: one sentence about it
- *target_text*, the lower box: the same sentence with another word in its place
- *blend_words*: the words whose area may change; everything else is kept. A click on a word's chip adds or removes it.

Then press Run. The first run inverts the picture. The next ones only sample, whatever you write.

**Before and after**, in group 5 below: drag the line. The dark picture below it shows the difference, made stronger."""


def swap_keep_note(family: Family) -> str:
    between = "unchanged"
    if family.guidance:
        between = (
            "through FluxGuidance only, which sets the guidance. *cfg* stays **1**: the *negative* is not used then"
        )
    return f"""- **The same steps and scheduler** in BasicScheduler and in KSampler (Advanced), with the sampler *euler*. If they differ, \
Prompt-to-Prompt gives an error.
- *add_noise* **disable** (in Nodes 2.0 under *Show advanced inputs*): the latent of DDIM Invert is noisy already.
- Connect **Empty prompt** to DDIM Invert and to *negative*.
- Connect *target* to *positive*, {between}."""


REFINE_NOTE = """## Add words to a photo

Like *Swap a word in a photo*, with words added: *refine* matches the two sentences. Words that both have keep their attention, \
and new words get their own.

### Change
- the **checkpoint**, **your picture** and **what it shows**
- *target_text*: the same sentence with words added or left out"""

REWEIGHT_NOTE = """## Reweight a word in a photo

Both sentences are the same; *reweight* makes words count more or less: *pink: 3* for more of it, *pink: -1* for the opposite. \
Separate several by commas.

### Change
- the **checkpoint** and **your picture**
- **What it shows** and *target_text*: the same sentence
- *reweight*: stay between -2 and about 4"""

BY_WORDS_NOTE = """- **The same cfg** in Null-Text Optimize and CFG Guider: its result is valid for one value only.
- **The same scheduler and steps** for all nodes, from one node. The sampler *euler*.
- Connect *target* to the guider unchanged.

The first run inverts the picture and finds a negative prompt for every step with which guidance reconstructs your picture. As \
long as your picture and **what it shows** do not change, the next runs only sample.

**Null-Text Optimize** shows how exactly the picture's latent is reconstructed, as PSNR. The method *null_text* is the published \
optimisation: it is slower and needs memory for gradients. Its result is saved in the output folder, under *conditionings*. To use it \
on another day, un-mute **Load Conditioning** (Ctrl+M), choose the file, connect it to *CFG Guider* and mute *Null-Text Optimize*."""


def blend_note(family: Family) -> str:
    return f"""- **Too little changes**: lower *self_end* first, then *cross_end*, in Prompt-to-Prompt; write more *blend_words*.
- **The composition is lost**: raise them.
- **Other areas change too**: write *blend_words*, or raise *blend_threshold*.
- **Harsh colours or bright edges**: lower {family.strength}.
- **An error about a word**: write it exactly as it is in the sentence."""


def mask_note(family: Family) -> str:
    return f"""## Mask by a word, then inpaint{family.suffix}

Finds where a word is in your picture, from the model's own attention to it, and inpaints that area with ComfyUI's own \
nodes.

{family.files}### Change
{family.change}- **Your picture**: its centre is cropped to {family.size} x {family.size}
- **What it shows**, and the same sentence in Attention Mask
- *words*: words of that sentence that the mask should cover
- **What it becomes**

Then press Run. The inversion is needed only to find the words; 20 steps are enough for it."""


MASK_TUNING_NOTE = """- **Too small or too large**: set *threshold*: 0 finds a level by itself, higher values make it smaller. *Grow Mask* \
makes it some pixels wider.
- **It covers other things too**: name them in the sentence, so that they have words of their own.
- **It covers only an outline**: lower *end*, to read fewer of the late steps."""
