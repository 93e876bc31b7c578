"""Fourteen ways in which a cache of latents goes stale in silence elsewhere: docs/latents.md.

After each of them the usual two commands, pack and encode, end in the store of one that begins
anew, or are refused; never in what was there before.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.commands.encode import run_encoding
from pipeline.config import EncodeConfig, PackConfig
from pipeline.data import Dataset
from pipeline.data.keys import path_of
from pipeline.encoding.batch import encode_batch
from pipeline.encoding.driver import plan_encoding
from pipeline.errors import ConfigError, DatasetError
from pipeline.latent_scale import LatentScale
from pipeline.latents import LatentStore, verify_store
from pipeline.latents.identity import View
from pipeline.packing.commit import PackResult
from pipeline.packing.pack import pack
from pipeline.vae import save_bundle
from tests.pipeline.encoding.test_views import grid_vae
from tests.support.killing import tree
from tests.support.small_store import encode, identity_of

COUNT = 12
GIVEN: dict[str, Any] = {"columns": ("caption",), "views": (View(16),)}


def picture(seed: int) -> Image.Image:
    dice = np.random.default_rng(seed)
    return Image.fromarray(dice.integers(0, 256, (24, 40, 3), dtype=np.uint8))


class World:
    """A folder of images with captions, its dataset and its store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.images = folder, folder / "images"
        self.images.mkdir()
        self.captions = {f"{n:02d}.png": f"picture {n}" for n in range(COUNT)}
        for name in self.captions:
            picture(int(name[:2])).save(self.images / name)
        self.pack()
        self.encode()

    def pack(self, output: str = "data", **more: Any) -> PackResult:
        lines = [json.dumps({"path": n, "caption": c}) for n, c in sorted(self.captions.items())]
        (self.folder / "captions.jsonl").write_text("\n".join(lines))
        return pack(
            PackConfig(
                source=(str(self.images),), output=str(self.folder / output), shard_bytes=12_000,
                workers=1, annotations=str(self.folder / "captions.jsonl"), **more,
            )
        )  # fmt: skip

    def dataset(self, output: str = "data") -> Dataset:
        return Dataset.open(str(self.folder / output))

    def encode(self, store: str = "store", output: str = "data", **options: Any) -> LatentStore:
        options = {**GIVEN, **options}
        return encode(grid_vae(), self.dataset(output), self.folder / store, **options)

    def todo(self, **options: Any) -> int:
        """Images of the shards that an encoding would take on."""
        identity = identity_of(grid_vae(), **{**GIVEN, **options})
        plan = plan_encoding(str(self.folder / "store"), self.dataset(), identity)
        return sum(self.dataset().shards[number].samples for number in plan.todo)


def told(store: LatentStore) -> dict[str, tuple[str, Any]]:
    """Of each key the latents and the caption, as the store's reader has them."""
    found = {}
    for latent in store:
        data = b"".join(latent.tensors[name].tobytes() for name in sorted(latent.tensors))
        found[latent.key] = hashlib.sha256(data).hexdigest(), latent.columns["caption"]
    return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def edited(world: World) -> tuple[str, ...]:
    picture(100).save(world.images / "03.png")
    return ()


def two_of_one_stem(world: World) -> tuple[str, ...]:
    picture(101).save(world.images / "03.jpg")
    world.captions["03.jpg"] = "the other"
    return ()


def renamed(world: World) -> tuple[str, ...]:
    (world.images / "03.png").rename(world.images / "99.png")
    world.captions["99.png"] = world.captions.pop("03.png")
    return ("03.png",)


def repeated(world: World) -> tuple[str, ...]:
    shutil.copyfile(world.images / "03.png", world.images / "98.png")
    world.captions["98.png"] = "again"
    return ()


def deleted(world: World) -> tuple[str, ...]:
    (world.images / "03.png").unlink()
    del world.captions["03.png"]
    return ("03.png",)


def swapped(world: World) -> tuple[str, ...]:
    """Not of the fourteen: two names change places, and no name, size or count tells of it."""
    one, other = world.images / "03.png", world.images / "05.png"
    one.rename(world.images / "spare")
    other.rename(one)
    (world.images / "spare").rename(other)
    return ()


def caption_changed(world: World) -> tuple[str, ...]:
    world.captions["03.png"] = "another word"
    return ()


@pytest.mark.parametrize(
    "attack",
    [edited, two_of_one_stem, renamed, repeated, deleted, swapped, caption_changed],
    ids=lambda attack: attack.__name__,
)
def test_after_the_images_changed_pack_says_so_and_the_store_is_that_of_one_made_anew(
    world: World, attack: Callable[[World], tuple[str, ...]]
) -> None:
    before = told(world.encode())
    gone = attack(world)
    with pytest.raises(DatasetError, match="holds another dataset than these sources"):
        world.pack()
    world.pack(append=True, remove=gone)
    assert world.todo() < COUNT, "what did not change is not encoded again"
    after = told(world.encode())
    world.pack("anew")
    assert after == told(world.encode("store-anew", "anew"))
    assert after != before
    assert verify_store(str(world.folder / "store")) == []


