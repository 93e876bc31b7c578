"""Encoding grows with its dataset, honours removals, refuses what it can't vouch for."""

import json
import random
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import encode as encode_job
from jobs import verify
from jobs.demo import write_digits
from pipeline.commands.encode import Encoded, cost_of_encoding, run_encoding
from pipeline.commands.encode_cost import EncodingCost
from pipeline.commands.encode_identity import identity_of
from pipeline.config import EncodeConfig, ModelConfig, PackConfig, PreprocessConfig, VerifyConfig
from pipeline.data import Dataset
from pipeline.data.keys import path_of
from pipeline.encoding.precision import try_bf16
from pipeline.errors import ConfigError, DatasetError
from pipeline.latents import LatentStore, verify_store
from pipeline.latents.garbage import remove_garbage
from pipeline.latents.snapshot import read_pointer
from pipeline.packing.pack import pack
from pipeline.vae import build_vae, save_bundle
from tests.servers import rgw
from tests.servers.fault_proxy import FaultProxy
from tests.support.killing import tree


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    torch.manual_seed(0)
    vae = build_vae(ModelConfig(kind="mlp"), PreprocessConfig(image_size=8, channels=1))
    save_bundle(vae, str(folder), {})
    return str(folder)


@pytest.fixture
def world(tmp_path: Path, bundle: str) -> Any:
    """Functions that pack and encode into `tmp_path`."""

    class World:
        def __init__(self) -> None:
            self.bundle = bundle

        def grow(self, numbers: range, output_name: str = "data", **options: Any) -> None:
            write_digits(tmp_path / "images", numbers)
            source = (str(tmp_path / "images"),)
            output = str(tmp_path / output_name)
            pack(PackConfig(source=source, output=output, shard_bytes=60_000, **options))

        def encode(self, store: str = "store", **options: Any) -> Encoded:
            given = {"model": bundle, "data": str(tmp_path / "data"), "actors": 0, **options}
            return run_encoding(EncodeConfig(output=str(tmp_path / store), **given))

        def cost(self) -> EncodingCost:
            data, output = str(tmp_path / "data"), str(tmp_path / "store")
            config = EncodeConfig(model=bundle, data=data, output=output, actors=0, dry_run=True)
            return cost_of_encoding(config)

        def store(self) -> LatentStore:
            return LatentStore.open(str(tmp_path / "store"))

    return World()


def stored(folder: Path) -> dict[str, str]:
    """A store's files by content, but for how many pointers it has had."""
    pointer = read_pointer(str(folder))
    assert pointer is not None
    files = tree(folder)
    counted = {name for name in files if name == "store.json" or name.startswith("published/")}
    named = {"pointer": repr(replace(pointer, number=0))}
    return {name: files[name] for name in files.keys() - counted} | named


def test_a_grown_dataset_costs_only_its_new_shards_and_ends_as_one_full_encode(
    world: Any, tmp_path: Path
) -> None:
    world.grow(range(100))
    assert world.encode().encoded == 100
    for night in range(1, 4):
        world.grow(range(100 + 20 * night), append=True)
        assert world.encode().encoded == 20
    assert world.encode("full").encoded == 160
    grown, full = stored(tmp_path / "store"), stored(tmp_path / "full")
    old = {name for name in grown if name.startswith(("snapshots/", "reports/"))} - full.keys()
    assert {name: grown[name] for name in grown.keys() - old} == full


def test_thirty_nights_of_additions_edits_and_deletions_end_as_one_full_encode(
    world: Any, tmp_path: Path
) -> None:
    world.grow(range(60))
    world.encode(columns=("label",))
    dice, images = random.Random(0), tmp_path / "images"
    for night in range(30):
        keys = sorted(world.store().keys())
        gone, edited = dice.sample(keys, 2)
        (images / path_of(gone)).unlink()
        write_digits(images, range(60 + 3 * night, 63 + 3 * night))
        shutil.copyfile(dice.choice(sorted(images.rglob("*.png"))), images / path_of(edited))
        source, output = (str(images),), str(tmp_path / "data")
        pack(
            PackConfig(
                source=source, output=output, append=True, remove=(gone,), shard_bytes=60_000
            )
        )
        assert 3 <= world.encode(columns=("label",)).encoded <= 5
    world.encode("full", columns=("label",))
    grown, full = stored(tmp_path / "store"), stored(tmp_path / "full")
    old = {name for name in grown if name.startswith("snapshots/")} - full.keys()
    assert len(old) == 30
    # A shard of which every image is gone by now is named by the nights before alone.
    for name in old:
        (tmp_path / "store" / name).unlink()
    remove_garbage(world.store().url)
    assert stored(tmp_path / "store") == full
    assert verify_store(world.store().url) == []


