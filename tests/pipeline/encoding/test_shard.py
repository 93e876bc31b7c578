import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import webdataset

from pipeline import storage
from pipeline.config import PackConfig
from pipeline.data import Dataset
from pipeline.data.shard_index import RawSample
from pipeline.data.shard_reader import read_shard
from pipeline.encoding.reencode import reencode
from pipeline.encoding.report import report_of, to_markdown
from pipeline.encoding.shard import encode_shard
from pipeline.encoding.shard_batches import chooser
from pipeline.errors import DatasetError, SampleError
from pipeline.exchange.store_export import export_store
from pipeline.int8 import to_int8
from pipeline.latents import LatentLoader, LatentStore, verify_store
from pipeline.latents.identity import EncodeOptions, Identity
from pipeline.latents.latent_file import LatentFileWriter
from pipeline.packing.pack import pack
from tests.support.killing import tree
from tests.support.small_store import (
    LATENT_SHAPE,
    encode,
    identity_of,
    small_dataset,
    small_vae,
    write_images,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"), range(40))


def read_table(store: Any, receipt: Any) -> pa.Table:
    with pa.memory_map(storage.join(str(store), receipt.parts[0].path)) as file:
        return pa.ipc.open_file(file).read_all()


def test_a_row_holds_the_latent_of_its_own_image_and_its_label(
    dataset: Dataset, tmp_path: Path
) -> None:
    vae, shard = small_vae(), dataset.shards[1]
    identity = identity_of(vae, dtype="float32", columns=("label",))
    receipt = encode_shard(vae, dataset, shard, identity, str(tmp_path))
    table = read_table(tmp_path, receipt)
    column = table.column("mean").combine_chunks()
    means = column.flatten().to_numpy().reshape(-1, *LATENT_SHAPE)
    assert table.num_rows == receipt.rows == shard.samples
    batches = read_shard(dataset, shard, vae.preprocess, 4, ("label",))
    for batch in batches:
        expected = vae.encode(batch.images).mean.detach().numpy()
        for row, key in enumerate(batch.keys):
            if key:
                place = table.column("key").to_pylist().index(key)
                np.testing.assert_allclose(means[place], expected[row], rtol=1e-4, atol=1e-5)
                assert table.column("label")[place].as_py() == batch.columns["label"][row]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_and_the_order_of_shards_change_no_byte(
    dataset: Dataset, tmp_path: Path, threads: int
) -> None:
    vae = small_vae()
    identity = identity_of(vae)
    for shard in dataset.shards:
        encode_shard(vae, dataset, shard, identity, str(tmp_path / "a"), threads=1)
    for shard in reversed(dataset.shards):
        encode_shard(vae, dataset, shard, identity, str(tmp_path / "b"), threads=threads)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_shard_with_a_receipt_is_not_touched_again(dataset: Dataset, tmp_path: Path) -> None:
    vae, shard = small_vae(), dataset.shards[0]
    first = encode_shard(vae, dataset, shard, identity_of(vae), str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert encode_shard(vae, dataset, shard, identity_of(vae), str(tmp_path)) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_image_that_cannot_be_read_is_listed_with_its_reason_and_the_law_holds(
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "images", range(20))
    picture = next((tmp_path / "images").rglob("*.png"))
    # Broken before it was packed: its bytes are the packed ones, and no image.
    picture.with_name("bad.png").write_bytes(picture.read_bytes()[:-30])
    dataset = small_dataset(tmp_path, range(20), verify="header")
    store = encode(small_vae(), dataset, tmp_path / "s")
    failed = [sample for shard in store.snapshot.shards for sample in shard.failed]
    assert [(sample.key.rsplit("/", 1)[-1], sample.reason) for sample in failed] == [
        ("bad%2Epng", "truncated")
    ]
    assert len(store) + len(failed) == len(dataset)
    assert failed[0].key not in {latent.key for latent in store}


def annotated(folder: Path, rows: dict[int, dict[str, Any]]) -> Dataset:
    """Images 0 to 39, some of them with columns of their own."""
    write_images(folder / "images", range(40))
    lines = [
        json.dumps({"path": f"label{number % 3}/{number:04d}.png", **columns})
        for number, columns in rows.items()
    ]
    (folder / "columns.jsonl").write_text("\n".join(lines))
    return small_dataset(folder, range(40), annotations=str(folder / "columns.jsonl"))


def number_of(key: str) -> int:
    return int(key.rsplit("/", 1)[-1].split("%")[0])


def test_columns_keep_their_types_through_store_loaders_and_exports(tmp_path: Path) -> None:
    rows = {
        n: {"aesthetic": n / 4, "width": n, "captions": ["a"] * (n % 3 + 1), "clip": [n, 0.5, -1.0]}
        for n in range(30)
    }
    dataset = annotated(tmp_path, rows)
    columns = ("aesthetic", "width", "captions", "clip")
    kinds = ("double", "int64", "list<string>", "list<double>[3]")
    store = encode(small_vae(), dataset, tmp_path / "s", columns=columns, kinds=kinds)
    assert verify_store(store.url) == []

    def same(key: str, found: dict[str, Any]) -> None:
        wanted: Any = rows.get(number_of(key), dict.fromkeys(columns))
        assert {name: found[name] for name in columns[:3]} == {n: wanted[n] for n in columns[:3]}
        vector = [float("nan")] * 3 if wanted["clip"] is None else wanted["clip"]
        np.testing.assert_array_equal(found["clip"], vector)

    for latent in store:
        same(latent.key, latent.columns)
    loader = LatentLoader(store, global_batch_size=8)
    batches = list(loader)
    for batch in batches:
        clip: Any = batch.columns["clip"]
        assert clip.shape == (8, 3)
        for row in np.flatnonzero(batch.valid.numpy()):
            same(batch.keys[row], {name: values[row] for name, values in batch.columns.items()})
    for item in store.to_torch().__getitems__(range(40)):
        same(str(item["key"]), item)
    export_store(store, str(tmp_path / "out"), "npy")
    for tar in (tmp_path / "out").glob("*.tar"):
        for sample in webdataset.WebDataset(str(tar), shardshuffle=False).decode():
            beside = sample["json"]
            wanted = rows.get(number_of(sample["__key__"]), dict.fromkeys(columns))
            assert beside == wanted


def test_a_shard_with_a_wider_column_is_refused_before_an_image_is_decoded_with_what_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = annotated(tmp_path, {n: {"score": 0.5} for n in range(40)})
    identity = identity_of(small_vae(), columns=("score",), kinds=("int64",))
    monkeypatch.setattr("pipeline.encoding.shard.shard_batches", None)
    with pytest.raises(DatasetError, match=r"'score' is double.*--columns score:double"):
        encode_shard(small_vae(), dataset, dataset.shards[0], identity, str(tmp_path / "s"))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_where_encodes_what_meets_it_and_the_law_counts_what_was_left_out(
    tmp_path: Path, batch_size: int
) -> None:
    dataset = annotated(tmp_path, {n: {"score": n} for n in range(35)})
    options = {
        "columns": ("score",), "kinds": ("int64",), "batch_size": batch_size,
        "where": "score > 10 and score < 32",
        "where_kinds": (("score", "int64"),),
    }  # fmt: skip
    store = encode(small_vae(), dataset, tmp_path / "s", **options)
    assert sorted(number_of(key) for key in list(store.keys())) == list(range(11, 32))
    assert (len(store), store.snapshot.filtered, store.snapshot.failed) == (21, 19, 0)
    assert verify_store(store.url) == []
    found = reencode(small_vae(), dataset, store, 21, seed=0)
    assert (found.images, found.equal) == (21, 21)
    sizes = [p.rows for s in store.snapshot.parts for p in s.part.record_batches]
    assert max(sizes) <= batch_size
    if batch_size == 4:
        # Batches close up: what is left out costs no computing.
        assert len(sizes) <= 21 // 4 + len(dataset.shards)
    whole = encode(small_vae(), dataset, tmp_path / "whole", columns=("score",), kinds=("int64",))
    some = LatentStore.open(whole.url, where="score > 10 and score < 32")
    assert list(some.keys()) == list(store.keys())
    for latent in store:
        np.testing.assert_allclose(
            latent.tensors["mean"], some.by_key(latent.key).tensors["mean"], atol=1e-3
        )


def test_removed_images_that_where_left_out_before_are_counted_once(tmp_path: Path) -> None:
    annotated(tmp_path, {n: {"score": n} for n in range(40)})
    options = {"where": "score >= 20", "where_kinds": (("score", "int64"),)}
    dataset = Dataset.open(str(tmp_path / "data"))
    encode(small_vae(), dataset, tmp_path / "s", **options)
    keys = [key for key in list(dataset.keys()) if number_of(key) in (3, 4, 25)]
    given = {"source": (str(tmp_path / "images"),), "output": str(tmp_path / "data")}
    table = str(tmp_path / "columns.jsonl")
    pack(PackConfig(append=True, remove=tuple(keys), workers=1, annotations=table, **given))
    dataset = Dataset.open(str(tmp_path / "data"))
    store = encode(small_vae(), dataset, tmp_path / "s", **options)
    assert (len(store), store.snapshot.filtered, len(dataset)) == (19, 18, 37)
    assert verify_store(store.url) == []
    keys = [key for batch in LatentLoader(store, global_batch_size=8) for key in batch.keys if key]
    assert sorted(map(number_of, keys)) == [n for n in range(20, 40) if n != 25]


def test_an_image_whose_columns_cannot_be_read_is_told_as_failed_and_not_left_out() -> None:
    asked = EncodeOptions("fp32", where="score > 100", where_kinds=(("score", "int64"),))
    choose = chooser(asked)
    good = RawSample("a", b"", 0, {"score": 7})
    bad = replace(good, columns={"score": None}, fault=SampleError("annotation", "no JSON"))
    assert choose is not None
    assert list(choose([good, bad])) == [False, True]


def test_eight_bits_cost_what_the_receipt_says_and_every_reader_gets_the_same(
    dataset: Dataset, tmp_path: Path
) -> None:
    vae = small_vae()
    store = encode(vae, dataset, tmp_path / "s", dtype="int8")
    exact = encode(vae, dataset, tmp_path / "exact", dtype="float32")
    assert verify_store(store.url) == []
    found = reencode(vae, dataset, store, 40, seed=0)
    assert (found.images, found.equal) == (40, 40)
    errors = []
    for latent in store:
        true = exact.by_key(latent.key).tensors
        assert np.abs(latent.tensors["logvar"] - true["logvar"]).max() < 0.02
        errors.append(np.abs(latent.tensors["mean"].astype(np.float64) - true["mean"]))
    parts = [stored.part for stored in store.snapshot.parts]
    told = [part.rounding for part in parts if part.rounding is not None]
    assert len(told) == len(parts)
    largest = max(each.largest for each in told)
    assert largest == pytest.approx(max(float(each.max()) for each in errors), rel=1e-3)
    means = [each.mean * part.rows for each, part in zip(told, parts, strict=True)]
    assert sum(means) / 40 == pytest.approx(float(np.mean(errors)), rel=1e-3)
    # One image of each batch is decoded both ways.
    assert [each.decoded for each in told] == [len(p.record_batches) for p in parts]
    latent = store[0]
    with torch.no_grad():
        one, other = (
            vae.decode(torch.from_numpy(each.tensors["mean"].copy())[None]).double()
            for each in (latent, exact.by_key(latent.key))
        )
    decibels = -10 * np.log10(float((one - other).square().mean()))
    assert told[0].lowest_decibels <= decibels + 1e-3
    report = report_of(store.snapshot, None)
    assert report.rounding is not None
    assert report.rounding.largest == largest
    assert "eight bits against float32" in to_markdown(report)
    for batch in LatentLoader(store, global_batch_size=8, moments=True):
        assert batch.log_variance is not None
        for row in np.flatnonzero(batch.valid.numpy()):
            tensors = store.by_key(batch.keys[row]).tensors
            np.testing.assert_array_equal(batch.latents[row], tensors["mean"])
            np.testing.assert_array_equal(batch.log_variance[row], tensors["logvar"])
    item = store.to_torch()[3]
    np.testing.assert_array_equal(item["mean"], store[3].tensors["mean"])


def test_means_of_4_x_32_x_32_take_4_1_kilobytes_an_image_and_with_variances_twice_that(
    tmp_path: Path,
) -> None:
    dice, sizes = np.random.default_rng(0), []
    for names in (("mean",), ("mean", "logvar")):
        identity = Identity(
            "m" * 64, "p" * 64, (4, 32, 32),
            EncodeOptions("fp32", dtype="int8", content="mean" if len(names) == 1 else "moments"),
        )  # fmt: skip
        with LatentFileWriter(tmp_path / names[-1], identity, (4, 32, 32)) as writer:
            for start in range(0, 512, 64):
                small = to_int8(dice.standard_normal((64, 4, 32, 32)).astype(np.float32))
                stored: dict[str, Any] = dict.fromkeys(names, small.numbers)
                stored |= {f"{name}_scale": small.scales for name in names}
                keys = [f"photos/{n:06d}" for n in range(start, start + 64)]
                writer.write(keys, range(start, start + 64), stored, {})
        sizes.append((tmp_path / names[-1]).stat().st_size / 512)
    assert sizes[0] < 4200
    assert sizes[1] < 8400


def test_bytes_that_are_not_those_that_were_packed_fail_the_shard_and_leave_no_receipt(
    tmp_path: Path,
) -> None:
    dataset = small_dataset(tmp_path, range(15))
    vae, index = small_vae(), dataset.read_index(0)
    path = Path(dataset.shard_url(dataset.shards[0]))
    with path.open("r+b") as file:
        file.seek(int(index.offsets[2]) + 30)
        file.write(b"\0\0\0")
    with pytest.raises(DatasetError, match="not those that were packed"):
        encode_shard(vae, dataset, dataset.shards[0], identity_of(vae), str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()
