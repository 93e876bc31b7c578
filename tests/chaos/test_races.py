"""Two at once, stopped and killed at any moment: what is there is whole, and goes on from there."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.commands.encode import run_encoding
from pipeline.config import EncodeConfig, ModelConfig, PackConfig, PreprocessConfig
from pipeline.data import Dataset
from pipeline.errors import DatasetError, PipelineError
from pipeline.latents import LatentStore, verify_store
from pipeline.latents.garbage import remove_garbage
from pipeline.latents.snapshot import read_pointer
from pipeline.packing.commit import PackResult
from pipeline.packing.leftovers import find_leftovers
from pipeline.packing.pack import pack
from pipeline.packing.verify_dataset import verify_dataset
from pipeline.registry.promotion import champions, promote
from pipeline.vae import build_vae, save_bundle
from tests.chaos.races import Ended, alone, race
from tests.support.small_store import write_images

ROUNDS = int(os.environ.get("RACE_ROUNDS", "50"))
"""Of each race in `make chaos`."""
FEW = 3
"""In `make test`."""
Round = Callable[[Path, random.Random], Counter[str]]


def rounds(count: int, first: int, one: Round, tmp_path: Path) -> None:
    """Plays them, each in a folder of its own; says how the works ended."""
    torch.set_num_threads(1)
    outcomes: Counter[str] = Counter()
    for number in range(first, first + count):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            outcomes += one(folder, random.Random(number))
        except AssertionError as error:
            raise AssertionError(f"round {number}: {error}") from error
        shutil.rmtree(folder)
    print(f"\n{count} rounds: {dict(sorted(outcomes.items()))}")


def counted(ended: dict[str, Ended]) -> Counter[str]:
    """None crashed, none hung; a refusal is an error of ours."""
    bad = {name: one for name, one in ended.items() if one.how[:4] in ("cras", "hang")}
    assert not bad, bad
    return Counter(f"{name.rstrip('0123456789')} {one.how}" for name, one in ended.items())


def pack_of(folder: Path, **changes: Any) -> PackConfig:
    given = {"source": (str(folder / "images"),), "output": str(folder / "data"), **changes}
    return PackConfig(shard_bytes=20_000, workers=1, append=True, **given)


def keys_of(url: str) -> list[str]:
    dataset = Dataset.open(url)
    found = []
    for number, record in enumerate(dataset.shards):
        keys = dataset.read_index(number).keys
        found += [key for at, key in enumerate(keys) if at not in record.removed]
    return sorted(found)


def pack_beside_pack(folder: Path, chance: random.Random) -> Counter[str]:
    """Three packs of images that grew, one of them removing one: the first generation stays."""
    write_images(folder / "images", range(12))
    pack(pack_of(folder))
    first = keys_of(str(folder / "data"))
    write_images(folder / "images", range(12, 18))  # what is written anew may come back
    gone = chance.choice(first)
    remove = pack_of(folder, source=(), remove=(gone,))
    works = {
        "pack1": lambda: pack(pack_of(folder)),
        "pack2": lambda: pack(pack_of(folder)),
        "remove": lambda: pack(remove),
    }
    ended = race(works, chance, folder)
    outcomes = counted(ended)
    url = str(folder / "data")
    assert verify_dataset(url, threads=1) == []
    assert set(first) - {gone} <= set(keys_of(url))
    again = pack_again(folder, remove)
    keys = keys_of(url)
    assert gone not in keys or ended["remove"].how != "done"
    assert again.samples == len(keys) == len(set(keys)) == 18 - (gone not in keys)
    assert verify_dataset(url, threads=1) == []
    write_images(folder / "images", range(18, 19))  # what was half written goes with a generation
    assert pack(pack_of(folder)).samples == len(keys) + 1
    assert find_leftovers(url) == []
    return outcomes


def pack_again(folder: Path, other: PackConfig) -> PackResult:
    """The same command; what was killed of another is finished first, as the refusal says."""
    try:
        return pack(pack_of(folder))
    except DatasetError as error:
        if "unfinished pack of another request" not in str(error):
            raise
    pack(other)
    return pack(pack_of(folder))


def _world_to_encode(folder: Path) -> None:
    write_images(folder / "images", range(12))
    pack(pack_of(folder))
    torch.manual_seed(0)
    read = PreprocessConfig(image_size=8, channels=1)
    save_bundle(build_vae(ModelConfig(kind="mlp", width=8), read), folder / "model", {})


def encode_of(folder: Path, **changes: Any) -> EncodeConfig:
    given = {"model": str(folder / "model"), "data": str(folder / "data"),
             "output": str(folder / "store"), "actors": 0, "batch_size": 4, **changes}  # fmt: skip
    return EncodeConfig.model_validate(given)


def check_store(folder: Path) -> None:
    """What a pointer names is whole, whatever was killed."""
    url = str(folder / "store")
    if read_pointer(url) is not None:
        assert verify_store(url) == []


def check_encoded(folder: Path, samples: int) -> None:
    """The same command again, undisturbed: all of it, once, and nothing else."""
    for mark in (folder / "store/removing").glob("*.json"):
        mark.unlink()  # of a removal that was killed, as its refusal says
    ended = alone(lambda: run_encoding(encode_of(folder)), folder)
    assert ended.how == "done", ended
    store = LatentStore.open(str(folder / "store"))
    keys = [key for batch in store.batches() for key in batch.keys]
    assert sorted(keys) == keys_of(str(folder / "data"))
    assert len(keys) == len(store) == samples
    assert store.snapshot.complete
    assert verify_store(str(folder / "store")) == []


def encode_beside_garbage(folder: Path, chance: random.Random) -> Counter[str]:
    """Two encodings, a part of one, and two removals of garbage."""
    _world_to_encode(folder)
    url = str(folder / "store")
    (folder / "store").mkdir()
    works = {
        "encode1": lambda: run_encoding(encode_of(folder)),
        "encode2": lambda: run_encoding(encode_of(folder)),
        "part": lambda: run_encoding(encode_of(folder, limit=4)),
        "gc1": lambda: remove_garbage(url),
        "gc2": lambda: remove_garbage(url),
    }
    ended = race(works, chance, folder)
    outcomes = counted(ended)
    if any(ended[name].how == "done" for name in ("encode1", "encode2")):
        check_store(folder)
    elif read_pointer(url) is not None:  # A part may be all that was published: it is told.
        assert all("not asked for (`--limit`)" in each for each in verify_store(url))
    check_encoded(folder, 12)
    remove_garbage(url)
    check_encoded(folder, 12)
    return outcomes


def remove_beside_encode(folder: Path, chance: random.Random) -> Counter[str]:
    """Samples leave the dataset while it is encoded."""
    _world_to_encode(folder)
    gone = chance.sample(keys_of(str(folder / "data")), 2)
    works = {
        "encode1": lambda: run_encoding(encode_of(folder)),
        "encode2": lambda: run_encoding(encode_of(folder)),
        "remove": lambda: pack(pack_of(folder, source=(), remove=tuple(gone))),
    }
    outcomes = counted(race(works, chance, folder))
    check_store(folder)
    pack(pack_of(folder, source=(), remove=tuple(gone)))
    assert not set(gone) & set(keys_of(str(folder / "data")))
    check_encoded(folder, 10)
    return outcomes


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What an encoding imports, once for all forks: each would take seconds over it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("warm")
    _world_to_encode(folder)
    run_encoding(encode_of(folder))


ELBOS = {1: -400.0, 2: -390.0, 3: -300.0}


def _made_registry(uri: str) -> None:
    from pipeline.tracking.mlflow_client import mlflow_client

    client = mlflow_client(uri)
    client.create_registered_model("m")
    terms = {"holdout_digest": "h", "preprocess": "{}", "measure": "256 levels", "run": "r"}
    for elbo in ELBOS.values():
        client.create_model_version("m", "s3://nowhere", tags={**terms, "holdout_elbo": str(elbo)})
    promote("models:/m/1")


def _settled(uri: str, folder: Path) -> None:
    """The alias is the history's last, which rises; whoever beats it can still be promoted."""
    from pipeline.tracking.mlflow_client import mlflow_client

    past = champions("m")
    elbos = [ELBOS[version] for version in past]
    assert elbos == sorted(elbos), past
    try:
        promote("models:/m/3")
    except PipelineError as error:
        raise AssertionError(str(error)) from None
    past = champions("m")
    assert past[0] == 1
    assert past[-1] == 3
    alias = mlflow_client(uri).get_model_version_by_alias("m", "champion").version
    assert int(alias) == 3
    (folder / "settled").touch()


