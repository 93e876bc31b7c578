"""Sizes and buckets: each image cut once for each, by a network that takes any multiple of two."""

import io
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import ModelConfig, PackConfig, PreprocessConfig
from pipeline.data import Dataset
from pipeline.data.decode import decoded_image
from pipeline.data.preprocess import preprocess_image
from pipeline.data.shard_index import RawSample
from pipeline.encoding import cutting
from pipeline.encoding.cutting import Cutter, Place, check_views, seen
from pipeline.encoding.reencode import reencode
from pipeline.encoding.report import reconstruct, report_of, to_markdown
from pipeline.encoding.tiles import tiling_cost
from pipeline.errors import ConfigError, ModelError, StoreError
from pipeline.exchange.store_export import export_store
from pipeline.latents import LatentLoader, LatentStore, verify_store
from pipeline.latents.identity import EncodeOptions, View
from pipeline.packing.pack import pack
from pipeline.vae import VAE, build_vae
from tests.support.killing import tree
from tests.support.small_store import encode, small_vae

BUCKETS = (View(16, 4),)
SIZES = (View(8), View(16))
COUNT = 48


def grid_vae() -> VAE:
    """An untrained autoencoder of two pixels a latent: images of any even size."""
    torch.manual_seed(0)
    config = ModelConfig(kind="autoencoder_kl", widths=(4, 4), groups=2, latent_channels=2)
    vae = build_vae(config, PreprocessConfig(image_size=16, channels=3)).eval()
    vae.digest = "a" * 64
    return vae


def write_photos(folder: Path, numbers: range) -> None:
    """JPEGs of smooth noise in many shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        dice = np.random.default_rng(number)
        coarse = Image.fromarray(dice.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        width, height = (int(side) for side in dice.integers(20, 90, 2))
        coarse.resize((width, height)).save(folder / f"{number:04d}.jpg", quality=90)


def photos(folder: Path, numbers: range = range(COUNT), **more: Any) -> Dataset:
    write_photos(folder / "images", numbers)
    given = {"source": (str(folder / "images"),), "output": str(folder / "data"), **more}
    pack(PackConfig(shard_bytes=60_000, workers=1, **given))
    return Dataset.open(str(folder / "data"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def bucketed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    return encode(grid_vae(), dataset, tmp_path_factory.mktemp("store"), views=BUCKETS)


def sizes_of(dataset: Dataset) -> dict[str, tuple[int, int]]:
    """Height and width of each image, from the dataset's own files."""
    found = {}
    for path in Path(dataset.url).parent.rglob("images/*.jpg"):
        with Image.open(path) as image:
            found[path.stem] = (image.height, image.width)
    return found


def number_of(key: str) -> str:
    return key.rsplit("/", 1)[-1].split("%")[0]


