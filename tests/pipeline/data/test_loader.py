import io
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import LoaderConfig, PackConfig, PreprocessConfig
from pipeline.data import Dataset, Loader, load_images, preprocess_image, read_shard
from pipeline.data.manifest import ShardRecord
from pipeline.data.shard_reader import samples_at
from pipeline.errors import ConfigError, DatasetError
from pipeline.packing.pack import pack

COUNT = 53


def png(value: int, width: int = 12, height: int = 8) -> bytes:
    """A PNG of one grey level."""
    data = io.BytesIO()
    Image.fromarray(np.full((height, width), value, np.uint8)).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """53 images, each of its own grey level, in several shards."""
    folder = tmp_path_factory.mktemp("images")
    for value in range(COUNT):
        path = folder / "in" / str(value % 3) / f"{value:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    pack(PackConfig(source=(str(folder / "in"),), output=str(folder / "out"), shard_bytes=20_000))
    found = Dataset.open(str(folder / "out"))
    assert len(found.shards) > 2
    return found


def loader(dataset: Dataset, **options: Any) -> Loader:
    given = {"global_batch_size": 8, "image_size": 4, "channels": 1, "threads": 2, **options}
    return Loader(dataset, **given)


def valid_keys(batch: Any) -> list[str]:
    return [key for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if valid]


def test_each_image_comes_once_per_epoch_with_its_own_pixels_and_label(dataset: Dataset) -> None:
    with closing(loader(dataset, columns=("label",))) as one:
        for _ in range(2):
            seen = {}
            for batch in one:
                for key, image, label in zip(
                    batch.keys, batch.images, batch.columns["label"], strict=True
                ):
                    if key:
                        assert key not in seen
                        seen[key] = (set(image.flatten().tolist()), label)
            assert seen == {f"{v % 3}/{v:03d}%2Epng": ({v}, str(v % 3)) for v in range(COUNT)}


