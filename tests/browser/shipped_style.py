"""What all shipped workflows share: the files they open with, and their colours."""

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
EXPERT = "DreamShaper_8_pruned.safetensors"
LORA, SECOND_LORA = "blindbox_v1_mix.safetensors", "pixel_art_sd15.safetensors"
SUBJECTS = "fastcomposer.bin"
FILES = {"checkpoints": (CHECKPOINT, EXPERT, SUBJECTS), "loras": (LORA, SECOND_LORA)}  # in models/
PICTURE = "example.png"  # comes with ComfyUI
BLUE, GREEN, GOLD, RED, CYAN = "#3f789e", "#8A8", "#b58b2a", "#A88", "#8AA"
POSITIVE, NEGATIVE = "#232", "#322"  # title colours, as artists paint their prompts
