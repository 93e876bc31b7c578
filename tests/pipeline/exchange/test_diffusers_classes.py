"""diffusers' other autoencoders of images, run by diffusers: in, encoded, decoded, out again."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.commands.encode_identity import identity_of
from pipeline.config import EncodeConfig, ModelConfig, PreprocessConfig
from pipeline.encoding.precision import Unmeasured
from pipeline.encoding.reencode import reencode
from pipeline.errors import ConfigError, ModelError
from pipeline.exchange.diffusers_folder import read_diffusers, write_diffusers
from pipeline.exchange.model_folder import load_folder
from pipeline.latents import LatentStore
from pipeline.latents.identity import View
from pipeline.vae import build_vae, load_bundle, save_bundle
from pipeline.vae.library_network import CLASSES
from tests.pipeline.encoding.test_views import photos
from tests.pipeline.exchange.test_diffusers_configs import same
from tests.support.small_store import encode

diffusers = pytest.importorskip("diffusers", reason="diffusers is the extra `interop`")

SIZE = 32
KL: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "sample_size": SIZE,
}
# Each class as it is published, but narrow; whether it has a posterior.
MODELS: dict[str, tuple[dict[str, Any], bool]] = {
    "AsymmetricAutoencoderKL": (
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "down_block_out_channels": (8, 16),
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "up_block_out_channels": (16, 32),
            "norm_num_groups": 4,
            "sample_size": SIZE,
        },
        True,
    ),
    "AutoencoderDC": (
        {
            "attention_head_dim": 4,
            "latent_channels": 4,
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), (5,)),
            "decoder_qkv_multiscales": ((), (5,)),
            "scaling_factor": 0.41407,
        },
        False,
    ),
    "AutoencoderKLFlux2": ({**KL, "latent_channels": 4}, True),
    "AutoencoderKLHunyuanImage": (
        {
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 8,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "spatial_compression_ratio": 2,
            "sample_size": SIZE,
            "scaling_factor": 0.75289,
        },
        True,
    ),
    "AutoencoderTiny": (
        {
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
            "scaling_factor": 1.0,
        },
        False,
    ),
    "VQModel": ({**KL, "num_vq_embeddings": 16, "scaling_factor": 0.18215}, False),
}


def theirs(name: str, folder: Path) -> Any:
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**MODELS[name][0]).eval()
    model.save_pretrained(str(folder))
    return model


def test_each_class_of_the_list_is_tried_here() -> None:
    assert sorted(MODELS) == sorted(CLASSES)


@pytest.mark.parametrize("name", MODELS)
def test_latents_images_and_files_are_those_of_diffusers(name: str, tmp_path: Path) -> None:
    model = theirs(name, tmp_path / "theirs")
    read = read_diffusers(str(tmp_path / "theirs"), image_size=SIZE)
    digest = save_bundle(read, tmp_path / "bundle")
    ours = load_bundle(tmp_path / "bundle")
    assert ours.digest == read.digest == digest
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        given = model.encode(images / 127.5 - 1)
        found = ours.encode(images)
        if MODELS[name][1]:
            mean = given.latent_dist.mean
            same(found.log_variance, given.latent_dist.logvar)
        else:
            mean = given.latent if hasattr(given, "latent") else given.latents
        same(found.mean, mean)
        same(ours.decode_parameters(mean), model.decode(mean).sample)
    assert ours.has_posterior is MODELS[name][1]
    assert ours.scale.scaling_factor == MODELS[name][0].get("scaling_factor", model.config.get(
        "scaling_factor"))  # fmt: skip
    write_diffusers(ours, tmp_path / "again")
    again = type(model).from_pretrained(str(tmp_path / "again"))
    for key, value in dict(model.config).items():
        if not key.startswith("_"):
            assert json.dumps(again.config[key]) == json.dumps(value), key
    for key, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], weight), key


@pytest.mark.parametrize("name", ["AutoencoderDC", "VQModel"])
def test_a_store_of_means_and_buckets_is_made_and_decoded(name: str, tmp_path: Path) -> None:
    theirs(name, tmp_path / "theirs")
    vae, dataset = load_folder(str(tmp_path / "theirs")), photos(tmp_path, range(12))
    store = encode(vae, dataset, tmp_path / "s", views=(View(32, 8),), content="mean")
    assert len(store.shapes) > 2
    found = reencode(vae, dataset, store, 12, seed=0)
    assert (found.images, found.equal) == (12, 12)
    latent = LatentStore.open(store.url)[0].tensors["mean"]
    image = vae.decode(torch.from_numpy(latent.astype(np.float32))[None])
    factor = vae.pixels_per_latent
    assert factor is not None
    assert image.shape[2:] == tuple(factor * side for side in latent.shape[1:])


def test_without_a_posterior_there_are_means_alone_and_no_elbo(tmp_path: Path) -> None:
    theirs("AutoencoderTiny", tmp_path / "theirs")
    vae, dataset = load_folder(str(tmp_path / "theirs")), photos(tmp_path, range(2))
    config = EncodeConfig(model="m", data="d", output=str(tmp_path / "s"))
    for content in ("moments", "sample"):
        asked = config.model_copy(update={"content": content})
        with pytest.raises(ConfigError, match=r"no posterior. Encode with `--content mean`"):
            identity_of(vae, asked, dataset, None, lambda _: Unmeasured("no matter"))
    with pytest.raises(ModelError, match=r"m: .*no ELBO"):
        vae.refuse_without_posterior("m")


@pytest.mark.parametrize(
    "name", ["AutoencoderKLWan", "AutoencoderKLCogVideoX", "AutoencoderOobleck"]
)
def test_video_and_sound_are_refused_by_the_class(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(ModelError, match=f"is a diffusers {name}; .*AutoencoderDC"):
        load_folder(str(tmp_path))
    with pytest.raises(ModelError, match=f"names the class '{name}'"):
        build_vae(
            ModelConfig(kind="library", library=json.dumps({"_class_name": name})),
            PreprocessConfig(image_size=8),
        )


def test_a_config_that_diffusers_cannot_build_is_one_error(tmp_path: Path) -> None:
    theirs("VQModel", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    changes: list[dict[str, Any]] = [
        {"block_out_channels": [7, 9]}, {"in_channels": 5}, {"act_fn": "none"},
        {"sample_size": [32, "wide"]}, {"sample_size": {"a": 1}}, {"sample_size": "wide"},
    ]  # fmt: skip
    for change in changes:
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match="VQModel: "):
            load_folder(str(tmp_path))


def test_where_diffusers_is_not_installed_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs("VQModel", tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ModelError, match=r"is not installed: .* `interop`"):
        load_folder(str(tmp_path))
