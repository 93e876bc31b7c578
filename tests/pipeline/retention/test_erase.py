"""Images taken out for good: their bytes are nowhere, everything else is as it was, and it holds.

Looked for as anybody would: by the bytes of the files, below all that a dataset or a store has.
"""

import io
import signal
import subprocess
import sys
import tarfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from jobs.command import Outcome
from jobs.stores import main
from pipeline import storage
from pipeline.config import IndexConfig, LoaderConfig, PackConfig, PreprocessConfig, StoresConfig
from pipeline.data import Dataset, Loader
from pipeline.errors import DatasetError, StorageError
from pipeline.packing.adopt import adopt
from pipeline.packing.commit import publish_newest
from pipeline.packing.pack import pack
from pipeline.packing.verify_dataset import verify_dataset
from pipeline.retention.images import erase_images
from pipeline.storage.marks import removing
from tests.support.ended import ended_after
from tests.support.erasing import GONE, KEY, files_below, grown_dataset, holding
from tests.support.small_store import encode, small_dataset, small_vae, write_images


def told(outcome: Outcome) -> Any:
    """What a job says of the dataset."""
    return outcome.result["dataset"]


def image_of(folder: Path, name: str = GONE) -> bytes:
    return (folder / "images" / name).read_bytes()


def test_an_erased_images_bytes_are_nowhere_and_the_rest_is_what_it_was(
    place: str, tmp_path: Path
) -> None:
    before = grown_dataset(tmp_path, place)
    image, others = image_of(tmp_path), {}
    for number, key in enumerate(before.keys()):
        others[key] = np.asarray(before[number].image).copy()
    assert len(holding(place, image)) == 1, "the test looks for what is there"
    found = main(StoresConfig(dataset=place, erase=(GONE,)))
    assert len(holding(place, image)) == 1, "a dry run"
    assert told(found)["bytes"] >= len(image)
    done = main(StoresConfig(dataset=place, erase=(GONE,), delete=True))
    assert told(done)["bytes"] == told(found)["bytes"]
    assert holding(place, image) == []
    assert holding(place, image[60:120]) == [], "nor a part of it"
    assert verify_dataset(place) == []
    after = Dataset.open(place)
    assert list(after.keys()) == [key for key in others if key != KEY]
    for number, key in enumerate(after.keys()):
        np.testing.assert_array_equal(np.asarray(after[number].image), others[key])
    loader = Loader(
        after, PreprocessConfig(image_size=8, channels=1), global_batch_size=8,
        settings=LoaderConfig(threads=1),
    )  # fmt: skip
    assert sorted(key for batch in loader for key in batch.keys if key) == sorted(after.keys())


def test_what_lies_beside_it_goes_with_it_and_stock_readers_pass_over_the_place(
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "images", range(20))
    table = tmp_path / "table.csv"
    rows = [f"label{n % 3}/{n:04d}.png,a caption of number {n:04d}" for n in range(20)]
    table.write_text("path,caption\n" + "\n".join(rows) + "\n")
    place = str(tmp_path / "data")
    pack(PackConfig(
        source=(str(tmp_path / "images"),), output=place, annotations=str(table), workers=1,
    ))  # fmt: skip
    assert holding(place, b"number 0007") != []
    erase_images(place, [GONE], delete=True)
    assert holding(place, b"number 0007") == []
    assert verify_dataset(place) == []
    (shard,) = (tmp_path / "data/shards").iterdir()
    with tarfile.open(shard) as tar:
        names = tar.getnames()
    assert len(names) == len(set(names))
    assert "__erased__" in names
    assert not any("0007" in name for name in names)
    stock = webdataset.WebDataset(str(shard), shardshuffle=False)
    assert sorted(sample["__key__"] for sample in stock) == sorted(Dataset.open(place).keys())


def test_no_later_pack_brings_it_back_even_where_the_file_has_changed(tmp_path: Path) -> None:
    place = str(tmp_path / "data")
    small_dataset(tmp_path, range(20), output=place)
    erase_images(place, [GONE], delete=True)
    path = tmp_path / "images" / GONE
    write_images(tmp_path / "more", range(50, 51))
    path.write_bytes(next((tmp_path / "more").rglob("*.png")).read_bytes())
    for checksum in (False, True):
        again = pack(PackConfig(
            source=(str(tmp_path / "images"),), output=place, append=True, workers=1,
            shard_bytes=60_000, checksum=checksum,
        ))  # fmt: skip
        assert (again.added, again.samples) == (0, 19)
        assert again.ignored == {"removed": 1}
    assert KEY not in set(Dataset.open(place).keys())


