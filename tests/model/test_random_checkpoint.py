"""The checkpoint the server and browser rings load is what they take it for."""

import comfy.sd
import pytest
import torch
from support.fixtures import checkpoints

pytestmark = [pytest.mark.model, pytest.mark.compat]


def test_random_sd15_is_detected_as_sd15_and_stays_finite():
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoints.sd15()))

    assert type(model.model.model_config).__name__ == "SD15"
    assert len(model.model.diffusion_model.output_blocks) == 12
    with torch.inference_mode():
        empty, text = (
            clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0] for prompt in ("", "a red circle")
        )
        assert empty.shape == text.shape == (1, 77, 768)
        latent = vae.encode(torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0)))
        assert latent.shape == (1, 4, 8, 8)
        picture = vae.decode(latent)
        assert picture.shape == (1, 64, 64, 3)
        assert 0.1 < picture.mean() < 0.9

        comfy.model_management.load_model_gpu(model)
        unet, timestep = model.model.diffusion_model, torch.tensor([500.0])
        eps, other = (unet(latent, timestep, context=context) for context in (empty, text))
        assert 0.05 < eps.std() < 1
        assert (eps - other).std() > 0.01  # the prompt matters
