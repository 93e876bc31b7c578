from typing import Any

import numpy as np
import pytest
import torch

from pipeline.encoding.batch import encode_batch
from pipeline.key_noise import normal_noise
from pipeline.latents.identity import EncodeOptions
from pipeline.vae.posterior import DiagonalPosterior
from tests.support.small_store import LATENT_SHAPE, small_vae

KEYS = [f"k{n}" for n in range(4)]
VALID = np.ones(4, dtype=bool)
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), dtype=np.uint8))


def encode(vae: Any, images: Any = IMAGES, valid: Any = VALID, **options: Any) -> Any:
    given = EncodeOptions(**{"precision": "fp32", "batch_size": 4, "dtype": "float32", **options})
    return encode_batch(vae, images[:, None], KEYS, valid, given)


class Spoilt(torch.nn.Module):
    """The small model's posterior with one entry of image 1's mean set, under bf16 or always."""

    latent_shape = LATENT_SHAPE

    def __init__(self, value: float, only_bf16: bool) -> None:
        super().__init__()
        self.vae, self.value, self.only_bf16 = small_vae(), value, only_bf16

    def encode(self, images: Any) -> Any:
        found = self.vae.encode(images)
        if not self.only_bf16 or torch.is_autocast_enabled("cpu"):
            found.mean[1, 0, 0, 0] = self.value
        return found


@pytest.fixture
def posterior() -> DiagonalPosterior:
    with torch.inference_mode():
        posterior = small_vae().encode(IMAGES)
    assert isinstance(posterior, DiagonalPosterior)
    return posterior


def test_moments_are_those_of_the_model(posterior: DiagonalPosterior) -> None:
    found = encode(small_vae())
    np.testing.assert_array_equal(found.tensors["mean"], posterior.mean)
    np.testing.assert_array_equal(found.tensors["logvar"], posterior.log_variance)
    assert not found.refused
    assert not found.redone


def test_mean_only_stores_the_mean_only(posterior: DiagonalPosterior) -> None:
    found = encode(small_vae(), content="mean", dtype="float16")
    assert list(found.tensors) == ["mean"]
    np.testing.assert_array_equal(found.tensors["mean"], posterior.mean.numpy().astype(np.float16))


def test_a_sample_is_mean_plus_deviation_times_the_noise_of_its_key_and_seed(
    posterior: DiagonalPosterior,
) -> None:
    found = encode(small_vae(), content="sample", seed=5).tensors["sample"]
    noise = normal_noise(KEYS, 5, LATENT_SHAPE)
    expected = posterior.mean.numpy() + np.exp(posterior.log_variance.numpy() / 2) * noise
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(
        found, encode(small_vae(), content="sample", seed=6).tensors["sample"]
    )


def test_the_flipped_view_holds_the_latents_of_the_mirrored_image() -> None:
    found = encode(small_vae(), flip=True)
    mirrored = torch.from_numpy(IMAGES.numpy()[..., ::-1].copy())
    expected = encode(small_vae(), images=mirrored).tensors
    np.testing.assert_array_equal(found.tensors["mean_flipped"], expected["mean"])
    np.testing.assert_array_equal(found.tensors["logvar_flipped"], expected["logvar"])


@pytest.mark.parametrize(
    ("value", "reason"),
    [(float("nan"), "non_finite"), (float("inf"), "non_finite"), (7e4, "overflow")],
)
def test_what_is_not_finite_or_does_not_fit_the_type_is_refused_by_row(
    value: float, reason: str
) -> None:
    found = encode(Spoilt(value, only_bf16=False), dtype="float16")
    assert found.refused == {1: reason}
    assert np.isfinite(found.tensors["mean"][[0, 2, 3]]).all()


def test_seventy_thousand_fits_float32() -> None:
    assert encode(Spoilt(7e4, only_bf16=False)).refused == {}


def test_a_batch_that_overflows_in_bf16_is_computed_again_in_fp32_and_nothing_is_refused() -> None:
    found = encode(Spoilt(float("nan"), only_bf16=True), precision="bf16")
    exact = encode(small_vae())
    assert (found.redone, found.refused) == (True, {})
    np.testing.assert_array_equal(found.tensors["mean"], exact.tensors["mean"])


def test_padding_and_unreadable_images_are_never_judged() -> None:
    valid = np.array([True, False, True, True])
    assert encode(Spoilt(float("nan"), only_bf16=False), valid=valid).refused == {}


def test_a_bf16_batch_without_a_fault_is_computed_once_and_in_bf16() -> None:
    found = encode(small_vae(), precision="bf16")
    assert not found.redone
    assert not np.array_equal(found.tensors["mean"], encode(small_vae()).tensors["mean"])


def test_the_largest_number_of_float16_is_stored_and_the_next_is_refused() -> None:
    largest = 65504.0  # IEEE 754: (2 - 2**-10) * 2**15
    found = encode(Spoilt(largest, only_bf16=False), dtype="float16")
    assert found.refused == {}
    assert found.tensors["mean"][1, 0, 0, 0] == largest
    beyond = encode(
        Spoilt(float(np.nextafter(np.float32(largest), np.float32(np.inf))), only_bf16=False),
        dtype="float16",
    )
    assert beyond.refused == {1: "overflow"}
