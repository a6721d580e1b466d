"""What all shipped workflows share: the checkpoint and picture they open with, and their colours."""

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
PICTURE = "example.png"  # comes with ComfyUI
BLUE, GREEN, GOLD, RED, CYAN = "#3f789e", "#8A8", "#b58b2a", "#A88", "#8AA"
POSITIVE, NEGATIVE = "#232", "#322"  # title colours, as artists paint their prompts