def test_each_image_lies_in_the_bucket_of_its_proportions_with_its_size_and_box(
    dataset: Dataset, bucketed: LatentStore
) -> None:
    assert verify_store(bucketed.url) == []
    assert len(bucketed) == COUNT
    assert len(bucketed.shapes) > 4
    sizes = sizes_of(dataset)
    for latent in bucketed:
        height, width = sizes[number_of(latent.key)]
        bucket = BUCKETS[0].shape_for(height, width)
        assert latent.tensors["mean"].shape == (2, bucket[0] // 2, bucket[1] // 2)
        assert latent.columns["original_size"] == [height, width]
        box: Any = latent.columns["crop_box"]
        top, left, tall, wide = box
        assert (height - tall) // 2 == top
        assert (width - wide) // 2 == left
        assert tall == height or wide == width
        assert abs(tall / wide - bucket[0] / bucket[1]) < 0.05 * bucket[0] / bucket[1] + 0.05


def test_the_same_images_give_the_same_latents_again_and_decode_to_their_own_shape(
    dataset: Dataset, bucketed: LatentStore
) -> None:
    found = reencode(grid_vae(), dataset, bucketed, COUNT, seed=0)
    assert (found.images, found.equal, found.problems) == (COUNT, COUNT, [])
    shown = reconstruct(grid_vae(), dataset, bucketed, 4)
    assert shown is not None
    assert shown.originals.shape == shown.decoded.shape
    page = to_markdown(report_of(bucketed.snapshot, shown))
    assert page.count(" of [2, ") == len(bucketed.shapes)


def test_a_latent_is_that_of_its_cut_image_alone(dataset: Dataset, tmp_path: Path) -> None:
    vae, folder = grid_vae(), Path(dataset.url).parent / "images"
    # Large enough that no image is decoded at half its size.
    store = encode(vae, dataset, tmp_path / "s", views=(View(64, 8),))
    for number in (0, 17, 40):
        latent = store[number]
        shape = tuple(2 * side for side in latent.tensors["mean"].shape[1:])
        box: Any = latent.columns["crop_box"]
        top, left, tall, wide = box
        with Image.open(folder / f"{number_of(latent.key)}.jpg") as image:
            pixels = torch.from_numpy(np.array(image))[top : top + tall, left : left + wide]
        cut = torch.nn.functional.interpolate(
            pixels.permute(2, 0, 1)[None], shape, mode="bilinear", antialias=True
        )
        with torch.no_grad():
            expected = vae.encode(cut).mean[0].numpy()
        np.testing.assert_allclose(latent.tensors["mean"], expected, atol=0.02)


def test_every_batch_is_of_one_shape_and_any_world_and_a_resume_read_each_image_once(
    bucketed: LatentStore,
) -> None:
    def loader(world: int, rank: int) -> LatentLoader:
        return LatentLoader(
            bucketed, global_batch_size=7, seed=3, world_size=world, rank=rank, sample=True
        )

    whole = list(loader(1, 0))
    assert len(whole) == loader(1, 0).steps_per_epoch
    keys = [key for batch in whole for key in batch.keys if key]
    assert sorted(keys) == sorted(bucketed.keys())
    assert len({batch.latents.shape[1:] for batch in whole}) == len(bucketed.shapes)
    shapes = [tuple(batch.latents.shape[1:]) for batch in whole]
    assert shapes != sorted(shapes), "they come in turn"
    for world in range(2, 8):
        ranks = [list(loader(world, rank)) for rank in range(world)]
        for step, batch in enumerate(whole):
            parts = [batches[step] for batches in ranks]
            assert [key for part in parts for key in part.keys] == batch.keys
            assert torch.equal(torch.cat([part.latents for part in parts]), batch.latents)
    for taken in (1, len(whole) // 2, len(whole)):
        begun = loader(3, 1)
        for _ in zip(range(taken), begun, strict=False):
            continue
        resumed = loader(1, 0)
        resumed.load_state_dict(begun.state_dict())
        rest = list(resumed) if taken < len(whole) else []
        assert [b.keys for b in rest] == [b.keys for b in whole[taken:]]
    again = loader(1, 0)
    first, second = list(again), list(again)
    assert [b.keys for b in first] != [b.keys for b in second], "another epoch, another order"


def test_values_of_a_batch_are_those_of_its_keys(bucketed: LatentStore) -> None:
    for batch in LatentLoader(bucketed, global_batch_size=7):
        for row in np.flatnonzero(batch.valid.numpy()):
            latent = bucketed.by_key(batch.keys[row])
            np.testing.assert_array_equal(batch.latents[row], latent.tensors["mean"])
            assert batch.columns["original_size"][row] == latent.columns["original_size"]
    items = bucketed.to_torch().__getitems__(range(COUNT))
    assert [item["key"] for item in items] == list(bucketed.keys())
    for number in (0, 5, 47):
        np.testing.assert_array_equal(items[number]["mean"], bucketed[number].tensors["mean"])


def test_several_sizes_are_one_decoding_and_each_is_a_store_of_its_own(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[int] = Counter()
    plain = decoded_image

    def counted(data: bytes, **more: Any) -> Any:
        decoded[hash(data)] += 1
        return plain(data, **more)

    monkeypatch.setattr(cutting, "decoded_image", counted)
    store = encode(grid_vae(), dataset, tmp_path / "s", views=SIZES)
    assert len(decoded) == COUNT
    assert set(decoded.values()) == {1}
    assert verify_store(store.url) == []
    with pytest.raises(ConfigError, match=r"several sizes \(8, 16\). Say which"):
        LatentStore.open(store.url)
    with pytest.raises(ConfigError, match=r"holds images of 8, 16 pixels, not of 32"):
        LatentStore.open(store.url, size=32)
    for view in SIZES:
        one = LatentStore.open(store.url, size=view.size)
        assert sorted(one.keys()) == sorted({latent.key for latent in store})
        assert one.shapes == ((2, view.size // 2, view.size // 2),)
        by_shard = [list(one.shard_batches(n, ())) for n in range(len(one.snapshot.shards))]
        assert len(by_shard) > 1
        assert all(by_shard)
        assert [key for shard in by_shard for rows in shard for key in rows.keys] == [*one.keys()]
        assert sum(len(batch.keys) - batch.keys.count("") for batch in
                   LatentLoader(one, global_batch_size=8)) == COUNT  # fmt: skip
        means = np.stack([latent.tensors["mean"] for latent in one]).astype(np.float64)
        np.testing.assert_allclose(one.mean, means.mean((0, 2, 3)), rtol=1e-9, atol=1e-12)
        export_store(one, str(tmp_path / f"out-{view.size}"), "npy")
    with pytest.raises(StoreError, match="size: the state has 16, this loader 8"):
        LatentLoader(LatentStore.open(store.url, size=8), global_batch_size=8).load_state_dict(
            LatentLoader(LatentStore.open(store.url, size=16), global_batch_size=8).state_dict()
        )
    found = reencode(grid_vae(), dataset, store, 2 * COUNT, seed=0)
    assert (found.images, found.equal) == (2 * COUNT, 2 * COUNT)


def test_nights_of_growth_and_removal_end_as_one_pass_byte_for_byte(tmp_path: Path) -> None:
    views = (View(8, 2), View(16, 4))
    photos(tmp_path, range(10))
    store = tmp_path / "s"
    for night in range(30):
        dataset = photos(tmp_path, range(10 + 2 * (night + 1)), append=True)
        encode(grid_vae(), dataset, store, views=views)
    keys = list(dataset.keys())
    gone = {"remove": (keys[3], keys[9]), "append": True}
    for number in (keys[3], keys[9]):
        (tmp_path / "images" / f"{number_of(number)}.jpg").unlink()
    given = {"source": (str(tmp_path / "images"),), "output": str(tmp_path / "data"), **gone}
    pack(PackConfig(shard_bytes=60_000, workers=1, **given))
    dataset = Dataset.open(str(tmp_path / "data"))
    grown = encode(grid_vae(), dataset, store, views=views)
    whole = encode(grid_vae(), dataset, tmp_path / "whole", views=views)
    assert len(grown) == 2 * (70 - 2)
    assert verify_store(grown.url) == []
    one, other = tree(store), tree(tmp_path / "whole")
    parts = ("latents/", "receipts/", f"{whole.snapshot.path}")
    assert {n: v for n, v in one.items() if n.startswith(parts)} == {
        n: v for n, v in other.items() if n.startswith(parts)
    }


def test_an_image_that_cannot_be_read_is_told_once_for_each_size(tmp_path: Path) -> None:
    write_photos(tmp_path / "images", range(6))
    data = (tmp_path / "images/0000.jpg").read_bytes()
    (tmp_path / "images/bad.jpg").write_bytes(data[: len(data) // 2])
    dataset = photos(tmp_path, range(6), verify="header")
    store = encode(grid_vae(), dataset, tmp_path / "s", views=(View(8, 2), View(16, 4)))
    failed = [sample for part in store.snapshot.parts for sample in part.failed]
    assert [(number_of(s.key), s.reason) for s in failed] == [("bad", "truncated")] * 2
    assert (len(store), store.snapshot.failed, store.snapshot.filtered) == (12, 2, 0)
    assert verify_store(store.url) == []
    one = LatentStore.open(store.url, size=8)
    lost = [key for b in LatentLoader(one, global_batch_size=4) for key in b.failed]
    assert lost == [failed[0].key]


def test_a_size_alone_cuts_as_the_model_does_at_that_size() -> None:
    dice = np.random.default_rng(0)
    picture = Image.fromarray(dice.integers(0, 256, (70, 50, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data, preprocess = buffer.getvalue(), PreprocessConfig(image_size=16, crop="random")
    raw = RawSample("k", data, zlib.crc32(data), {})
    for crop in ("center", "pad", "stretch"):
        options = EncodeOptions("fp32", views=(View(24),), crop=crop, resize="bicubic")
        cut = Cutter(preprocess, options).cut(3, raw)
        wanted = PreprocessConfig(image_size=24, crop=crop, resize="bicubic")
        assert seen(preprocess, options) == wanted
        found = cut.cuts[Place(24, (24, 24))][0].numpy()
        np.testing.assert_array_equal(found, preprocess_image(data, wanted))
        box = [10, 0, 50, 50] if crop == "center" else [0, 0, 70, 50]
        assert cut.alone(Place(24, (24, 24))).columns["crop_box"] == box
    assert seen(preprocess, EncodeOptions("fp32")) == PreprocessConfig(image_size=16)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"views": (View(15),)}, "multiples of 2"),
        ({"views": (View(16, 5),)}, "multiples of 2"),
        ({"views": (View(16, 4), View(16))}, "each can be given once"),
        ({"views": (View(16, 4),), "crop": "pad"}, "cut from the centre"),
        ({"views": (View(2, 4),)}, "no bucket has so small an area"),
    ],
)
def test_shapes_that_the_network_cannot_take_are_refused(options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_views(grid_vae(), EncodeOptions("fp32", **options))


def test_a_network_of_one_size_is_refused_any_other() -> None:
    with pytest.raises(ModelError, match="take no other size"):
        check_views(small_vae(), EncodeOptions("fp32", views=(View(16),)))


def test_larger_images_are_encoded_in_tiles_and_the_report_says_what_that_costs(
    dataset: Dataset, tmp_path: Path
) -> None:
    vae = grid_vae()
    whole = encode(vae, dataset, tmp_path / "whole", views=(View(64, 8),))
    tiled = encode(vae, dataset, tmp_path / "tiled", views=(View(64, 8),), tile=48)
    assert tiled.snapshot.identity.digest != whole.snapshot.identity.digest
    assert tiled.shapes == whole.shapes
    assert verify_store(tiled.url) == []
    found = reencode(vae, dataset, tiled, COUNT, seed=0)
    assert (found.images, found.equal) == (COUNT, COUNT)
    shown = reconstruct(vae, dataset, tiled, 4)
    assert shown is not None
    cost = tiling_cost(vae, shown.originals, 48)
    assert cost is not None
    assert cost.images == len(shown.keys)
    assert 0 < cost.mean <= cost.largest < 1
    latent = tiled.by_key(shown.keys[0]).tensors["mean"].astype(np.float64)
    exact = whole.by_key(shown.keys[0]).tensors["mean"].astype(np.float64)
    distance = np.sqrt(np.square(latent - exact).mean() / np.square(exact).mean())
    assert distance <= cost.largest + 0.002  # float16's own rounding
    page = to_markdown(report_of(tiled.snapshot, shown, cost))
    assert "tiles of 48 pixels against the whole" in page
    assert f"{cost.largest:.3g} at most" in page
    assert "tiles of" not in to_markdown(report_of(whole.snapshot, shown))


def test_an_image_no_larger_than_a_tile_is_encoded_whole(dataset: Dataset, tmp_path: Path) -> None:
    one, other = (encode(grid_vae(), dataset, tmp_path / str(tile), tile=tile) for tile in (0, 16))
    for number in (0, 20, 47):
        np.testing.assert_array_equal(one[number].tensors["mean"], other[number].tensors["mean"])
    with pytest.raises(ConfigError, match="tiles of 15 pixels"):
        check_views(grid_vae(), EncodeOptions("fp32", tile=15))
    with pytest.raises(ModelError, match="nor tiles"):
        check_views(small_vae(), EncodeOptions("fp32", tile=16))


def test_a_photo_held_sideways_is_in_the_bucket_of_what_people_see(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", (80, 40), (200, 30, 60)).save(tmp_path / "images/wide.jpg")
    Image.new("RGB", (80, 40), (200, 30, 60)).save(tmp_path / "images/turned.jpg", exif=exif)
    store = encode(grid_vae(), photos(tmp_path, range(0)), tmp_path / "s", views=BUCKETS)
    found = {latent.key.split("%")[0]: latent for latent in store}
    assert found["turned"].columns["original_size"] == [80, 40]
    assert found["wide"].columns["original_size"] == [40, 80]
    _, height, width = found["turned"].tensors["mean"].shape
    assert height > width
    assert found["wide"].tensors["mean"].shape == (2, width, height)


def test_the_smallest_and_the_longest_image_have_a_bucket_and_say_what_was_cut(
    tmp_path: Path,
) -> None:
    (tmp_path / "images").mkdir()
    for name, size in (("dot", (1, 1)), ("line", (2000, 2)), ("pole", (3, 900))):
        Image.new("RGB", size, (9, 99, 199)).save(tmp_path / f"images/{name}.png")
    store = encode(grid_vae(), photos(tmp_path, range(0)), tmp_path / "s", views=BUCKETS)
    found = {latent.key.split("%")[0]: latent for latent in store}
    assert found["dot"].tensors["mean"].shape == (2, 8, 8)
    assert found["line"].columns["original_size"] == [2, 2000]
    box: Any = found["line"].columns["crop_box"]
    assert (box[0], box[2], box[3]) == (0, 2, 8), "of a line what has four times its height"
    assert found["line"].tensors["mean"].shape[1:] == found["pole"].tensors["mean"].shape[:0:-1]


def test_bytes_of_a_latent_do_not_grow_with_the_batch_it_was_encoded_in(
    dataset: Dataset, tmp_path: Path
) -> None:
    sizes = {}
    for batch in (4, 16):
        store = encode(grid_vae(), dataset, tmp_path / f"b{batch}", batch_size=batch)
        sizes[batch] = sum(shard.receipt.bytes for shard in store.snapshot.shards)
    assert sizes[16] < sizes[4]
    exact = COUNT * 2 * 2 * 8 * 8 * 2
    assert sizes[4] < exact + 1024 * COUNT


def test_images_without_a_caption_are_encoded_with_none(tmp_path: Path) -> None:
    write_photos(tmp_path / "images", range(6))
    (tmp_path / "c.csv").write_text("path,caption\n0000.jpg,a hill\n")
    dataset = photos(tmp_path, range(6), annotations=str(tmp_path / "c.csv"))
    store = encode(grid_vae(), dataset, tmp_path / "s", columns=("caption",))
    told = {number_of(latent.key): latent.columns["caption"] for latent in store}
    assert told == {"0000": "a hill"} | {f"{n:04d}": None for n in range(1, 6)}
