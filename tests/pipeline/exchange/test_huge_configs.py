"""A folder of diffusers, or a bundle, that claims sizes no file of weights holds."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.errors import ModelError
from pipeline.exchange.diffusers_folder import read_diffusers
from pipeline.vae.library_network import CLASSES

HUGE: tuple[dict[str, Any], ...] = (
    *({"_class_name": name, "layers_per_block": 10**8, "sample_size": 32} for name in CLASSES),
    {"_class_name": "AutoencoderDC", "encoder_layers_per_block": [10**7] * 6},
    {"_class_name": "AutoencoderTiny", "num_decoder_blocks": [10**5] * 4},
    {"_class_name": "VQModel", "layers_per_block": 500, "block_out_channels": [32] * 50},
    {"_class_name": "VQModel", "block_out_channels": [32] * 10**6},
    {"_class_name": "VQModel", "num_vq_embeddings": 2**62},
    {"_class_name": "VQModel", "latent_channels": -(2**62)},
    {"_class_name": "VQModel", "latent_channels": 1e300},
    {"_class_name": "VQModel", "sample_size": 10**5},
    {"_class_name": "AutoencoderKL", "layers_per_block": 10**9},
    {"_class_name": "AutoencoderKL", "latent_channels": 2**62},
    {"_class_name": "AutoencoderKL", "norm_num_groups": 2**62},
    {"_class_name": "AutoencoderKL", "block_out_channels": [2**62]},
    {"_class_name": "AutoencoderKL", "sample_size": 10**9},
    {
        "_class_name": "AutoencoderKL", "block_out_channels": [32] * 10**5,
        "down_block_types": ["DownEncoderBlock2D"] * 10**5,
        "up_block_types": ["UpDecoderBlock2D"] * 10**5,
    },
)  # fmt: skip


@pytest.mark.parametrize("config", HUGE, ids=lambda each: json.dumps(each)[:70])
def test_a_config_of_sizes_without_sense_is_refused_before_it_is_built(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = safetensors.torch.save({"x": torch.zeros(1)})
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError) as raised:
        read_diffusers(str(tmp_path))
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "knob",
    [{"latent_channels": 2**62}, {"latent_size": 2**62}, {"kind": "mlp", "width": 2**62},
     {"kind": "autoencoder_kl", "widths": (2**62,)}, {"kind": "autoencoder_kl", "groups": 2**62}],
)  # fmt: skip
def test_a_size_that_no_network_has_is_refused_by_its_configuration(knob: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"less than or equal|1 to 65,536"):
        ModelConfig(**knob)
    with pytest.raises(ValidationError, match="less than or equal"):
        PreprocessConfig(image_size=10**9)
