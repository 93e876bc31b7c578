"""Stored random crops: where they say they lie, drawn by key and seed, one of them each epoch."""

import io
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import PackConfig, PreprocessConfig
from pipeline.data import Dataset
from pipeline.data.preprocess import preprocess_image
from pipeline.data.shard_index import RawSample
from pipeline.encoding.cutting import Cutter, Place, check_views
from pipeline.encoding.reencode import reencode
from pipeline.errors import ConfigError
from pipeline.latents import LatentLoader, LatentStore, verify_store
from pipeline.latents.identity import EncodeOptions, View
from pipeline.packing.pack import pack
from tests.pipeline.encoding.test_views import grid_vae
from tests.support.small_store import encode

CROPS = 3
COUNT = 10
SHAPES = [(16, 40), (40, 16), (16, 16), (24, 30), (33, 17)]


def write(folder: Path) -> None:
    """PNGs of noise, which are decoded whole, height by width as in SHAPES; one is torn."""
    folder.mkdir()
    for number in range(COUNT):
        dice = np.random.default_rng(number)
        height, width = SHAPES[number % len(SHAPES)]
        pixels = dice.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    data = (folder / "7.png").read_bytes()
    (folder / "7.png").write_bytes(data[: len(data) // 2])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("crops")
    write(folder / "images")
    pack(PackConfig(source=(str(folder / "images"),), output=str(folder / "d"), verify="header"))
    return Dataset.open(str(folder / "d"))


@pytest.fixture(scope="module")
def store(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    return encode(grid_vae(), dataset, tmp_path_factory.mktemp("store"), crops=CROPS, flip=True)


def test_each_crop_is_the_part_of_the_image_that_its_box_names(
    dataset: Dataset, store: LatentStore, tmp_path: Path
) -> None:
    vae, images = grid_vae(), Path(dataset.url).parent / "images"
    places = set()
    for latent in store:
        with Image.open(images / f"{latent.key[0]}.png") as image:
            for number in range(CROPS):
                boxes = np.array(latent.columns["crop_boxes"]).reshape(CROPS, 4)
                top, left, tall, wide = boxes[number].tolist()
                assert (tall, wide) == (min(image.size),) * 2
                places.add((latent.key, top, left))
                image.crop((left, top, left + wide, top + tall)).save(tmp_path / "part.png")
                pixels = preprocess_image((tmp_path / "part.png").read_bytes(), vae.preprocess)
                for view, suffix in ((pixels, ""), (pixels[:, :, ::-1].copy(), "_flipped")):
                    with torch.inference_mode():
                        alone = vae.encode(torch.from_numpy(view)[None]).mean[0].numpy()
                    stored = latent.tensors[f"mean_crop{number + 1}{suffix}"]
                    np.testing.assert_allclose(stored, alone, atol=2e-3)
    assert len(places) > 1.5 * len(store)  # three places each, but for squares
    assert store.snapshot.failed == 1


def test_a_shrunk_jpeg_tells_its_crops_in_pixels_of_the_image() -> None:
    # Grey rises from left to right, so a crop's own grey tells where it lies.
    ramp = np.linspace(0, 255, 640).astype(np.uint8)[None].repeat(128, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.stack([ramp] * 3, 2)).save(buffer, "JPEG", quality=95)
    data = buffer.getvalue()
    raw = RawSample("k", data, zlib.crc32(data), {})
    cut = Cutter(PreprocessConfig(image_size=16, channels=3), EncodeOptions("fp32", crops=20))
    found, place = cut.cut(0, raw), Place(16, (16, 16))
    boxes = np.array(found.alone(place).columns["crop_boxes"]).reshape(20, 4)
    assert set(boxes[:, 2:].reshape(-1).tolist()) == {128}
    assert (boxes[:, 0].max(), boxes[:, 1].min() >= 0, boxes[:, 1].max() <= 512) == (0, True, True)
    assert len(set(boxes[:, 1].tolist())) > 10
    for pixels, (_, left, _, wide) in zip(found.cuts[place][1:], boxes.tolist(), strict=True):
        grey = float(ramp[:, left : left + wide].mean())
        assert abs(float(pixels.float().mean()) - grey) < 2  # of 8 pixels of the image


def test_the_places_follow_from_key_and_seed_alone(dataset: Dataset, tmp_path: Path) -> None:
    def boxes(folder: str, **options: Any) -> dict[str, Any]:
        made = encode(grid_vae(), dataset, tmp_path / folder, **options)
        return {latent.key: latent.columns["crop_boxes"] for latent in made}

    one = boxes("one", crops=2, batch_size=4)
    assert one == boxes("two", crops=2, batch_size=64)
    assert one != boxes("seed", crops=2, batch_size=4, seed=1)
    more = boxes("more", crops=5, batch_size=4)
    assert {key: value[:8] for key, value in more.items()} == one


def test_a_loader_gives_one_of_the_crops_and_its_box(store: LatentStore) -> None:
    def read(**more: Any) -> list[Any]:
        loader = LatentLoader(store, global_batch_size=4, crops=True, seed=5, **more)
        return [batch for _ in range(12) for batch in loader]

    taken: Counter[tuple[str, int]] = Counter()
    for batch in read():
        for row, key in enumerate(batch.keys):
            if not batch.valid[row]:
                continue
            latent = store.by_key(key)
            equal = [
                number
                for number in range(CROPS)
                if np.array_equal(
                    batch.latents[row], latent.tensors[f"mean_crop{number + 1}"].astype(np.float32)
                )
            ]
            boxes = np.array(latent.columns["crop_boxes"]).reshape(CROPS, 4)
            assert any(
                np.array_equal(batch.columns["crop_box"][row], boxes[number]) for number in equal
            )
            taken[key, equal[0]] += 1
    assert sum(taken.values()) == 12 * len(store)
    assert len(taken) > 2 * len(store) * 0.7
    halves = zip(read(rank=0, world_size=2), read(rank=1, world_size=2), read(), strict=True)
    for one, two, whole in halves:
        assert torch.equal(torch.cat([one.latents, two.latents]), whole.latents)
    mirrored = read(flip=True)
    assert any(
        not torch.equal(one.latents, two.latents) for one, two in zip(mirrored, read(), strict=True)
    )


def test_a_store_of_crops_is_verified_and_encoded_again_to_the_bit(
    dataset: Dataset, store: LatentStore
) -> None:
    assert verify_store(store.url) == []
    again = reencode(grid_vae(), dataset, store, 5, 0)
    assert (again.images, again.equal, again.problems) == (5, 5, [])


def test_buckets_have_crops_of_their_own_shape(dataset: Dataset, tmp_path: Path) -> None:
    options = {"views": (View(16, 4),), "crops": 2}
    buckets = encode(grid_vae(), dataset, tmp_path / "b", **options)
    assert len(buckets.shapes) > 1
    seen = Counter[str]()
    for batch in LatentLoader(buckets, global_batch_size=2, crops=True):
        for row in np.flatnonzero(batch.valid).tolist():
            latent = buckets.by_key(batch.keys[row])
            wanted = [latent.tensors[f"mean_crop{n}"].astype(np.float32) for n in (1, 2)]
            assert any(np.array_equal(batch.latents[row], each) for each in wanted)
            seen[batch.keys[row]] += 1
    assert seen == Counter(latent.key for latent in buckets)


def test_what_cannot_be_is_refused(store: LatentStore, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--crop center"):
        check_views(grid_vae(), EncodeOptions("fp32", crops=1, crop="pad"))
    plain = encode(grid_vae(), dataset, tmp_path / "plain")
    with pytest.raises(ConfigError, match="--crops 4"):
        LatentLoader(plain, global_batch_size=2, crops=True)
    for name in ("crop_boxes", "mean_crop2", "logvar_crop12_flipped"):
        with pytest.raises(ConfigError, match="store's own columns"):
            EncodeOptions("fp32", columns=(name,))
    EncodeOptions("fp32", columns=("crop", "my_crop1"))
    plain_options = EncodeOptions("fp32")
    assert plain_options.to_json() == replace(plain_options, seed=3).to_json()
    crops = replace(plain_options, crops=1)
    assert crops.to_json() != replace(crops, seed=3).to_json()