def promote_beside_promote(
    folder: Path, chance: random.Random, monkeypatch: pytest.MonkeyPatch, empty: str
) -> Counter[str]:
    """Three promotions of two versions; MLflow is never opened in this process, which forks."""
    shutil.copy(empty, folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert alone(lambda: _made_registry(uri), folder).how == "done"
    works = {
        "promote1": lambda: promote("models:/m/2"),
        "promote2": lambda: promote("models:/m/3"),
        "promote3": lambda: promote("models:/m/3"),
    }
    outcomes = counted(race(works, chance, folder))
    ended = alone(lambda: _settled(uri, folder), folder)
    assert ended.how == "done", ended
    return outcomes


RACES = {
    "pack beside pack": pack_beside_pack,
    "encode beside encode beside gc": encode_beside_garbage,
    "remove beside encode": remove_beside_encode,
}


@pytest.mark.parametrize("name", RACES)
def test_a_few_races_leave_all_whole(name: str, tmp_path: Path) -> None:
    rounds(FEW, 0, RACES[name], tmp_path)


@pytest.mark.chaos
@pytest.mark.parametrize("name", RACES)
def test_many_races_leave_all_whole(name: str, tmp_path: Path) -> None:
    rounds(ROUNDS, FEW, RACES[name], tmp_path)


@pytest.fixture
def empty_registry(tmp_path: Path) -> str:
    """An MLflow file with its tables, made in a fork: sqlite's handles must not cross one."""
    import mlflow  # noqa: F401 - imported once, before the forks

    from pipeline.tracking.mlflow_client import mlflow_client

    file = tmp_path / "empty.db"
    assert alone(lambda: mlflow_client(f"sqlite:///{file}"), tmp_path).how == "done"
    return str(file)


def test_a_few_promotions_at_once_leave_the_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_registry: str
) -> None:
    rounds(FEW, 0, lambda f, c: promote_beside_promote(f, c, monkeypatch, empty_registry), tmp_path)


@pytest.mark.chaos
def test_many_promotions_at_once_leave_the_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_registry: str
) -> None:
    def one(folder: Path, chance: random.Random) -> Counter[str]:
        return promote_beside_promote(folder, chance, monkeypatch, empty_registry)

    rounds(ROUNDS, FEW, one, tmp_path)