@given(
    st.integers(1, 30), st.integers(1, 16), st.integers(1, 16), st.integers(0, 6),
    st.integers(1, 5), st.sampled_from(["pad", "drop", "wrap"]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_a_state_goes_on_at_any_batch_at_any_other_world(
    dataset: Dataset,
    batch_size: Any,
    world: Any,
    other_world: Any,
    consumed: Any,
    threads: Any,
    tail: Any,
) -> None:
    options = {"global_batch_size": batch_size, "tail": tail, "threads": threads}

    def epochs(world_size: int, state: Any = None) -> list[list[str]]:
        """What is left of an epoch, each global batch put together from all ranks."""
        parts = []
        for rank in range(world_size):
            with closing(loader(dataset, rank=rank, world_size=world_size, **options)) as part:
                if state is not None:
                    part.load_state_dict(state)
                parts.append([batch.keys for batch in part])
        assert len({len(part) for part in parts}) == 1, "ranks with unequal numbers of steps"
        return [[key for keys in batch for key in keys] for batch in zip(*parts, strict=True)]

    whole = epochs(world)
    with closing(loader(dataset, rank=0, world_size=world, **options)) as first:
        for index, _ in enumerate(first, 1):
            if index == consumed:
                break
        state: Any = first.state_dict()
    if state["epoch"] == 0:
        assert epochs(other_world, state) == whole[state["batches"] :]


def damaged(dataset: Dataset, tmp_path: Path, position: int) -> Dataset:
    """A copy in which one byte of one image's payload is flipped."""
    import shutil

    shutil.copytree(dataset.url, tmp_path / "copy")
    copy = Dataset.open(str(tmp_path / "copy"))
    index = copy.read_index(0)
    with Path(copy.shard_url(copy.shards[0])).open("r+b") as file:
        file.seek(int(index.offsets[position]) + int(index.sizes[position]) // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    return copy


def test_a_flipped_byte_keeps_its_slot_is_masked_counted_and_never_decoded(
    dataset: Dataset, tmp_path: Path
) -> None:
    copy = damaged(dataset, tmp_path, 2)
    key = copy.read_index(0).keys[2]
    with closing(loader(dataset)) as good, closing(loader(copy)) as bad:
        for one, two in zip(good, bad, strict=True):
            assert one.keys == two.keys
            for slot, name in enumerate(two.keys):
                masked = not name or name == key
                assert bool(two.valid[slot]) is not masked
                if name == key:
                    assert two.images[slot].sum() == 0
        assert bad.stats.bad == {"checksum": 1}
        assert bad.stats.bad_samples == [(key, "checksum")]


def test_a_state_of_another_order_is_refused_and_the_difference_named(dataset: Dataset) -> None:
    with (
        closing(loader(dataset, seed=1)) as one,
        closing(loader(dataset, seed=2)) as two,
        pytest.raises(DatasetError, match="seed: the state has 1, this loader 2"),
    ):
        two.load_state_dict(one.state_dict())


def test_a_state_whose_seed_is_0_is_no_state_of_another_seed(dataset: Dataset) -> None:
    with closing(loader(dataset)) as one:
        state = one.state_dict()
    words = "seed: the state has 0, this loader 5"
    with closing(loader(dataset, seed=5)) as other, pytest.raises(DatasetError, match=words):
        other.load_state_dict(state)


class Interrupted(Loader):
    """Ctrl-C comes while the third batch is waited for."""

    waits = 0

    def _collect(self, pending: Any) -> Any:
        self.waits += 1
        if self.waits == 3:
            raise KeyboardInterrupt
        return super()._collect(pending)


def test_an_interrupt_while_a_batch_is_waited_for_loses_no_batch_and_doubles_none(
    dataset: Dataset,
) -> None:
    options: dict[str, Any] = {"global_batch_size": 8, "image_size": 4, "channels": 1, "threads": 2}
    keys = []
    with closing(loader(dataset)) as calm, closing(Interrupted(dataset, **options)) as broken:
        batches = iter(broken)
        keys += [next(batches).keys, next(batches).keys]
        with pytest.raises(KeyboardInterrupt):
            next(batches)
        keys += [batch.keys for batch in broken]
        assert keys == [batch.keys for batch in calm]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"global_batch_size": 0}, "global_batch_size: 0"),
        ({"rank": 2, "world_size": 2}, "rank: 2; the ranks of a world of 2 begin with 0"),
        ({"tail": "cut"}, "tail: 'cut'; one of pad, drop, wrap"),
    ],
)
def test_an_argument_that_makes_no_order_is_refused_by_name(
    dataset: Dataset, wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        loader(dataset, **wrong)


def test_loading_a_state_after_iteration_began_is_refused(dataset: Dataset) -> None:
    with closing(loader(dataset)) as one:
        state = one.state_dict()
        next(iter(one))
        with pytest.raises(DatasetError, match="has begun to read"):
            one.load_state_dict(state)


def test_without_shuffling_the_manifests_order_is_kept(dataset: Dataset) -> None:
    with closing(loader(dataset, shuffle=False)) as one:
        keys = [key for batch in one for key in batch.keys if key]
    order = [key for n in range(len(dataset.shards)) for key in dataset.read_index(n).keys]
    assert keys == order


def test_stock_webdataset_reads_our_shards(dataset: Dataset) -> None:
    urls = [dataset.shard_url(shard) for shard in dataset.shards]
    stock = webdataset.WebDataset(urls, shardshuffle=False).decode("l8")
    found = {sample["__key__"]: int(sample["png"][0, 0]) for sample in stock}
    assert found == {f"{v % 3}/{v:03d}%2Epng": v for v in range(COUNT)}


def test_a_shard_is_read_in_its_order_and_its_last_batch_keeps_the_full_shape(
    dataset: Dataset,
) -> None:
    preprocess = PreprocessConfig(image_size=4, channels=1)
    batches = list(read_shard(dataset, dataset.shards[0], preprocess, batch_size=4))
    assert {tuple(batch.images.shape) for batch in batches} == {(4, 1, 4, 4)}
    keys = [key for batch in batches for key in valid_keys(batch)]
    assert keys == dataset.read_index(0).keys


def test_a_shard_is_read_without_a_look_at_the_others(dataset: Dataset) -> None:
    class Untouched(ShardRecord):
        def __eq__(self, other: object) -> bool:
            raise AssertionError("looked at")

        def __hash__(self) -> int:
            raise AssertionError("looked at")

    shard = dataset.shards[0]
    others = tuple(Untouched(**{**vars(shard), "path": str(n)}) for n in range(3))
    many = replace(dataset, manifest=replace(dataset.manifest, shards=(*others, shard)))
    preprocess = PreprocessConfig(image_size=4, channels=1)
    keys = [key for batch in read_shard(many, shard, preprocess, 4) for key in valid_keys(batch)]
    assert keys == dataset.read_index(0).keys
    found = samples_at(many, shard, [0, 1, 3, 4])
    assert [sample.key for _, sample in found] == [*keys[:2], *keys[3:5]]


def test_figures_are_made_of_the_same_first_images_every_time(dataset: Dataset) -> None:
    preprocess = PreprocessConfig(image_size=4, channels=1)
    first, again = (load_images(dataset, 5, preprocess) for _ in range(2))
    assert first.keys == again.keys == dataset.read_index(0).keys[:5]
    assert bool((first.images == again.images).all())


def test_what_is_encoded_or_drawn_is_cut_from_the_centre_also_where_training_crops_at_random(
    tmp_path: Path,
) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = np.zeros((8, 24), np.uint8)
        pixels[:, 8:16] = 200
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
    pack(PackConfig(source=(str(tmp_path / "images"),), output=str(tmp_path / "wide"), workers=1))
    wide = Dataset.open(str(tmp_path / "wide"))
    preprocess = PreprocessConfig(image_size=8, channels=1, crop="random")
    shard = wide.shards[0]
    for batch in (
        next(read_shard(wide, shard, preprocess, 3)),
        load_images(wide, 3, preprocess),
    ):
        assert bool((batch.images == 200).all())


@pytest.mark.parametrize("crop", ["center", "stretch"])
def test_a_centre_crop_cuts_the_sides_and_a_stretch_keeps_them(crop: str) -> None:
    pixels = np.zeros((8, 24), np.uint8)
    pixels[:, :8] = 200
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    image = preprocess_image(
        data.getvalue(), PreprocessConfig(image_size=8, channels=1, crop=crop)
    )[0]
    # The bright third lies left of the middle square: cut away by one, kept by the other.
    assert bool(image[:, 0].mean() > 150) is (crop == "stretch")


def test_a_preprocessing_gives_the_images_of_the_short_form(dataset: Dataset) -> None:
    preprocess = PreprocessConfig(image_size=4, channels=1, crop="stretch")
    with (
        closing(Loader(dataset, preprocess, global_batch_size=8)) as whole,
        closing(loader(dataset, crop="stretch")) as short,
    ):
        for one, two in zip(whole, short, strict=True):
            assert one.keys == two.keys
            assert bool((one.images == two.images).all())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "Give image_size, or preprocess"),
        ({"preprocess": PreprocessConfig(), "image_size": 4}, "leave out image_size"),
        ({"preprocess": PreprocessConfig(), "crop": "pad"}, "leave out image_size"),
    ],
)
def test_a_preprocessing_and_the_short_form_exclude_each_other(
    dataset: Dataset, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        Loader(dataset, global_batch_size=8, **given)


def test_a_state_of_another_memory_budget_brings_its_chunk_along(dataset: Dataset) -> None:
    small = LoaderConfig(memory_bytes=200_000)
    with closing(loader(dataset)) as one, closing(loader(dataset, settings=small)) as other:
        assert one.order.chunk != other.order.chunk
        expected = [batch.keys for batch in one]
        state = one.state_dict() | {"epoch": 0, "batches": 0}
        other.load_state_dict(state)
        assert other.order.chunk == one.order.chunk
        assert [batch.keys for batch in other] == expected