def test_copies_under_another_name_are_told_and_stay(tmp_path: Path) -> None:
    place = str(tmp_path / "data")
    write_images(tmp_path / "images", range(20))
    (tmp_path / "images/label1/copy.png").write_bytes(image_of(tmp_path))
    small_dataset(tmp_path, range(20), output=place)
    found = main(StoresConfig(dataset=place, erase=(GONE,), delete=True))
    assert any("label1/copy%2Epng: has the same bytes" in line for line in found.summary)
    assert len(holding(place, image_of(tmp_path))) == 1
    main(StoresConfig(dataset=place, erase=(GONE, "label1/copy.png"), delete=True))
    assert holding(place, image_of(tmp_path)) == []


def test_a_copy_that_was_left_out_as_a_duplicate_is_told_and_goes_when_it_is_asked_for(
    tmp_path: Path,
) -> None:
    place = str(tmp_path / "data")
    write_images(tmp_path / "images", range(20))
    (tmp_path / "images/label1/copy.png").write_bytes(image_of(tmp_path))
    packed = pack(PackConfig(
        source=(str(tmp_path / "images"),), output=place, deduplicate=True, workers=1,
    ))  # fmt: skip
    assert packed.samples == 20
    (shard,) = holding(place, image_of(tmp_path))
    assert files_below(place)[shard].count(image_of(tmp_path)) == 2
    dropped = next(
        key for key in (KEY, "label1/copy%2Epng") if key not in set(Dataset.open(place).keys())
    )
    kept = "label1/copy%2Epng" if dropped == KEY else KEY
    assert erase_images(place, [kept], delete=False).copies == (dropped,)
    erase_images(place, [GONE, "label1/copy.png"], delete=True)
    assert holding(place, image_of(tmp_path)) == []
    assert len(Dataset.open(place)) == 19
    assert verify_dataset(place) == []


def test_a_damaged_tar_gets_no_checksum_that_calls_it_whole(tmp_path: Path) -> None:
    place = str(tmp_path / "data")
    grown_dataset(tmp_path, place)
    (name,) = holding(place, image_of(tmp_path))
    data = bytearray(files_below(place)[name])
    data[100] ^= 1  # in the first header: no member's checksum covers it
    storage.publish(place + name, bytes(data))
    before = files_below(place)
    with pytest.raises(DatasetError, match=r"sha256 differs.*jobs.verify"):
        erase_images(place, [GONE], delete=True)
    assert files_below(place) == before


def test_nothing_is_erased_beside_another_removal(tmp_path: Path) -> None:
    """Each writes whole tars and receipts: the later one would bring back what the first took."""
    place, url = str(tmp_path / "data"), str(tmp_path / "store")
    encode(small_vae(), grown_dataset(tmp_path, place), url)
    for root, options in ((place, {"dataset": place}), (url, {"store": url})):
        asked = StoresConfig(**options, erase=(GONE,), delete=True)
        with removing(root):
            with pytest.raises(
                StorageError, match=r"something else is being removed here.*removing/"
            ):
                main(asked)
            with pytest.raises(StorageError, match="something else is being removed here"):
                main(StoresConfig(**options, gc=True, delete=True))
        main(asked)
    assert holding(place, image_of(tmp_path)) == []


def test_a_pack_that_began_when_a_twins_end_took_the_mark_keeps_its_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path / "data")
    grown_dataset(tmp_path, place)
    new = tmp_path / "data/shards/004-new.tar"

    def meanwhile(*arguments: Any) -> Any:
        new.write_bytes(b"of a pack")
        storage.scratch(str(new)).write_bytes(b"half")
        return publish_newest(*arguments)

    monkeypatch.setattr("pipeline.retention.images.publish_newest", meanwhile)
    before = len(list(new.parent.iterdir()))
    erase_images(place, [GONE], delete=True)
    assert new.exists()
    assert len(list(new.parent.iterdir())) == before + 2


def test_an_erasure_that_is_killed_at_any_write_ends_the_same_when_it_is_run_again(
    tmp_path: Path,
) -> None:
    trees = set()
    for survives in count():
        folder = tmp_path / str(survives)
        place = str(folder / "data")
        grown_dataset(folder, place)
        with ended_after(survives) as refused:
            erase_images(place, [GONE], delete=True)
        erase_images(place, [GONE], delete=True)
        assert verify_dataset(place) == []
        assert holding(place, image_of(folder)) == []
        # Paths and times of the sources are in the ledger: each round has its own.
        trees.add(tuple(sorted(n for n in files_below(place) if not n.startswith("/ledger"))))
        if not refused:
            break
    assert survives > 6, "it died at some of its writes"
    assert len(trees) == 1


