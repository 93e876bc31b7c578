"""A dataset, store or run that a stranger filled with links: nothing beyond them is touched."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.stores import main
from pipeline import storage
from pipeline.config import PackConfig, StoresConfig
from pipeline.errors import PipelineError, StorageError
from pipeline.latents.marks import begin
from pipeline.packing.leftovers import find_leftovers
from pipeline.packing.pack import pack
from pipeline.runs.run import Run
from tests.support.killing import tree
from tests.support.small_store import encode, small_dataset, small_vae, write_images

LINK = "is a link to another folder"


@pytest.fixture
def beyond(tmp_path: Path) -> Path:
    """Somebody's folder, with what bears names such as ours, too."""
    place = tmp_path / "beyond"
    for name in ("mine.txt", "000001.tar", "a/b.json", ".000001.tar.0123456789ab.partial", "x.pt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("mine")
    return place


def moved(place: Path, beyond: Path) -> None:
    """A folder's files lie elsewhere, and the folder is a link to there."""
    if place.exists():
        shutil.copytree(place, beyond, dirs_exist_ok=True)
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(beyond)


def refused(beyond: Path, act: Callable[[], object]) -> None:
    before = tree(beyond)
    with pytest.raises(PipelineError, match=LINK):
        act()
    assert tree(beyond) == before


@pytest.mark.parametrize("name", ["shards", "index", "manifests", "plans", "removing", "shards/in"])
@pytest.mark.parametrize("delete", [True, False])
def test_a_datasets_garbage_is_not_looked_for_behind_a_link(
    tmp_path: Path, beyond: Path, name: str, delete: bool
) -> None:
    data = small_dataset(tmp_path, range(6)).url
    moved(Path(data, name), beyond)
    if name == "removing" and not delete:
        return  # Nothing is written there.
    refused(beyond, lambda: main(StoresConfig(dataset=data, gc=True, delete=delete)))
    if not name.startswith("shards/"):
        refused(beyond, lambda: main(
            StoresConfig(dataset=data, erase=("label1/0001.png",), delete=True)))  # fmt: skip


def test_a_split_that_lies_behind_a_link_keeps_what_it_has_and_so_does_the_other(
    tmp_path: Path, beyond: Path
) -> None:
    write_images(tmp_path / "images", range(20))
    root, images = tmp_path / "data", str(tmp_path / "images")
    pack(PackConfig(source=(images,), output=str(root), holdout=0.5, workers=1))
    storage.publish(str(root / "train/shards/stray.tar"), b"stray")
    moved(root / "holdout", beyond)
    before = tree(root / "train")
    refused(beyond, lambda: main(StoresConfig(dataset=str(root), gc=True, delete=True)))
    assert tree(root / "train") == before


@pytest.mark.parametrize("name", ["latents", "latents/in", "receipts", "snapshots/in", "reports"])
def test_a_stores_garbage_is_not_looked_for_behind_a_link(
    tmp_path: Path, beyond: Path, name: str
) -> None:
    dataset, store = small_dataset(tmp_path, range(6)), str(tmp_path / "store")
    latents = encode(small_vae(), dataset, store)
    moved(Path(store, name), beyond)
    for act in (
        lambda: main(StoresConfig(store=store, gc=True)),
        lambda: main(StoresConfig(store=store, gc=True, delete=True)),
        lambda: main(StoresConfig(store=store, erase=("label1/0001.png",), delete=True)),
        lambda: begin(store, latents.snapshot.identity.digest, dataset.digest),
    ):
        refused(beyond, act)


@pytest.mark.parametrize("name", ["shards", "index", "plans", "plans/000001", "ledger", "train"])
def test_a_pack_writes_and_removes_nothing_behind_a_link(
    tmp_path: Path, beyond: Path, name: str
) -> None:
    output = Path(small_dataset(tmp_path, range(6)).url)
    (beyond / "shards").mkdir()
    (beyond / "shards/.x.tar.0123456789ab.partial").write_text("mine")
    moved(output / name, beyond)
    write_images(tmp_path / "images", range(9))
    again = PackConfig(
        source=(str(tmp_path / "images"),), output=str(output), append=True, workers=1
    )
    refused(beyond, lambda: pack(again))
    refused(beyond, lambda: find_leftovers(str(output)))


def test_a_run_is_not_begun_anew_through_a_link(tmp_path: Path, beyond: Path) -> None:
    run = Run(str(tmp_path / "r"))
    moved(tmp_path / "r/checkpoints", beyond)
    refused(beyond, run.begin_anew)


def test_a_place_that_the_user_names_may_be_a_link(tmp_path: Path) -> None:
    data = small_dataset(tmp_path, range(6)).url
    storage.publish(storage.join(data, "shards/stray.tar"), b"stray")
    os.symlink(data, tmp_path / "named")
    named = str(tmp_path / "named")
    assert find_leftovers(named) == []
    told = main(StoresConfig(dataset=named, gc=True, delete=True)).result
    assert told["unnamed"] == [f"{named}/shards/stray.tar"]
    assert not Path(data, "shards/stray.tar").exists()


def test_links_to_files_and_what_can_not_be_listed_are_told_from_links_to_folders(
    tmp_path: Path,
) -> None:
    place, file = tmp_path / "place", tmp_path / "file"
    (place / "deep").mkdir(parents=True)
    file.write_text("x")
    (place / "to a file").symlink_to(file)
    (place / "to nothing").symlink_to("nowhere")
    (place / "round").symlink_to("round")
    os.mkfifo(place / "fifo")
    assert storage.links(str(tmp_path), "place") == storage.links(str(tmp_path), "none") == []
    (place / "deep/up").symlink_to(tmp_path)
    assert storage.links(str(tmp_path), "place/deep") == [place / "deep/up"]
    with pytest.raises(StorageError, match=LINK):
        storage.refuse_links(str(tmp_path), "place")
