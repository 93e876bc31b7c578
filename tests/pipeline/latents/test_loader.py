import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import storage
from pipeline.config import PackConfig
from pipeline.data import Dataset, Loader
from pipeline.errors import ConfigError, ModelError, StoreError
from pipeline.key_noise import normal_noise
from pipeline.latent_scale import LatentScale
from pipeline.latents import LatentLoader, LatentStore
from pipeline.packing.pack import pack
from tests.servers import rgw
from tests.support.small_store import LATENT_SHAPE, encode, small_dataset, small_vae

COUNT = 60


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """60 images, one of them broken, two removed: 58 count, 57 have latents."""
    folder = tmp_path_factory.mktemp("data")
    small_dataset(folder, range(COUNT - 1), verify="header")
    whole = next((folder / "images").rglob("*.png")).read_bytes()
    (folder / "images" / "bad.png").write_bytes(whole[:-30])
    source, output = (str(folder / "images"),), str(folder / "data")
    gone = ("label0/0000", "label1/0001")
    pack(
        PackConfig(
            source=source, output=output, append=True, remove=gone, workers=1, verify="header"
        )
    )
    return Dataset.open(output)


@pytest.fixture(scope="module")
def store(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    folder = tmp_path_factory.mktemp("store")
    return encode(small_vae(), dataset, folder, columns=("label",), flip=True)


def keys_of(loader: Any) -> list[list[str]]:
    return [batch.keys for batch in loader]


@pytest.mark.parametrize("world", [1, 3])
def test_its_batches_are_the_image_loaders_key_by_key_also_the_bad_and_the_padded_slots(
    dataset: Dataset, store: LatentStore, world: int
) -> None:
    for rank in range(world):
        options: dict[str, Any] = {
            "global_batch_size": 8,
            "seed": 3,
            "rank": rank,
            "world_size": world,
        }
        with closing(Loader(dataset, image_size=8, channels=1, threads=1, **options)) as images:
            latents = LatentLoader(store, order=images.order, **options)
            for _ in range(2):
                for one, other in zip(images, latents, strict=True):
                    assert other.keys == one.keys
                    assert other.valid.tolist() == one.valid.tolist()
                    assert other.slots == one.slots
                    assert other.failed.keys() == one.errors.keys()


def test_an_image_loaders_state_goes_on_with_latents(dataset: Dataset, store: LatentStore) -> None:
    options: dict[str, Any] = {"global_batch_size": 8, "seed": 3}
    with closing(Loader(dataset, image_size=8, channels=1, threads=1, **options)) as images:
        for _ in zip(range(3), images, strict=False):
            continue
        latents = LatentLoader(store, **options)
        latents.load_state_dict(images.state_dict())
        assert keys_of(latents) == keys_of(images)


@pytest.mark.parametrize(("one", "other"), [(1, 4), (3, 2)])
def test_a_state_goes_on_at_any_other_world(store: LatentStore, one: int, other: int) -> None:
    def ranks(world: int) -> list[LatentLoader]:
        return [
            LatentLoader(store, global_batch_size=8, rank=rank, world_size=world)
            for rank in range(world)
        ]

    def whole(loaders: Any) -> list[list[str]]:
        return [
            [key for batch in batches for key in batch.keys]
            for batches in zip(*loaders, strict=True)
        ]

    expected = whole(ranks(1))
    first = ranks(one)
    begun = [iter(loader) for loader in first]
    head = [[key for batch in batches for key in batch.keys]
            for batches in [[next(loader) for loader in begun] for _ in range(3)]]  # fmt: skip
    later = ranks(other)
    for loader in later:
        loader.load_state_dict(first[0].state_dict())
    assert head + whole(later) == expected


def test_each_latent_comes_once_per_epoch_with_its_own_values_and_label(store: LatentStore) -> None:
    loader = LatentLoader(store, global_batch_size=8)
    for _ in range(2):
        seen = {}
        for batch in loader:
            for row in np.flatnonzero(batch.valid.numpy()):
                key = batch.keys[row]
                assert key not in seen
                seen[key] = batch.latents[row].numpy()
                assert batch.columns["label"][row] == key.split("/")[0]
        assert len(seen) == len(store) == 57
        for key, found in seen.items():
            np.testing.assert_array_equal(found, store.by_key(key).tensors["mean"])


def test_a_draw_is_mean_plus_deviation_times_noise_of_its_key_and_epoch(store: LatentStore) -> None:
    loader, means = LatentLoader(store, global_batch_size=8, seed=5, sample=True), []
    for epoch in range(2):
        drawn: dict[str, np.ndarray] = {}
        for batch in loader:
            drawn |= dict(zip(batch.keys, batch.latents.numpy(), strict=True))
        for number in range(len(store)):
            latent = store[number]
            mean, log_variance = (
                latent.tensors[name].astype(np.float32) for name in ("mean", "logvar")
            )
            noise = normal_noise([latent.key], 5, LATENT_SHAPE, f"latent of epoch {epoch}")[0]
            expected = mean + np.exp(log_variance / 2) * noise
            np.testing.assert_allclose(drawn[latent.key], expected, rtol=1e-5, atol=1e-6)
        means.append(drawn)
    assert not np.array_equal(means[0][latent.key], means[1][latent.key])


def test_a_draw_does_not_depend_on_who_reads_it(store: LatentStore) -> None:
    one = LatentLoader(store, global_batch_size=8, sample=True)
    two = [
        LatentLoader(store, global_batch_size=8, sample=True, rank=r, world_size=2) for r in (0, 1)
    ]
    for whole, *parts in zip(one, *two, strict=True):
        joined = np.concatenate([part.latents for part in parts])
        np.testing.assert_array_equal(joined, whole.latents)


def test_left_after_its_last_batch_an_epoch_is_over(store: LatentStore) -> None:
    options: dict[str, Any] = {"global_batch_size": 8, "seed": 1}
    expected = LatentLoader(store, **options)
    epochs = [keys_of(expected), keys_of(expected)]
    left = LatentLoader(store, **options)
    for number, _ in enumerate(left, 1):
        if number == left.steps_per_epoch:
            break
    assert left.state_dict()["epoch"] == 1
    assert keys_of(left) == epochs[1]
    # As an image loader's state of the last batch once was.
    resumed = LatentLoader(store, **options)
    resumed.load_state_dict(
        {**LatentLoader(store, **options).state_dict(), "batches": left.steps_per_epoch}
    )
    assert keys_of(resumed) == epochs[1]


def test_half_of_the_images_are_flipped_by_a_coin_for_each_key_and_epoch(
    store: LatentStore,
) -> None:
    loader, flipped = LatentLoader(store, global_batch_size=8, flip=True), []
    for _ in range(2):
        found = set()
        for batch in loader:
            for row in np.flatnonzero(batch.valid.numpy()):
                tensors = store.by_key(batch.keys[row]).tensors
                same = np.array_equal(batch.latents[row], tensors["mean"])
                assert same or np.array_equal(batch.latents[row], tensors["mean_flipped"])
                found |= set() if same else {batch.keys[row]}
        flipped.append(found)
    assert all(12 < len(found) < 45 for found in flipped)
    assert flipped[0] != flipped[1]


def test_what_the_store_does_not_hold_is_refused(
    dataset: Dataset, store: LatentStore, tmp_path: Path
) -> None:
    plain = encode(small_vae(), dataset, tmp_path, content="mean")
    with pytest.raises(ConfigError, match=r"--content moments"):
        LatentLoader(plain, global_batch_size=8, sample=True)
    with pytest.raises(ConfigError, match=r"--flip"):
        LatentLoader(plain, global_batch_size=8, flip=True)


def test_a_state_of_another_seed_or_after_the_start_is_refused(store: LatentStore) -> None:
    loader = LatentLoader(store, global_batch_size=8)
    state = LatentLoader(store, global_batch_size=8, seed=1).state_dict()
    with pytest.raises(StoreError, match="seed: the state has 1, this loader 0"):
        loader.load_state_dict(state)
    next(iter(loader))
    with pytest.raises(StoreError, match="has begun to read"):
        loader.load_state_dict(loader.state_dict())


def test_from_object_storage_within_little_memory_it_is_the_same(
    store: LatentStore, s3_server: rgw.S3Server
) -> None:
    bucket = s3_server.bucket()
    for path in Path(store.url).rglob("*"):
        if path.is_file():
            storage.publish(f"{bucket}/s/{path.relative_to(store.url)}", path.read_bytes())
    far = LatentStore.open(f"{bucket}/s")
    one = LatentLoader(far, global_batch_size=8, memory_bytes=2000)
    other = LatentLoader(store, global_batch_size=8, memory_bytes=2000)
    for _ in range(2):
        for a, b in zip(one, other, strict=True):
            assert a.keys == b.keys
            np.testing.assert_array_equal(a.latents, b.latents)


def test_moments_come_in_order_with_the_log_variance_beside_the_mean(store: LatentStore) -> None:
    for batch in LatentLoader(store, global_batch_size=8, moments=True):
        assert batch.log_variance is not None
        for row in np.flatnonzero(batch.valid.numpy()):
            tensors = store.by_key(batch.keys[row]).tensors
            np.testing.assert_array_equal(batch.latents[row], tensors["mean"])
            np.testing.assert_array_equal(batch.log_variance[row], tensors["logvar"])
        assert not batch.log_variance[~batch.valid].any()


@pytest.mark.parametrize("given", [{}, {"moments": True}, {"sample": True}])
def test_in_the_stores_own_type_they_are_the_same_rounded(store: LatentStore, given: Any) -> None:
    wide = LatentLoader(store, global_batch_size=8, **given)
    narrow = LatentLoader(store, global_batch_size=8, stored_type=True, **given)
    for one, other in zip(wide, narrow, strict=True):
        assert other.latents.dtype == torch.float16
        assert torch.equal(one.latents.half(), other.latents)


def all_of(store: LatentStore, **given: Any) -> np.ndarray:
    batches = list(LatentLoader(store, global_batch_size=8, **given))
    return np.concatenate([b.latents[b.valid].numpy() for b in batches]).astype(np.float64)


@pytest.mark.parametrize("word", ["modell", "none", "std"])
def test_a_word_that_normalize_does_not_know_is_refused(store: LatentStore, word: Any) -> None:
    with pytest.raises(ConfigError, match=f"normalize='{word}': known are True, False and 'model'"):
        LatentLoader(store, global_batch_size=8, normalize=word)


def test_normalised_means_have_mean_0_and_deviation_1(store: LatentStore) -> None:
    found = all_of(store, normalize=True)
    np.testing.assert_allclose(found.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(found.std((0, 2, 3)), 1, rtol=1e-5)


def test_normalised_draws_have_deviation_1_where_that_of_the_means_would_give_another(
    store: LatentStore,
) -> None:
    found = np.concatenate([all_of(store, normalize=True, sample=True, seed=n) for n in range(40)])
    np.testing.assert_allclose(found.std((0, 2, 3)), 1, rtol=0.05)
    assert min(np.array(store.std_of_draws) / np.array(store.std)) > 1.5


def test_moments_are_normalised_as_the_draws_that_are_made_of_them(store: LatentStore) -> None:
    loader = LatentLoader(store, global_batch_size=8, moments=True, normalize=True)
    (batch, *_), (drawn, *_) = (
        loader,
        LatentLoader(store, global_batch_size=8, sample=True, normalize=True),
    )
    keys = [key for key, good in zip(batch.keys, batch.valid.tolist(), strict=True) if good]
    noise = torch.from_numpy(normal_noise(keys, 0, LATENT_SHAPE, "latent of epoch 0"))
    good = batch.valid
    assert batch.log_variance is not None
    again = batch.latents[good] + torch.exp(batch.log_variance[good] / 2) * noise
    torch.testing.assert_close(again, drawn.latents[good], rtol=1e-4, atol=1e-5)


def test_normalised_by_the_model_they_are_what_its_publisher_says(
    dataset: Dataset, tmp_path: Path
) -> None:
    vae = small_vae()
    vae.scale = LatentScale(scaling_factor=0.5, shift_factor=0.1)
    store = encode(vae, dataset, tmp_path / "s")
    found = LatentLoader(store, global_batch_size=8, normalize="model", shuffle=False)
    plain = LatentLoader(store, global_batch_size=8, shuffle=False)
    for one, other in zip(found, plain, strict=True):
        expected = (other.latents[one.valid] - 0.1) * 0.5
        torch.testing.assert_close(one.latents[one.valid], expected)
        assert not one.latents[~one.valid].any()
    with pytest.raises(ModelError, match="says nothing of its latents' scale"):
        LatentLoader(encode(small_vae(), dataset, tmp_path / "t"), global_batch_size=8,
                     normalize="model")  # fmt: skip


def test_batches_are_ready_before_they_are_asked_for_and_a_loop_that_ends_early_ends_the_thread(
    store: LatentStore,
) -> None:
    def threads() -> set[str]:
        return {thread.name for thread in threading.enumerate() if "latents" in thread.name}

    loop: Any = iter(LatentLoader(store, global_batch_size=8))
    next(loop)
    assert threads() == {"latents-ahead"}
    loop.close()
    assert threads() == set()


def test_damage_that_the_thread_meets_is_raised_where_the_batches_are_read(
    dataset: Dataset, tmp_path: Path
) -> None:
    store = encode(small_vae(), dataset, tmp_path)
    part = store.snapshot.parts[1].part
    file, place = tmp_path / part.path, part.record_batches[2]
    data = bytearray(file.read_bytes())
    data[place.offset + place.bytes // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        list(LatentLoader(LatentStore.open(store.url), global_batch_size=8))


def test_with_where_an_epoch_is_the_latents_that_meet_it_at_any_world_and_a_state_knows_it(
    store: LatentStore,
) -> None:
    some = LatentStore.open(store.url, where="label in ['label0', 'label2']")
    wanted = {key for key in list(store.keys()) if not key.startswith(("label1", "bad"))}
    assert 0 < len(wanted) == len(some) < len(store)
    for world in (1, 3):
        loaders = [
            LatentLoader(some, global_batch_size=8, rank=rank, world_size=world)
            for rank in range(world)
        ]
        keys = [key for each in loaders for batch in each for key in batch.keys if key]
        assert sorted(keys) == sorted(wanted)
    loader = LatentLoader(store, global_batch_size=8)
    with pytest.raises(StoreError, match="where: the state has"):
        loader.load_state_dict(LatentLoader(some, global_batch_size=8).state_dict())


@pytest.mark.parametrize(
    "given",
    [
        {"normalize": True},
        {"normalize": True, "moments": True},
        {"normalize": True, "sample": True},
    ],
)
def test_a_rank_whose_slots_of_a_batch_hold_no_latent_goes_on_with_the_others(
    store: LatentStore, given: dict[str, Any]
) -> None:
    """58 samples in batches of 7 end with one of two samples, for seven ranks."""
    steps, seen = set(), list[str]()
    for rank in range(7):
        batches = list(LatentLoader(store, global_batch_size=7, rank=rank, world_size=7, **given))
        steps.add(len(batches))
        seen += [key for b in batches for key, ok in zip(b.keys, b.valid, strict=True) if ok]
    assert steps == {9}
    assert sorted(seen) == sorted(latent.key for latent in store)
