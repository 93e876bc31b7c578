"""What takes a path or a URL takes what is open or was made there, and refuses all else by name."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from torch.utils.data import DataLoader

import pipeline
from pipeline.commands.decode import run_decoding
from pipeline.config import DecodeConfig, PackConfig
from pipeline.data import Dataset, Loader
from pipeline.data.keys import path_of
from pipeline.errors import ConfigError, DatasetError
from pipeline.latents import LatentLoader, LatentStore, verify_store
from pipeline.runs.result import TrainingResult
from pipeline.vae import load_bundle, save_bundle
from tests.support.packed_digits import write_digits
from tests.support.small_store import encode, small_dataset, small_vae


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"), range(40))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> LatentStore:
    encode(small_vae(), dataset, folder := tmp_path_factory.mktemp("store"), columns=("label",))
    return LatentStore.open(folder)


def trained(data: Any, **settings: Any) -> TrainingResult:
    given: dict[str, Any] = {
        "steps": 2, "global_batch_size": 16, "workers": 0, "image_size": 8, "channels": 1,
        "no_register": True, "model": {"kind": "mlp"}, **settings,
    }  # fmt: skip
    return pipeline.train(data, run="first", **given)


def test_a_dataset_a_run_and_a_store_stand_for_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train = Dataset.open(write_digits(tmp_path, 120))
    holdout = Dataset.open(tmp_path / "packed/holdout")
    first = trained(train, holdout=holdout)
    assert Path(first.run) == tmp_path / "runs/first"
    assert pipeline.load_model(first).digest == first.digest
    found = pipeline.evaluate(first, holdout, bound_images=0, compare=(first.bundle,))
    assert (found.model_digest, found.dataset_digest) == (first.digest, holdout.digest)
    made = pipeline.encode(first, train, output=tmp_path / "store", actors=0)
    opened = LatentStore.open(made)
    assert opened.model_digest == first.digest
    assert LatentStore.open(opened).snapshot == opened.snapshot
    decoding = DecodeConfig(store=opened.url, output="images", model="first", limit=1)
    assert run_decoding(decoding).images == 1
    # By its name, too, as `load_model` and `evaluate` have it; there is nothing left to encode.
    assert pipeline.encode("first", train, output=opened, actors=0).encoded == 0


def test_what_a_pack_made_is_trained_on_and_opened(tmp_path: Path) -> None:
    for number in range(20):
        folder = tmp_path / f"in{number % 2}"
        folder.mkdir(exist_ok=True)
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    packed = pipeline.pack([tmp_path / "in0", tmp_path / "in1"], output=tmp_path / "o", workers=1)
    assert packed.samples == 20
    opened = Dataset.open(packed)
    assert (opened.url, opened.digest) == (packed.dataset, packed.digest)
    assert Dataset.open(opened).digest == packed.digest
    assert trained(packed, storage=tmp_path / "runs").samples == 20  # a batch of 16, one of 4


def test_a_dataset_that_is_no_more_current_is_not_taken_for_the_one_that_is(
    tmp_path: Path,
) -> None:
    before = small_dataset(tmp_path, range(10))
    after = small_dataset(tmp_path, range(20), append=True)
    assert Dataset.open(after).digest == after.digest
    with pytest.raises(DatasetError, match=rf"generation {after.digest} is current, .*was opened"):
        trained(before)


def test_a_part_of_a_store_is_not_taken_for_all_of_it(store: LatentStore) -> None:
    some = LatentStore.open(store, where="label == 'label0'")
    assert 0 < len(some) < len(store)
    with pytest.raises(ConfigError, match=r"holds what `where` and `size` leave"):
        LatentStore.open(some)


def test_what_is_no_place_is_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: Dataset
) -> None:
    monkeypatch.chdir(tmp_path)
    table: Any = pyarrow.table({"path": ["a.png"]}).to_pandas()
    network, array = small_vae(), np.zeros((8, 8))
    wrong: Any
    for wrong in (table, array, network, object()):
        kind = type(wrong).__name__
        saved = f"takes a text or a path, found {kind}. What is in memory has to be saved first"
        with pytest.raises(ConfigError, match=f"^pack: source.0: {saved}"):
            pipeline.pack(wrong, output="o")
        with pytest.raises(ConfigError, match=f"^pack: source.1: {saved}"):
            pipeline.pack(["a", wrong], output="o")
        with pytest.raises(ConfigError, match=f"^train: data: {saved}"):
            trained(wrong)
        with pytest.raises(ConfigError, match=f"^evaluate: model: {saved}"):
            pipeline.evaluate(wrong, dataset)
        with pytest.raises(ConfigError, match=f"^encode: output: {saved}"):
            pipeline.encode("m", dataset, output=wrong)
        for taker, name in (
            (pipeline.load_model, "load_model"),
            (Dataset.open, "Dataset.open"),
            (LatentStore.open, "LatentStore.open"),
        ):
            with pytest.raises(ConfigError, match=f"^{name}: takes a path or a URL, found {kind}"):
                taker(wrong)
    none: Any = None
    with pytest.raises(ConfigError, match=r"^pack: output: takes a text or a path, found None\.$"):
        pipeline.pack("images", output=none)
    for saver in (lambda place: save_bundle(network, place), load_bundle):
        with pytest.raises(ConfigError, match="_bundle: takes a path or a URL, found None"):
            saver(none)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_open_is_verified(store: LatentStore) -> None:
    assert verify_store(store) == []


def test_values_of_keys_are_told_in_words_of_python(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"encode: image_size: give a list: \[32\]\."):
        pipeline.encode("m", dataset, output=tmp_path / "s", image_size=32)
    with pytest.raises(ConfigError, match=r"model\.knd: .*ModelConfig.*; did you mean kind"):
        trained(dataset, model={"knd": "mlp"})


def test_a_loader_names_the_argument_that_was_meant(dataset: Dataset, store: LatentStore) -> None:
    kind: Any
    for kind, given in ((Loader, dataset), (LatentLoader, store)):
        with pytest.raises(ConfigError, match=rf"^{kind.__name__}: .*Did you mean `global_batch_"):
            kind(given, global_batch_size=8, batch_size=8)
        with pytest.raises(TypeError, match="global_batch_size"):
            kind(given, batch_size=8)
    other: Any = dataset
    with pytest.raises(ConfigError, match=r"takes a LatentStore, found Dataset\.$"):
        LatentLoader(other, global_batch_size=8)
    other = "runs/latents"
    with pytest.raises(ConfigError, match=r"found str\. `LatentStore\.open\('runs/latents'\)`"):
        LatentLoader(other, global_batch_size=8)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda held: pickle.loads(pickle.dumps(held))])
def test_what_was_read_from_goes_to_another_process_all_the_same(
    dataset: Dataset, store: LatentStore, copied: Any
) -> None:
    held: Any
    for held in (dataset, store):
        key = held[3].key
        assert held.by_key(key).key == key
        assert copied(held)[3].key == key
        assert copied(held[3]).key == key
    items = store.to_torch()
    assert items[3]["key"] == copied(items)[3]["key"]


def test_spawned_workers_read_a_dataset_that_was_looked_at(dataset: Dataset) -> None:
    keys = [dataset[number].key for number in range(40)]
    given: Any = dataset
    loader = DataLoader(given, None, num_workers=1, multiprocessing_context="spawn")
    assert [sample.key for sample in loader] == keys


def test_a_key_or_a_path_is_in_what_holds_it(dataset: Dataset, store: LatentStore) -> None:
    held: Any
    for held in (dataset, store):
        for key in (held[7].key, path_of(held[7].key)):
            assert key in held
        assert "none" not in held
        with pytest.raises(TypeError, match=f"{type(held).__name__} .*asks for a key or a path"):
            assert held[7] in held


def test_a_table_of_absolute_paths_says_what_lets_them_in(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(image := tmp_path / "1.png")
    (tmp_path / "lists").mkdir()
    (table := tmp_path / "lists/t.csv").write_text(f"path,label\n{image},a\n")
    cure = r"1 outside: name their prefix with `--below` \(from Python `below=\[\.\.\.\]`\)"
    with pytest.raises(DatasetError, match=cure):
        pipeline.pack(table, output=tmp_path / "o", workers=1)
    assert "say so by `--below FOLDER`" in (tmp_path / "o/rejects.jsonl").read_text()
    for place in (tmp_path / "o", tmp_path / "o/train"):
        with pytest.raises(DatasetError, match=r"found nothing that .*o/rejects\.jsonl says why"):
            Dataset.open(place)
    below = [tmp_path]
    assert pipeline.pack(table, output=tmp_path / "o", below=below, workers=1).samples == 1


def test_help_tells_each_key_as_the_command_does() -> None:
    told = PackConfig.__doc__ or ""
    assert told.startswith("`jobs.pack`: folders, archives and tables")
    assert "\n  below: Prefixes below which the rows of a list may name inputs" in told
    assert "\n  holdout: Share split off by content hash into OUTPUT/holdout. Default: 0.0." in told
    for name, info in PackConfig.model_fields.items():
        assert f"\n  {name}: {(info.description or '')[:40]}" in told
    assert "help(pipeline.config.PackConfig)" in (pipeline.pack.__doc__ or "")


def test_a_look_at_the_first_batch_is_the_first_batch_of_the_epoch_as_is_said(
    dataset: Dataset, store: LatentStore
) -> None:
    kind: Any
    for kind, given, shape in ((Loader, dataset, {"image_size": 8}), (LatentLoader, store, {})):
        loader, other = (kind(given, global_batch_size=8, **shape) for _ in range(2))
        seen = [key for batch in other for key in batch.keys]
        looked = next(iter(loader))
        assert repr(loader).endswith("at epoch 0, batch 1")
        rest = [key for batch in loader for key in batch.keys]
        assert looked.keys + rest == seen
        assert len(loader) == loader.steps_per_epoch == 5
        said = " ".join((kind.__doc__ or "").split())
        assert "what was looked at is not in the rest of that epoch. To look first, take" in said
