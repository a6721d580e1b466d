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
FLUX, FLUX_CLIP_L, T5XXL = "flux1-dev.safetensors", "clip_l.safetensors", "t5xxl_fp16.safetensors"
AE = "ae.safetensors"  # the VAE of Flux and of Z-Image
QWEN_IMAGE, QWEN_IMAGE_TEXT = "qwen_image_fp8_e4m3fn.safetensors", "qwen_2.5_vl_7b_fp8_scaled.safetensors"
QWEN_IMAGE_VAE = "qwen_image_vae.safetensors"
Z_IMAGE, Z_IMAGE_TEXT = "z_image_bf16.safetensors", "qwen_3_4b.safetensors"
FILES = {  # in models/
    "checkpoints": (CHECKPOINT, FLOW_CHECKPOINT, EXPERT, SUBJECTS, UNCLIP),
    "loras": (LORA, SECOND_LORA),
    "diffusion_models": (
        *(PRIOR, DECODER, TEXT_PROJ, UPSAMPLER, LAST_UPSAMPLER, SECOND_UPSAMPLER),
        *(FLUX, QWEN_IMAGE, Z_IMAGE),
    ),
    "text_encoders": (CLIP_L, FLUX_CLIP_L, T5XXL, QWEN_IMAGE_TEXT, Z_IMAGE_TEXT),
    "vae": (AE, QWEN_IMAGE_VAE),
    "clip_vision": (CLIP_L,),
}
KARLO = "https://huggingface.co/kakaobrain/karlo-v1-alpha/resolve/main"
COMFY_ORG = "https://huggingface.co/Comfy-Org"
FLUX_TEXT = "https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main"
QWEN_FILES = f"{COMFY_ORG}/Qwen-Image_ComfyUI/resolve/main/split_files"
# Where the published ones are, for the dialog that ComfyUI shows when files are missing.
URLS = {
    CHECKPOINT: f"{COMFY_ORG}/stable-diffusion-v1-5-archive/resolve/main/{CHECKPOINT}?download=true",
    FLOW_CHECKPOINT: f"{COMFY_ORG}/stable-diffusion-3.5-fp8/resolve/main/{FLOW_CHECKPOINT}?download=true",
    FLUX: f"{COMFY_ORG}/flux1-dev/resolve/main/{FLUX}",
    FLUX_CLIP_L: f"{FLUX_TEXT}/{FLUX_CLIP_L}",
    T5XXL: f"{FLUX_TEXT}/{T5XXL}",
    AE: f"{COMFY_ORG}/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/{AE}",
    QWEN_IMAGE: f"{QWEN_FILES}/diffusion_models/{QWEN_IMAGE}",
    QWEN_IMAGE_TEXT: f"{QWEN_FILES}/text_encoders/{QWEN_IMAGE_TEXT}",
    QWEN_IMAGE_VAE: f"{QWEN_FILES}/vae/{QWEN_IMAGE_VAE}",
    Z_IMAGE: f"{COMFY_ORG}/z_image/resolve/main/split_files/diffusion_models/{Z_IMAGE}",
    Z_IMAGE_TEXT: f"{COMFY_ORG}/z_image_turbo/resolve/main/split_files/text_encoders/{Z_IMAGE_TEXT}",
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
    "DualCLIPLoader": "text_encoders",
    "UNETLoader": "diffusion_models",
    "VAELoader": "vae",
    "CLIPVisionLoader": "clip_vision",
    "PAL_LoadPrior": "diffusion_models",
    "PAL_LoadUnCLIPDecoder": "diffusion_models",
    "PAL_LoadUpsampler": "diffusion_models",
}
PICTURE = "example.png"  # comes with ComfyUI
BLUE, GREEN, GOLD, RED, CYAN = "#3f789e", "#8A8", "#b58b2a", "#A88", "#8AA"
POSITIVE, NEGATIVE = "#232", "#322"  # title colours, as artists paint their prompts
