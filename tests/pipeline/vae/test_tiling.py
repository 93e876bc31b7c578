import pytest
import torch

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.errors import ModelError
from pipeline.vae import VAE, build_vae
from pipeline.vae.tiling import decode_tiled, encode_tiled, tiling_error


@pytest.fixture(scope="module")
def vae() -> VAE:
    torch.manual_seed(0)
    config = ModelConfig(kind="autoencoder_kl", width=32, factor=4)
    return build_vae(config, PreprocessConfig(image_size=64)).eval()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """Smooth, as photos are: noise would tell tiles apart by its edges alone."""
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(small, (96, 128), mode="bicubic").clamp(0, 1)
    return (large[0] * 255).round().to(torch.uint8)


def test_one_tile_is_the_image_itself(vae: VAE, image: torch.Tensor) -> None:
    square = image[None, :, :, :96]
    with torch.no_grad():
        whole, tiled = vae.encode(square), encode_tiled(vae, square, 96, 16)
        assert torch.equal(whole.mean, tiled.mean)
        assert torch.equal(vae.decode(whole.mean), decode_tiled(vae, whole.mean, 96, 16))


def test_tiles_cover_images_of_any_size(vae: VAE, image: torch.Tensor) -> None:
    with torch.no_grad():
        posterior = encode_tiled(vae, image[None], 48, 16)
        assert posterior.mean.shape == (1, 3, 24, 32)
        decoded = decode_tiled(vae, posterior.mean, 48, 16)
    assert decoded.shape == (1, 3, 96, 128)
    assert bool(decoded.isfinite().all())


def test_the_error_of_tiles_is_measured_and_falls_with_overlap(
    vae: VAE, image: torch.Tensor
) -> None:
    narrow, wide = tiling_error(vae, image, 64, 0), tiling_error(vae, image, 64, 32)
    none = tiling_error(vae, image[:, :, :96], 96, 0)
    assert (none.mean, none.deviation, none.image) == (0, 0, 0)
    assert 0 < wide.mean < narrow.mean < 1
    assert 0 < wide.image < narrow.image < 0.5


@pytest.mark.parametrize(("tile", "overlap"), [(50, 16), (48, 48), (48, 3), (256, 0)])
def test_tiles_that_do_not_fit_are_refused(
    vae: VAE, image: torch.Tensor, tile: int, overlap: int
) -> None:
    with pytest.raises(ModelError, match="don't fit images"):
        encode_tiled(vae, image[None], tile, overlap)


def test_a_vector_for_the_whole_image_has_no_tiles() -> None:
    conv = build_vae(ModelConfig(width=8), PreprocessConfig(image_size=32))
    with pytest.raises(ModelError, match="nor tiles"):
        encode_tiled(conv, torch.zeros(1, 3, 64, 64, dtype=torch.uint8), 32, 8)
