"""A filter that can't be asked, or that nothing meets, changes nothing of a store."""

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.demo import write_digits
from pipeline.commands.encode import run_encoding
from pipeline.config import EncodeConfig, ModelConfig, PackConfig, PreprocessConfig
from pipeline.errors import ConfigError, StoreError
from pipeline.latents import LatentStore
from pipeline.packing.pack import pack
from pipeline.vae import build_vae, save_bundle
from tests.support.killing import tree


@pytest.fixture
def encode(tmp_path: Path) -> Any:
    """Encodes 20 digits by `where` into STORE."""
    write_digits(tmp_path / "images", range(20))
    pack(PackConfig(source=(str(tmp_path / "images"),), output=str(tmp_path / "data"), workers=1))
    vae = build_vae(ModelConfig(kind="mlp"), PreprocessConfig(image_size=8, channels=1))
    torch.manual_seed(0)
    save_bundle(vae, str(tmp_path / "bundle"), {})

    def run(where: str | None) -> int:
        return run_encoding(
            EncodeConfig(
                model=str(tmp_path / "bundle"), data=str(tmp_path / "data"),
                output=str(tmp_path / "store"), actors=0, where=where, columns=("label",),
            )
        ).samples  # fmt: skip

    return run


def test_one_that_does_not_fit_its_columns_kind_is_refused_before_anything_is_written(
    encode: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"where label > 5: can't be asked.*label is string"):
        encode("label > 5")
    assert not (tmp_path / "store").exists()


def test_one_that_nothing_meets_leaves_the_store_as_it_was(encode: Any, tmp_path: Path) -> None:
    assert encode(None) == 20
    before = tree(tmp_path / "store")
    with pytest.raises(StoreError, match=r"none of the 20 images meets.*as it was"):
        encode("label == 'zebra'")
    assert len(LatentStore.open(str(tmp_path / "store"))) == 20
    after = tree(tmp_path / "store")
    assert {name: after[name] for name in before} == before
    # What stays is the shards' word that they were looked at, which the same command goes on from.
    assert {name.split("/")[0] for name in after.keys() - before.keys()} <= {"receipts", "latents"}
