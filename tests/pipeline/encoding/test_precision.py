"""bf16 is taken only where nobody could tell it from what is stored."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.commands.encode_identity import identity_of
from pipeline.config import EncodeConfig
from pipeline.data import Dataset
from pipeline.encoding.precision import Unmeasured, measure_rounding, try_bf16
from pipeline.encoding.shard import encode_shard
from pipeline.errors import StoreError
from pipeline.latent_scale import LatentScale
from pipeline.latents.snapshot import read_pointer
from tests.support.small_store import encode, small_dataset, small_vae
from tests.support.small_store import identity_of as asked

CPU = torch.device("cpu")
BF16 = pytest.mark.skipif(
    not (torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()),
    reason="this machine has no fast bf16, so auto never thinks of it",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"), range(40))


def test_the_rounding_is_that_of_the_same_images_in_both(dataset: Dataset, tmp_path: Path) -> None:
    vae = small_vae()
    found = measure_rounding(vae, dataset, asked(vae).options)
    assert found.images == 4
    low, exact = (
        encode(vae, dataset, tmp_path / precision, precision=precision, dtype="float32")
        for precision in ("bf16", "fp32")
    )
    pairs = [(low[n].tensors["mean"], exact[n].tensors["mean"]) for n in range(4)]
    expected = max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in pairs)
    assert found.largest == pytest.approx(expected, rel=1e-6)
    assert found.steps > 1
    assert not found.is_within


class Coarse(torch.nn.Module):
    """Means that bf16 holds exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = small_vae()
        self.preprocess, self.latent_shape = self.vae.preprocess, self.vae.latent_shape

    def encode(self, images: Any) -> Any:
        found = self.vae.encode(images)
        found.mean[:] = images.float().mean((1, 2, 3), keepdim=True).round() / 256
        return found


def test_where_bf16_changes_nothing_it_is_within(dataset: Dataset) -> None:
    coarse: Any = Coarse()
    found = measure_rounding(coarse, dataset, asked(small_vae()).options)
    assert (found.images, found.largest, found.is_within) == (4, 0.0, True)


def chosen(dataset: Dataset, vae: Any, store: str, **more: Any) -> str:
    config = EncodeConfig(model="m", data="d", output=store, batch_size=4, **more)
    tried = partial(try_bf16, vae, dataset, device=CPU)
    return identity_of(vae, config, dataset, read_pointer(store), tried).options.precision


@BF16
def test_auto_is_fp32_unless_the_model_shows_that_bf16_will_do(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert chosen(dataset, small_vae(), str(tmp_path / "none")) == "fp32"
    assert re.search(r"bf16 would move .* at most, more than float16 rounds them", caplog.text)
    coarse: Any = small_vae()
    coarse.encode = Coarse().encode
    assert chosen(dataset, coarse, str(tmp_path / "none")) == "bf16"
    assert chosen(dataset, coarse, str(tmp_path / "none"), precision="fp32") == "fp32"


@BF16
def test_a_model_that_forces_fp32_is_believed_and_a_store_keeps_what_it_has(
    dataset: Dataset, tmp_path: Path
) -> None:
    coarse: Any = small_vae()
    coarse.encode = Coarse().encode
    coarse.scale = LatentScale(force_upcast=True)
    assert chosen(dataset, coarse, str(tmp_path / "none")) == "fp32"
    plain = small_vae()
    encode(plain, dataset, tmp_path / "s", precision="bf16")
    assert chosen(dataset, plain, str(tmp_path / "s")) == "bf16"
    assert chosen(dataset, plain, str(tmp_path / "s"), precision="fp32") == "fp32"


def test_an_encoding_that_never_ended_goes_on_in_the_precision_it_began_with(
    dataset: Dataset, tmp_path: Path
) -> None:
    vae, store = small_vae(), str(tmp_path / "s")
    config = EncodeConfig(model="m", data="d", output=store, batch_size=4)

    def asked_again(_: Any) -> Unmeasured:
        raise AssertionError("what began says it")

    wide = identity_of(vae, config, dataset, None, lambda _: Unmeasured("no matter"))
    assert wide.options.precision == "fp32"
    narrow = replace(wide, options=replace(wide.options, precision="bf16"))
    encode_shard(vae, dataset, dataset.shards[1], narrow, store, threads=1)
    assert read_pointer(store) is None
    assert identity_of(vae, config, dataset, None, asked_again) == narrow


def test_a_shard_that_cannot_be_read_is_passed_over_and_a_shortage_is_no_word_on_precision(
    tmp_path: Path,
) -> None:
    vae, dataset = small_vae(), small_dataset(tmp_path, range(40))
    gone = Path(dataset.shard_url(dataset.shards[0]))
    gone.unlink()
    assert measure_rounding(vae, dataset, asked(vae).options).images == 4
    for shard in dataset.shards[1:]:
        Path(dataset.shard_url(shard)).unlink()
    assert measure_rounding(vae, dataset, asked(vae).options).images == 0


@BF16
def test_memory_that_runs_out_ends_it_in_one_line(dataset: Dataset) -> None:
    def short(_: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    for name in ("encode", "to"):
        vae: Any = Coarse()
        setattr(vae, name, short)
        with pytest.raises(StoreError, match=r"can't allocate memory .*`--precision fp32`"):
            try_bf16(vae, dataset, asked(small_vae()).options, CPU)


@BF16
def test_a_network_that_has_no_bf16_is_fp32_and_the_log_says_why(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vae: Any = small_vae()
    whole = vae.encode

    def encode(images: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("not implemented for 'BFloat16'")
        return whole(images)

    vae.encode = encode
    with caplog.at_level("INFO"):
        assert chosen(dataset, vae, str(tmp_path / "none")) == "fp32"
    assert "precision fp32: no image could be tried in bf16" in caplog.text
