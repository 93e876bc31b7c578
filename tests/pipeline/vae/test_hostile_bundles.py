"""A bundle made to do harm: one clear error, and nothing of it is run."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.latent_scale import LatentScale
from pipeline.vae import build_vae, bundle, save_bundle
from tests.support.hostile import DEEP, pickled, refused_as_model

Forge = Callable[..., Path]


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    """A bundle in which files were replaced, with the checksums and the digest to match."""

    def make(**files: bytes) -> Path:
        folder = tmp_path / "bundle"
        torch.manual_seed(0)
        vae = build_vae(
            ModelConfig(kind="mlp", width=8), PreprocessConfig(image_size=8, channels=1)
        )
        save_bundle(vae, folder, {})
        receipt: Any = bundle.BUNDLE.parse((folder / "bundle.json").read_bytes(), "bundle.json")
        for stem, data in files.items():
            (name,) = [name for name in receipt["files"] if name.startswith(f"{stem}.")]
            (folder / name).write_bytes(data)
            receipt["files"][name] = hashlib.sha256(data).hexdigest()
        config, preprocess = (
            (folder / name).read_bytes() for name in ("config.json", "preprocess.json")
        )
        receipt["digest"] = bundle._digest(bundle._weights(vae), config, preprocess, LatentScale())
        (folder / "bundle.json").write_bytes(bundle.BUNDLE.encode(receipt))
        return folder

    return make


def model_json(**changes: object) -> bytes:
    return json.dumps({**ModelConfig(kind="mlp", width=8).model_dump(), **changes}).encode()


def test_weights_are_read_by_safetensors_and_nothing_else(forge: Forge) -> None:
    # The healthy bundle of the tests below is one that loads.
    folder = forge()
    assert bundle.load_bundle(folder).digest
    assert safetensors.torch.load_file(folder / "model.safetensors")


def test_a_bundle_whose_weights_are_a_pickle_is_refused(forge: Forge, tmp_path: Path) -> None:
    assert "ModelError" in refused_as_model(forge(model=pickled(tmp_path / "ran")), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("length", [2**62, 2**33, 10**9])
def test_a_bundle_whose_weights_claim_an_oversized_header_is_refused(
    forge: Forge, tmp_path: Path, length: int
) -> None:
    said = refused_as_model(forge(model=struct.pack("<Q", length) + b"{}"), tmp_path)
    assert "ModelError" in said


def test_weights_whose_header_points_out_of_the_file_are_refused(
    forge: Forge, tmp_path: Path
) -> None:
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ).encode()
    data = struct.pack("<Q", len(header)) + header
    assert "ModelError" in refused_as_model(forge(model=data), tmp_path)


@pytest.mark.parametrize(
    "changes", [{"width": 10**9}, {"width": 10**5}, {"latent_channels": 10**8}]
)
def test_a_bundle_that_claims_a_network_larger_than_memory_is_refused(
    forge: Forge, tmp_path: Path, changes: dict[str, int]
) -> None:
    said = refused_as_model(forge(config=model_json(**changes)), tmp_path)
    assert "don't fit" in said or "less than or equal" in said


@pytest.mark.parametrize("path", ["subprocess:Popen", "os:system", "builtins:exec"])
def test_a_bundle_that_names_a_program_as_its_network_is_refused(
    forge: Forge, tmp_path: Path, path: str
) -> None:
    config = model_json(kind="custom", custom=path)
    said = refused_as_model(forge(config=config), tmp_path)
    assert "is no part of this program" in said


@pytest.mark.parametrize("stem", ["config", "preprocess"])
def test_a_bundle_with_a_json_bomb_is_refused(forge: Forge, tmp_path: Path, stem: str) -> None:
    assert "ModelError" in refused_as_model(forge(**{stem: DEEP}), tmp_path)
