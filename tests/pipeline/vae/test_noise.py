import numpy as np
import pytest
import torch

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.vae import VAE, build_vae, draw_noise
from pipeline.vae.noise import slot_generator


def vae(likelihood: str = "gaussian") -> VAE:
    return build_vae(
        ModelConfig(latent_channels=6, width=8, likelihood=likelihood),
        PreprocessConfig(image_size=8, channels=1),
    )


def test_a_slot_draws_the_same_whatever_rank_holds_it() -> None:
    whole = draw_noise(vae(), 3, 17, range(8))
    for slots in (range(5), range(5, 8), [7, 2]):
        part = draw_noise(vae(), 3, 17, slots)
        assert torch.equal(part.posterior, whole.posterior[list(slots)])
        assert torch.equal(part.pixels, whole.pixels[list(slots)])


def test_seed_step_and_slot_each_change_the_draw() -> None:
    draws = {
        slot_generator(*place).standard_normal()
        for place in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2**40, 0), (-1, 0, 0))
    }
    assert len(draws) == 6


def test_noise_is_standard_normal_and_uniform() -> None:
    noise = draw_noise(vae(), 0, 0, range(4000))
    assert noise.posterior.shape == (4000, 6, 1, 1)
    assert float(noise.posterior.mean()) == pytest.approx(0, abs=0.03)
    assert float(noise.posterior.std()) == pytest.approx(1, abs=0.02)
    assert float(noise.pixels.min()) >= 0
    assert float(noise.pixels.max()) < 1
    assert float(noise.pixels.mean()) == pytest.approx(0.5, abs=0.01)
    flat = noise.posterior.flatten(1).numpy()
    assert float(np.abs(np.corrcoef(flat[:-1, 0], flat[1:, 0])[0, 1])) < 0.06


def test_k_samples_per_image_come_after_the_image_axis() -> None:
    noise = draw_noise(vae(), 0, 1, range(3), samples=4)
    assert noise.posterior.shape == (3, 4, 6, 1, 1)
    assert torch.equal(noise.posterior[1:], draw_noise(vae(), 0, 1, [1, 2], samples=4).posterior)


def test_a_likelihood_without_pixel_noise_takes_no_memory_for_it() -> None:
    noise = draw_noise(vae("logistic"), 0, 1, range(3))
    assert noise.pixels.shape == (3, 1, 8, 8)
    assert noise.pixels.untyped_storage().nbytes() == 4