def test_a_finished_store_is_recognised_by_four_requests_and_its_end_told(
    world: Any, bundle: str, tmp_path: Path, s3_server: rgw.S3Server, fault_proxy: FaultProxy
) -> None:
    world.grow(range(60))
    store = f"{s3_server.bucket()}/s"
    config = EncodeConfig(model=bundle, data=str(tmp_path / "data"), output=store, actors=0)
    assert run_encoding(config).encoded == 60
    seen = len(fault_proxy.requests)
    assert run_encoding(config).encoded == 0
    asked = [request.line for request in fault_proxy.requests[seen:]]
    # The pointer, that none is newer, what it names, that all is there; then when it ended well.
    assert all(line.startswith("GET /") for line in asked[:4])
    assert asked[0].split("?")[0].endswith("/s/store.json")
    assert all("/s/attempts/outcome." in line for line in asked[4:])


def test_removed_and_edited_images_no_longer_count_and_the_statistics_follow(
    world: Any, tmp_path: Path
) -> None:
    world.grow(range(60))
    world.encode()
    keys = {world.store()[number].key for number in range(60)}
    gone, edited = sorted(keys)[0], sorted(keys)[-1]
    path = tmp_path / "images" / path_of(edited)
    shutil.copyfile(next(p for p in path.parent.iterdir() if p != path), path)
    (tmp_path / "images" / path_of(gone)).unlink()
    source, output = (str(tmp_path / "images"),), str(tmp_path / "data")
    pack(PackConfig(source=source, output=output, append=True, remove=(gone,), shard_bytes=60_000))
    world.encode()
    store = world.store()
    found = [store[number] for number in range(len(store))]
    assert sorted(latent.key for latent in found) == sorted(keys - {gone})
    means = np.stack([latent.tensors["mean"] for latent in found]).astype(np.float64)
    np.testing.assert_allclose(store.mean, means.mean((0, 2, 3)), rtol=1e-9, atol=1e-12)
    assert verify_store(store.url) == []


def test_another_batch_size_or_type_is_another_identity_and_never_a_mixture(world: Any) -> None:
    world.grow(range(30))
    one = world.encode().identity
    assert world.encode(dtype="float32").identity != one
    assert world.encode(batch_size=7).identity != one
    assert len({file.parent.name for file in Path(world.store().url).glob("latents/*/*")}) == 3


def test_a_source_shard_that_was_overwritten_is_noticed_and_listed(
    world: Any, tmp_path: Path
) -> None:
    world.grow(range(100))
    dataset = Dataset.open(str(tmp_path / "data"))
    index = dataset.read_index(0)
    with Path(dataset.shard_url(dataset.shards[0])).open("r+b") as file:
        file.seek(int(index.offsets[3]) + 20)
        file.write(b"\xff\xff")
    result = world.encode(attempts=2)
    assert not result.complete
    ((shard, reason),) = result.lost
    assert shard in dataset.shards[0].path
    assert "not those that were packed" in reason
    assert result.samples + dataset.shards[0].samples == 100
    assert any("have no latents" in problem for problem in verify_store(world.store().url))


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "receipt"])
def test_verify_finds_what_was_damaged(world: Any, damage: str) -> None:
    world.grow(range(30))
    world.encode()
    store = Path(world.store().url)
    assert verify_store(str(store)) == []
    (file, *_) = store.glob("latents/*/*.arrow")
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "truncate":
        file.write_bytes(data[:-100])
    elif damage == "delete":
        file.unlink()
    else:
        next(store.glob("receipts/*/*.json")).unlink()
    problems = verify_store(str(store))
    assert len(problems) == 1
    assert (file.name if damage != "receipt" else "receipt") in problems[0]


