from typing import Any

import pytest
import torch

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.errors import ModelError
from pipeline.vae import build_vae
from pipeline.vae.autoencoder_kl import AutoencoderKL, DownBlock, KlBlocks, UpBlock, blocks_of
from pipeline.vae.networks import NetworkShape

KL = {"kind": "autoencoder_kl"}


def family(factor: int) -> KlBlocks:
    """The published model of this factor, narrow."""
    return blocks_of(ModelConfig.model_validate({**KL, "factor": factor, "width": 32}))


def resnets(prefix: str, count: int, shortcut: bool) -> set[str]:
    layers = ["norm1", "conv1", "norm2", "conv2"]
    names = {f"{prefix}.resnets.{i}.{layer}" for i in range(count) for layer in layers}
    return names | ({f"{prefix}.resnets.0.conv_shortcut"} if shortcut else set())


def published_names() -> set[str]:
    """Of the f8, 4-channel model as its published weights name them."""
    names = {"quant_conv", "post_quant_conv"}
    for side in ("encoder", "decoder"):
        attention = f"{side}.mid_block.attentions.0"
        names |= {f"{side}.{layer}" for layer in ("conv_in", "conv_norm_out", "conv_out")}
        names |= resnets(f"{side}.mid_block", 2, shortcut=False)
        names |= {f"{attention}.{layer}" for layer in
                  ("group_norm", "to_q", "to_k", "to_v", "to_out.0")}  # fmt: skip
    for i in range(4):
        # Widths 128, 256, 512, 512 down and 512, 512, 256, 128 up.
        names |= resnets(f"encoder.down_blocks.{i}", 2, shortcut=i in (1, 2))
        names |= resnets(f"decoder.up_blocks.{i}", 3, shortcut=i in (2, 3))
        if i < 3:
            names.add(f"encoder.down_blocks.{i}.downsamplers.0.conv")
            names.add(f"decoder.up_blocks.{i}.upsamplers.0.conv")
    return {f"{name}.{part}" for name in names for part in ("weight", "bias")}


def test_default_model_has_the_published_parameters_and_names() -> None:
    with torch.device("meta"):
        network = AutoencoderKL(NetworkShape(3, 256, 3))
    parameters = dict(network.named_parameters())
    assert len(parameters) == 248
    assert sum(parameter.numel() for parameter in parameters.values()) == 83_653_863
    assert parameters.keys() == published_names()
    assert network.latent_shape == (4, 32, 32)


def test_flops_of_encode_and_decode_are_the_counted_ones() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = AutoencoderKL(NetworkShape(3, 256, 3))
        with FlopCounterMode(display=False) as encode:
            network.encode(torch.empty(1, 3, 256, 256))
        with FlopCounterMode(display=False) as decode:
            network.decode(torch.empty(1, 4, 32, 32))
    # GFLOP per image.
    assert encode.get_total_flops() / 1e9 == pytest.approx(272.7, abs=0.6)
    assert decode.get_total_flops() / 1e9 == pytest.approx(622.2, abs=0.6)


def test_a_training_step_costs_three_forward_passes_less_the_images_own_gradient() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = AutoencoderKL(NetworkShape(3, 256, 3))
        with FlopCounterMode(display=False) as counter:
            moments = network.encode(torch.empty(1, 3, 256, 256))
            network.decode(moments[:, :4]).sum().backward()
    # Nobody needs the gradient of the image: 2 x 27 x 128 FLOPs at each of 256 x 256 places.
    first_layer = 2 * 27 * 128 * 256**2
    assert (counter.get_total_flops() + first_layer) / 1e9 == pytest.approx(2684.7, abs=0.1)


@pytest.mark.parametrize(("factor", "channels"), [(4, 3), (8, 4), (16, 16), (32, 64)])
def test_each_factor_shrinks_by_itself_and_comes_back(factor: int, channels: int) -> None:
    network = AutoencoderKL(NetworkShape(3, 32, 6), family(factor))
    grid = 32 // factor
    assert network.latent_shape == (channels, grid, grid)
    with torch.no_grad():
        assert network.encode(torch.zeros(1, 3, 32, 32)).shape == (1, 2 * channels, grid, grid)
        assert network.decode(torch.zeros(1, *network.latent_shape)).shape == (1, 6, 32, 32)


def test_gradient_checkpointing_computes_each_block_again_and_changes_no_gradient() -> None:
    images = torch.rand(1, 3, 16, 16)
    gradients: list[list[torch.Tensor | None]] = []
    passes: list[int] = []
    for recompute in (False, True):
        passes.append(0)
        torch.manual_seed(0)
        network = AutoencoderKL(NetworkShape(3, 16, 3), family(4), gradient_checkpointing=recompute)

        def count(*_: object) -> None:
            passes[-1] += 1

        for block in network.modules():
            if isinstance(block, DownBlock | UpBlock):
                block.register_forward_pre_hook(count)
        network.decode(network.encode(images)[:, :3]).square().sum().backward()
        gradients.append([weight.grad for weight in network.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
    # What was not kept is computed a second time: each block runs once more.
    assert passes[1] == 2 * passes[0] > 0


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="multiple of factor"):
        build_vae(ModelConfig(kind="autoencoder_kl"), PreprocessConfig(image_size=60))
    with pytest.raises(ModelError, match=r"widths \(48"):
        build_vae(ModelConfig(kind="autoencoder_kl", width=48), PreprocessConfig(image_size=64))
    wrong = ModelConfig(kind="autoencoder_kl", widths=(32, 32), attention=("mid", "up3"))
    with pytest.raises(ModelError, match="attention up3"):
        build_vae(wrong, PreprocessConfig(image_size=8))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"widths": (32,), "factor": 8}, "widths say it all"),
        ({"widths": (0, 32)}, "1 to 65,536"),
        ({"attention": ("middle",)}, "give mid, downN or upN"),
        ({"kind": "conv", "layers": 3}, "layers is for autoencoder_kl"),
    ],
)
def test_what_makes_no_network_is_refused_by_the_config(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ModelConfig.model_validate(KL | given)