def test_an_erasure_that_is_killed_by_the_kernel_leaves_a_mark_that_its_next_run_takes_away(
    tmp_path: Path,
) -> None:
    place = str(tmp_path / "data")
    grown_dataset(tmp_path, place)
    code = (
        "import os, signal\nfrom pipeline.retention import images as erase\n"
        "erase._blank = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"erase.erase_images({place!r}, [{GONE!r}], delete=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    with pytest.raises(DatasetError, match=r"something is being removed here.*run it again"):
        pack(PackConfig(
            source=(str(tmp_path / "images"),), output=place, append=True, remove=(GONE,),
            shard_bytes=60_000, workers=1,
        ))  # fmt: skip
    erase_images(place, [GONE], delete=True)
    assert holding(place, image_of(tmp_path)) == []
    assert not any(name.startswith("/removing") for name in files_below(place))


def test_a_run_on_an_older_generation_reads_on_with_that_image_masked(tmp_path: Path) -> None:
    place = str(tmp_path / "data")
    before = grown_dataset(tmp_path, place)
    order = list(before.keys())
    erase_images(place, [GONE], delete=True)
    pinned = Dataset.open(place, before.digest)
    loader = Loader(
        pinned, PreprocessConfig(image_size=8, channels=1), global_batch_size=len(order),
        settings=LoaderConfig(threads=1),
    )  # fmt: skip
    (batch,) = loader
    assert sorted(batch.keys) == sorted(order)
    bad = [key for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if not valid]
    assert bad == [KEY]


def test_strays_of_killed_packs_that_hold_it_go_too(tmp_path: Path) -> None:
    place = str(tmp_path / "data")
    grown_dataset(tmp_path, place)
    (tmp_path / "data/shards/000-stray.tar").write_bytes(b"x" + image_of(tmp_path) + b"y")
    found = main(StoresConfig(dataset=place, erase=(GONE,)))
    assert any("shards/000-stray.tar: no generation names it" in line for line in found.summary)
    main(StoresConfig(dataset=place, erase=(GONE,), delete=True))
    assert holding(place, image_of(tmp_path)) == []


def test_what_can_not_be_erased_is_refused_in_one_line(tmp_path: Path) -> None:
    place = str(tmp_path / "data")
    grown_dataset(tmp_path, place)
    with pytest.raises(DatasetError, match=r"--erase`: there is no 'label1/0107.png'. Near: "):
        erase_images(place, ["label1/0107.png"], delete=True)
    storage.publish(f"{place}/plans/000003.json", b"{}")
    with pytest.raises(DatasetError, match="a pack has begun and not ended"):
        erase_images(place, [GONE], delete=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = len(image_of(tmp_path))
        tar.addfile(info, io.BytesIO(image_of(tmp_path)))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/0.tar").write_bytes(buffer.getvalue())
    adopted = str(tmp_path / "adopted")
    adopt(IndexConfig(source=(str(tmp_path / "foreign"),), output=adopted))
    with pytest.raises(DatasetError, match="its tars are not ours to change"):
        erase_images(adopted, ["a"], delete=True)


def test_a_split_dataset_is_erased_on_both_sides(tmp_path: Path) -> None:
    place = str(tmp_path / "data")
    write_images(tmp_path / "images", range(40))
    pack(PackConfig(
        source=(str(tmp_path / "images"),), output=place, holdout=0.3, shard_bytes=60_000,
        workers=1,
    ))  # fmt: skip
    held = next(iter(Dataset.open(f"{place}/holdout").keys()))
    trained = next(iter(Dataset.open(f"{place}/train").keys()))
    erase_images(f"{place}/train", [held, trained], delete=True)
    for split, key in (("holdout", held), ("train", trained)):
        assert key not in set(Dataset.open(f"{place}/{split}").keys())
        assert verify_dataset(f"{place}/{split}") == []
        assert holding(place, image_of(tmp_path, key.replace("%2E", "."))) == []


def test_what_is_beyond_reach_is_said(tmp_path: Path) -> None:
    place = str(tmp_path / "data")
    grown_dataset(tmp_path, place)
    said = " ".join(main(StoresConfig(dataset=place, erase=(GONE,))).summary)
    for word in ("backups", "older versions", "weights that learnt from it", "ledger", "--delete"):
        assert word in said