def test_a_damaged_store_is_whole_again_after_what_verify_advises(world: Any) -> None:
    world.grow(range(30))
    world.encode()
    store = Path(world.store().url)
    before = tree(store)
    (file, *_) = store.glob("latents/*/*.arrow")
    file.write_bytes(b"garbage")
    (problem,) = verify_store(str(store))
    assert f"`rm {file}`, `rm {store}/store.json`, then `python -m jobs.encode" in problem
    file.unlink()
    (store / "store.json").unlink()
    assert 0 < world.encode().encoded < 30, "only the damaged shard is made again"
    assert verify_store(str(store)) == []
    assert tree(store) == before


def test_a_column_that_no_image_has_is_refused_before_anything_is_encoded(
    world: Any, tmp_path: Path
) -> None:
    world.grow(range(20))
    with pytest.raises(DatasetError, match="no sample has the column 'labl'"):
        world.encode(columns=("label", "labl"))
    assert not (tmp_path / "store" / "latents").exists()


def test_where_and_column_kinds_come_from_the_command_line_as_people_write_them(
    world: Any, tmp_path: Path
) -> None:
    world.grow(range(30))
    outcome = encode_job.main(
        EncodeConfig(
            model=world.bundle, data=str(tmp_path / "data"), output=str(tmp_path / "store"),
            actors=0, columns=("label:json",), where=" label   in ['3','7'] ",
        )
    )  # fmt: skip
    labels = [latent.columns["label"] for latent in world.store()]
    assert set(labels) == {"3", "7"}
    assert outcome.result["filtered"] == 30 - len(labels)
    assert any("do not meet `--where`" in line for line in outcome.summary)
    options = world.store().snapshot.identity.options
    assert (options.where, options.kinds) == ("label in ['3', '7']", ("json",))
    assert world.encode(columns=("label:json",), where="label in ['3', '7']").encoded == 0
    with pytest.raises(DatasetError, match=r"no sample has the column 'aesthetic'.*`--where"):
        world.encode(where="aesthetic > 5")
    with pytest.raises(ConfigError, match="where"):
        world.encode(where="open('x')")


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.commands.encode_cost.PROBE_SECONDS", 0.2)
    world.grow(range(100))
    said = world.cost()
    assert not (tmp_path / "store").exists()
    dataset = Dataset.open(str(tmp_path / "data"))
    assert (said.images, said.shards) == (100, len(dataset.shards))
    assert said.source_bytes == sum(shard.bytes for shard in dataset.shards)
    done = world.encode()
    assert said.identity == done.identity
    written = sum(path.stat().st_size for path in (tmp_path / "store/latents").rglob("*.arrow"))
    assert said.store_bytes == pytest.approx(written, rel=0.3)
    assert said.hours == pytest.approx(100 / said.images_per_second / 3600, abs=1e-4)
    assert world.cost().images == 0, "everything is there"


def test_the_report_states_what_the_snapshot_holds_and_how_it_decodes(
    world: Any, tmp_path: Path
) -> None:
    world.grow(range(60))
    result = world.encode()
    (folder,) = (tmp_path / "store/reports").glob("*/*")
    report = json.loads((folder / "report.json").read_bytes())
    assert (report["samples"], report["complete"]) == (60, True)
    assert report["mean"] == list(world.store().mean)
    found = report["reconstruction"]
    assert found["images"] == 16
    assert 0 < found["lowest_psnr"] <= found["psnr"] < 40
    page = (folder / "report.md").read_text()
    assert "| latents | 60 |" in page
    assert result.snapshot in page
    for name in ("reconstructions.png", "channels.png"):
        assert Image.open(folder / name).size[0] > 500


@pytest.mark.parametrize(
    "options",
    [
        {"content": "mean"},
        {"content": "sample", "seed": 3},
        {"flip": True},
        {"dtype": "float32"},
        {"columns": ("label",)},
        {"content": "sample", "flip": True, "dtype": "float32", "columns": ("label",)},
    ],
)
def test_every_option_gives_a_whole_store_that_its_images_give_again(
    world: Any, options: dict[str, Any]
) -> None:
    world.grow(range(40))
    world.encode(**options)
    store = world.store()
    assert verify_store(store.url) == []
    wanted = store.snapshot.identity.options
    batch = next(store.batches())
    assert set(batch.tensors) == set(wanted.tensors)
    assert all(values.dtype == wanted.dtype for values in batch.tensors.values())
    assert tuple(batch.columns) == wanted.columns
    outcome = verify.main(VerifyConfig(store=store.url, sample=7))
    assert (outcome.exit_code, outcome.result["equal"], outcome.result["reencoded"]) == (0, 7, 7)


