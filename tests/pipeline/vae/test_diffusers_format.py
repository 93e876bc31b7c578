import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.errors import ModelError
from pipeline.vae import VAE, build_vae
from pipeline.vae.diffusers_format import WEIGHTS, is_diffusers, read_diffusers, write_diffusers


def small(factor: int = 4, likelihood: str = "gaussian") -> VAE:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {"kind": "autoencoder_kl", "factor": factor, "width": 32, "likelihood": likelihood}
    )
    return build_vae(config, PreprocessConfig(image_size=32)).eval()


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)


def test_diffusers_itself_loads_what_is_written_and_gives_the_same_outputs(
    tmp_path: Path, images: torch.Tensor
) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the extra `interop`")
    vae = small()
    write_diffusers(vae, tmp_path, scaling_factor=0.5)
    theirs = diffusers.AutoencoderKL.from_pretrained(str(tmp_path)).eval()
    assert theirs.config.scaling_factor == 0.5
    with torch.no_grad():
        moments = theirs.encode(images / 127.5 - 1).latent_dist
        posterior = vae.encode(images)
        torch.testing.assert_close(moments.mean, posterior.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moments.logvar, posterior.log_variance, rtol=1e-4, atol=1e-5)
        decoded = theirs.decode(posterior.mean).sample
        ours = vae.decode_parameters(posterior.mean)
    torch.testing.assert_close(decoded, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("widths", [(32, 64, 128), (32, 64, 128, 128)])
def test_what_diffusers_writes_is_read_and_gives_the_same_outputs(
    tmp_path: Path, images: torch.Tensor, widths: tuple[int, ...]
) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the extra `interop`")
    torch.manual_seed(3)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        layers_per_block=2,
        latent_channels=4,
        sample_size=32,
    ).eval()
    theirs.save_pretrained(str(tmp_path))
    assert is_diffusers(str(tmp_path))
    vae = read_diffusers(str(tmp_path))
    assert vae.latent_shape == (4, 32 // 2 ** (len(widths) - 1), 32 // 2 ** (len(widths) - 1))
    with torch.no_grad():
        mean = theirs.encode(images / 127.5 - 1).latent_dist.mean
        torch.testing.assert_close(vae.encode(images).mean, mean, rtol=1e-4, atol=1e-5)
        decoded = theirs.decode(mean).sample
    torch.testing.assert_close(vae.decode_parameters(mean), decoded, rtol=1e-4, atol=1e-5)


def test_weights_go_out_and_come_back_bit_by_bit(tmp_path: Path, images: torch.Tensor) -> None:
    vae = small()
    write_diffusers(vae, tmp_path)
    again = read_diffusers(str(tmp_path))
    assert torch.equal(again.encode(images).mean, vae.encode(images).mean)
    assert again.preprocess == vae.preprocess


def test_attention_weights_under_their_old_names_are_read(
    tmp_path: Path, images: torch.Tensor
) -> None:
    vae = small()
    write_diffusers(vae, tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    for new, old in {
        "to_q": "query",
        "to_k": "key",
        "to_v": "value",
        "to_out.0": "proj_attn",
    }.items():
        for name in [name for name in weights if f".{new}." in name]:
            tensor = weights.pop(name)
            is_weight = name.endswith("weight")
            weights[name.replace(new, old)] = tensor[:, :, None, None] if is_weight else tensor
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / WEIGHTS)
    assert torch.equal(read_diffusers(str(tmp_path)).encode(images).mean, vae.encode(images).mean)


def test_an_architecture_that_is_not_ours_is_refused_with_every_difference(tmp_path: Path) -> None:
    write_diffusers(small(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"layers_per_block": 3, "block_out_channels": [32, 32, 32]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"layers_per_block.*block_out_channels"):
        read_diffusers(str(tmp_path))


def test_other_networks_and_likelihoods_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no diffusers"):
        write_diffusers(build_vae(ModelConfig(width=8), PreprocessConfig()), tmp_path)
    with pytest.raises(ModelError, match="one value per pixel"):
        write_diffusers(small(likelihood="logistic"), tmp_path)
    assert not is_diffusers(str(tmp_path))


def test_a_folder_that_lacks_a_weight_is_refused_and_never_filled_with_random_numbers(
    tmp_path: Path,
) -> None:
    write_diffusers(small(), tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    for name in ("encoder.conv_in.weight", "decoder.conv_out.bias"):
        save_file({n: tensor for n, tensor in weights.items() if n != name}, tmp_path / WEIGHTS)
        with pytest.raises(ModelError, match=rf"missing.*{name}"):
            read_diffusers(str(tmp_path))
