"""What all shipped workflows share: the files they open with, and their colours."""

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
FLOW_CHECKPOINT = "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors"
EXPERT = "DreamShaper_8_pruned.safetensors"
LORA, SECOND_LORA = "blindbox_v1_mix.safetensors", "pixel_art_sd15.safetensors"
SUBJECTS = "fastcomposer.bin"
UNCLIP = "sd21-unclip-l.ckpt"
PRIOR = "karlo_prior.safetensors"
DECODER, TEXT_PROJ = "karlo_decoder.safetensors", "karlo_text_proj.safetensors"
UPSAMPLER, LAST_UPSAMPLER = "karlo_super_res_first.safetensors", "karlo_super_res_last.safetensors"
SECOND_UPSAMPLER = "upsampler_256_to_1024.safetensors"
CLIP_L = "clip-vit-large-patch14.safetensors"  # text encoder and image encoder in one
FILES = {  # in models/
    "checkpoints": (CHECKPOINT, FLOW_CHECKPOINT, EXPERT, SUBJECTS, UNCLIP),
    "loras": (LORA, SECOND_LORA),
    "diffusion_models": (PRIOR, DECODER, TEXT_PROJ, UPSAMPLER, LAST_UPSAMPLER, SECOND_UPSAMPLER),
    "text_encoders": (CLIP_L,),
    "clip_vision": (CLIP_L,),
}
KARLO = "https://huggingface.co/kakaobrain/karlo-v1-alpha/resolve/main"
# Where the published ones are, for the dialog that ComfyUI shows when files are missing.
URLS = {
    CHECKPOINT: f"https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{CHECKPOINT}?download=true",
    EXPERT: f"https://huggingface.co/Lykon/DreamShaper/resolve/main/{EXPERT}",
    SUBJECTS: "https://huggingface.co/mit-han-lab/fastcomposer/resolve/main/pytorch_model.bin",
    UNCLIP: f"https://huggingface.co/stabilityai/stable-diffusion-2-1-unclip/resolve/main/{UNCLIP}",
    PRIOR: f"{KARLO}/prior/diffusion_pytorch_model.safetensors",
    DECODER: f"{KARLO}/decoder/diffusion_pytorch_model.safetensors",
    TEXT_PROJ: f"{KARLO}/text_proj/diffusion_pytorch_model.safetensors",
    UPSAMPLER: f"{KARLO}/super_res_first/diffusion_pytorch_model.safetensors",
    LAST_UPSAMPLER: f"{KARLO}/super_res_last/diffusion_pytorch_model.safetensors",
    CLIP_L: "https://huggingface.co/openai/clip-vit-large-patch14/resolve/main/model.safetensors",
}
FOLDERS = {  # of models/, by the loader
    "CheckpointLoaderSimple": "checkpoints",
    "PAL_LoadSubjectEncoder": "checkpoints",
    "unCLIPCheckpointLoader": "checkpoints",
    "LoraLoader": "loras",
    "CLIPLoader": "text_encoders",
    "CLIPVisionLoader": "clip_vision",
    "PAL_LoadPrior": "diffusion_models",
    "PAL_LoadUnCLIPDecoder": "diffusion_models",
    "PAL_LoadUpsampler": "diffusion_models",
}
PICTURE = "example.png"  # comes with ComfyUI
BLUE, GREEN, GOLD, RED, CYAN = "#3f789e", "#8A8", "#b58b2a", "#A88", "#8AA"
POSITIVE, NEGATIVE = "#232", "#322"  # title colours, as artists paint their prompts