def test_a_limit_is_no_failure_and_the_rest_comes_with_the_next_call(
    world: Any, tmp_path: Path
) -> None:
    world.grow(range(100))
    part = world.encode(limit=20)
    assert part.failed == 0
    assert 20 <= part.samples < 100
    assert part.samples + part.lost_samples == 100
    assert world.encode().encoded == part.lost_samples


def test_the_failed_of_all_shards_are_told(world: Any, tmp_path: Path) -> None:
    write_digits(tmp_path / "images", range(60))
    for path in sorted((tmp_path / "images").rglob("*.png"))[::5]:
        path.write_bytes(path.read_bytes()[:-30])
    # Its header alone is looked at, so that what is cut shows when it is decoded.
    world.grow(range(0), verify="header")
    assert world.encode(bad_fraction=1).failed == 12
    held = [len(shard.failed) for shard in world.store().snapshot.shards]
    assert max(held) < 12


def test_what_was_read_adds_up_and_why_the_exit_code_is_3_is_said(
    world: Any, tmp_path: Path
) -> None:
    write_digits(tmp_path / "images", range(20))
    paths = sorted((tmp_path / "images").rglob("*.png"))
    for path in paths[:4]:
        path.write_bytes(path.read_bytes()[:-30])
    world.grow(range(0), verify="header")
    gone = [str(path.relative_to(tmp_path / "images")) for path in (paths[0], paths[9])]
    world.grow(range(0), verify="header", append=True, remove=tuple(gone))
    asked = EncodeConfig(
        model=world.bundle, data=str(tmp_path / "data"), output=str(tmp_path / "store"), actors=0
    )
    outcome = encode_job.main(asked)
    text = "\n".join(outcome.summary)  # two are removed, one of them broken; 3 more are broken
    assert ": 15 latents in 2 shards." in text
    assert "20 images read now = 15 encoded + 3 failed + 2 superseded." in text
    assert "More than 0.1% of the images failed, so the exit code is 3." in text
    assert "`--bad-fraction 0.17`" in text
    assert outcome.exit_code == 3
    page = text.partition("listed with reasons: ")[2].splitlines()[0]
    assert "| failed because |" in Path(page).read_text()
    again = encode_job.main(asked.model_copy(update={"bad_fraction": 0.17}))
    assert (again.exit_code, again.result["encoded"]) == (0, 0)
    assert "Nothing is new: all of it was encoded before." in again.summary


def test_moments_of_a_full_covariance_are_refused_and_its_means_are_not(
    world: Any, tmp_path: Path
) -> None:
    world.grow(range(3))
    model = ModelConfig(kind="mlp", posterior="full")
    vae = build_vae(model, PreprocessConfig(image_size=8, channels=1))
    dataset = Dataset.open(str(tmp_path / "data"))
    asked = EncodeConfig(model="m", data=dataset.url, output="o")
    tried = partial(try_bf16, vae, dataset, device=vae.device)
    with pytest.raises(ConfigError, match="full covariance"):
        identity_of(vae, asked, dataset, None, tried)
    means = asked.model_copy(update={"content": "mean"})
    assert identity_of(vae, means, dataset, None, tried).options.content == "mean"


def test_a_store_inside_the_images_folder_is_refused_since_its_pictures_would_be_packed(
    world: Any, tmp_path: Path
) -> None:
    world.grow(range(3))
    with pytest.raises(DatasetError, match=r"images/store: lies inside the source .*images"):
        world.encode("images/store")
    assert not (tmp_path / "images/store").exists()
    world.grow(range(3, 90), holdout=0.3, output_name="split")
    with pytest.raises(DatasetError, match="lies inside the source"):
        world.encode("images/store", data=str(tmp_path / "split/train"))