def test_a_repeated_image_has_the_same_latents_and_may_be_left_out(world: World) -> None:
    repeated(world)
    world.pack(append=True)
    found = {path_of(key): value for key, value in told(world.encode()).items()}
    assert found["98.png"][0] == found["03.png"][0]
    assert (found["98.png"][1], found["03.png"][1]) == ("again", "picture 3")
    assert world.pack("fewer", deduplicate=True).samples == COUNT


def test_a_pack_without_a_table_keeps_captions_and_one_whose_row_is_gone_takes_it(
    world: World,
) -> None:
    before = told(world.encode())
    source, output = (str(world.images),), str(world.folder / "data")
    pack(PackConfig(source=source, output=output, shard_bytes=12_000, workers=1, append=True))
    assert world.todo() == 0
    assert told(world.encode()) == before
    del world.captions["03.png"]
    world.pack(append=True)
    assert world.todo() == 1
    (key,) = (key for key, (_, caption) in before.items() if caption == "picture 3")
    assert told(world.encode()) == {**before, key: (before[key][0], None)}


@pytest.mark.parametrize(
    "options",
    [
        {"resize": "bicubic"},
        {"crop": "stretch"},
        {"dtype": "float32"},
        {"tile": 8},
        {"flip": True},
    ],
    ids=["filter", "crop", "dtype", "tiling", "flip"],
)
def test_another_way_of_encoding_encodes_all_anew_and_mixes_nothing(
    world: World, options: dict[str, Any]
) -> None:
    plain, before = world.encode(), tree(world.folder / "store")
    assert world.todo(**options) == COUNT
    other = world.encode(**options)
    assert other.snapshot.identity.digest != plain.snapshot.identity.digest
    assert told(other) == told(world.encode("store-anew", **options))
    assert told(other) != told(plain)
    after = tree(world.folder / "store")
    kept = {name for name in before if name != "store.json"}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


def test_other_weights_of_the_same_shape_are_refused_and_never_read_as_these(
    world: World,
) -> None:
    torch.manual_seed(1)
    other = grid_vae()
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.01)
    names = []
    for vae, name in ((grid_vae(), "one"), (other, "two")):
        save_bundle(vae, world.folder / name, {})
        names.append(str(world.folder / name))
    asked = EncodeConfig(
        model=names[0], data=world.dataset().url, output=str(world.folder / "s"), actors=0,
        columns=("caption",), precision="fp32",
    )  # fmt: skip
    assert run_encoding(asked).encoded == COUNT
    first = told(LatentStore.open(asked.output))
    again = asked.model_copy(update={"model": names[1]})
    with pytest.raises(ConfigError, match=r"current snapshot is of the model .*/one"):
        run_encoding(again)
    assert run_encoding(again.model_copy(update={"replace_model": True})).encoded == COUNT
    second = told(LatentStore.open(asked.output))
    assert first.keys() == second.keys()
    assert all(first[key][0] != second[key][0] for key in first)


def test_the_range_of_pixels_is_nobodys_choice_and_that_of_latents_is_in_the_identity(
    world: World,
) -> None:
    vae, seen = grid_vae(), list[tuple[float, float]]()
    inside = vae.network.encode

    def spied(images: torch.Tensor) -> torch.Tensor:
        seen.append((float(images.min()), float(images.max())))
        return inside(images)

    vae.network.encode = spied  # type: ignore[method-assign]
    images = torch.zeros(2, 1, 3, 16, 16, dtype=torch.uint8)
    images[1] = 255
    options = identity_of(vae, **GIVEN).options
    changes: list[dict[str, Any]] = [
        {}, {"precision": "bf16"}, {"content": "sample"}, {"dtype": "int8"}
    ]  # fmt: skip
    for changed in changes:
        valid = np.ones(2, dtype=bool)
        encode_batch(vae, images, ["a", "b"], valid, replace(options, **changed))
    assert set(seen) == {(-1.0, 1.0)}
    scaled = identity_of(vae, **GIVEN)
    other = replace(scaled, scale=LatentScale(scaling_factor=0.18215))
    assert scaled.digest != other.digest
    assert len(plan_encoding(str(world.folder / "store"), world.dataset(), other).todo) > 0


@pytest.mark.parametrize("left", [0, 1, 400])
def test_a_half_written_file_is_never_taken_for_latents(world: World, left: int) -> None:
    store = world.encode()
    whole = told(store)
    for name, part in (("latents", "*.arrow"), ("receipts", "*.json")):
        path = sorted((world.folder / "store" / name).rglob(part))[0]
        data = path.read_bytes()
        path.write_bytes(data[:left])
        assert verify_store(store.url) != []
        path.write_bytes(data)
    # Killed before its receipt, it leaves bytes that nothing names.
    stray = sorted((world.folder / "store/latents").rglob("*.arrow"))[0]
    (stray.parent / f"{stray.name[:-6]}0.arrow").write_bytes(stray.read_bytes()[:left])
    assert told(LatentStore.open(store.url)) == whole
    assert world.todo() == 0
    assert verify_store(store.url) == []
