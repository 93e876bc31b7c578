"""Configurations of diffusers' own class: the same moments and images, and every field back."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.exchange.diffusers_folder import read_diffusers, write_diffusers
from pipeline.vae import load_bundle, save_bundle

diffusers = pytest.importorskip("diffusers", reason="diffusers is the extra `interop`")

SIZE = 32


def kl(*widths: int, attention: str = "", **more: Any) -> dict[str, Any]:
    """A configuration of these widths; `attention`: d for the encoder's blocks, u for the rest."""
    down = "AttnDownEncoderBlock2D" if "d" in attention else "DownEncoderBlock2D"
    up = "AttnUpDecoderBlock2D" if "u" in attention else "UpDecoderBlock2D"
    return {
        "block_out_channels": widths,
        "down_block_types": (down,) * len(widths),
        "up_block_types": (up,) * len(widths),
        "norm_num_groups": 4,
        "layers_per_block": 2,
        "sample_size": SIZE,
        **more,
    }


F8 = (8, 16, 32, 32)
NO_CONVS: dict[str, Any] = {"use_quant_conv": False, "use_post_quant_conv": False}
NUMBERS: dict[str, Any] = {
    "latents_mean": (0.1, -0.2, 0.3, 0.0),
    "latents_std": (1.5, 2.0, 0.5, 1.0),
}

# The published ones as they are published, but narrow.
CONFIGS = {
    "sd15": kl(*F8, scaling_factor=0.18215),
    "sdxl": kl(*F8, scaling_factor=0.13025, force_upcast=True),
    "sdxl-fp16-fix": kl(*F8, scaling_factor=0.13025, force_upcast=False),
    "sd3": kl(*F8, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, **NO_CONVS),
    "flux": kl(
        *F8, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, force_upcast=True,
        **NO_CONVS,
    ),
    "playground": kl(*F8, scaling_factor=0.5, **NUMBERS),
    "f1": kl(8),
    "f2": kl(8, 16),
    "f4": kl(8, 16, 32, latent_channels=3),
    "f16": kl(8, 8, 16, 16, 32, latent_channels=16),
    "f32": kl(8, 8, 16, 16, 32, 32, latent_channels=32),
    "grey": kl(8, 16, in_channels=1, out_channels=1),
    "grey-sd3": kl(8, 16, in_channels=1, out_channels=1, latent_channels=16, **NO_CONVS),
    "no-attention": kl(8, 16, 32, mid_block_add_attention=False),
    "no-attention-no-convs": kl(8, 16, mid_block_add_attention=False, **NO_CONVS),
    "quant-alone": kl(8, 16, use_post_quant_conv=False),
    "post-quant-alone": kl(8, 16, use_quant_conv=False),
    "one-layer": kl(8, 16, layers_per_block=1),
    "three-layers": kl(8, 16, layers_per_block=3),
    "odd-widths": kl(12, 20, 8),
    "groups-of-one": kl(6, 10, norm_num_groups=1),
    "thirty-two-groups": kl(32, 64, norm_num_groups=32),
    "attention-down": kl(8, 16, attention="d"),
    "attention-up": kl(8, 16, attention="u", mid_block_add_attention=False),
    "attention-everywhere": kl(8, 16, attention="du", **NO_CONVS),
    "attention-here-and-there": kl(
        8, 16, down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    ),
    "mish": kl(8, 16, act_fn="mish"),
    "gelu": kl(8, 16, act_fn="gelu"),
    "relu": kl(8, 16, act_fn="relu"),
    "swish": kl(8, 16, act_fn="swish"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_moments_and_images_are_those_of_diffusers_and_every_field_comes_back(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(**CONFIGS[name]).eval()
    theirs.save_pretrained(str(tmp_path / "theirs"))
    save_bundle(read_diffusers(str(tmp_path / "theirs")), tmp_path / "bundle")
    ours = load_bundle(tmp_path / "bundle")

    generator = torch.Generator().manual_seed(1)
    shape = (2, theirs.config.in_channels, SIZE, SIZE)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        wanted = theirs.encode(images / 127.5 - 1).latent_dist
        found = ours.encode(images)
        same(found.mean, wanted.mean)
        same(found.log_variance, wanted.logvar)
        same(ours.decode_parameters(wanted.mean), theirs.decode(wanted.mean).sample)

    write_diffusers(ours, tmp_path / "again")
    again = diffusers.AutoencoderKL.from_pretrained(str(tmp_path / "again")).eval()
    assert told(again) == told(theirs) | ({"act_fn": "silu"} if name == "swish" else {})
    for key, weight in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[key], weight)


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """To 1e-5 of the range of what diffusers gives."""
    scale = float(wanted.max() - wanted.min())
    assert float((found - wanted).abs().max()) <= 1e-5 * scale


def told(model: Any) -> dict[str, Any]:
    """A model's configuration, less what diffusers notes of versions and places."""
    plain = {k: v for k, v in dict(model.config).items() if not k.startswith("_")}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def test_there_are_as_many_configurations_as_were_promised() -> None:
    assert len(CONFIGS) >= 24
