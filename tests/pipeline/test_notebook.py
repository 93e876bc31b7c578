"""What people call from a notebook: single samples, slices, pictures, and lines that say enough."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pipeline
from pipeline.config import PackConfig, PreprocessConfig
from pipeline.data import Dataset, Loader
from pipeline.data.keys import path_of
from pipeline.errors import ConfigError, ModelError, SampleError
from pipeline.latents import LatentLoader, LatentStore
from pipeline.packing.pack import pack
from pipeline.runs.run import Run
from pipeline.vae import VAE, save_bundle
from tests.support.packed_digits import write_digits
from tests.support.small_store import encode, small_dataset, small_vae


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return small_dataset(folder, range(40))


@pytest.fixture(scope="module")
def store(folder: Path, dataset: Dataset) -> LatentStore:
    return encode(small_vae(), dataset, folder / "store", columns=("label",))


@pytest.fixture
def vae() -> VAE:
    return small_vae()


def test_each_sample_is_the_file_that_was_packed(folder: Path, dataset: Dataset) -> None:
    samples = list(dataset)
    assert [sample.key for sample in samples] == list(dataset.keys())
    assert len(samples) == 40
    for image, label, key, columns, data in samples:
        assert data == (folder / "images" / path_of(key)).read_bytes()
        with Image.open(folder / "images" / path_of(key)) as file:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(file.convert("RGB")))
        assert label == columns["label"] == key.split("/")[0]
    assert dataset[-1].key == samples[-1].key
    assert [one.key for one in dataset[3:-1:9]] == [one.key for one in samples[3:-1:9]]
    with pytest.raises(IndexError, match="holds 40, asked for number 40"):
        dataset[40]
    key = samples[7].key
    assert dataset.by_key(key).key == dataset.by_key(path_of(key)).key == key
    with pytest.raises(KeyError, match="Near: "):
        dataset.by_key("none")


def test_a_slice_of_a_store_and_its_arrays_hold_the_same_latents(store: LatentStore) -> None:
    means = store.to_numpy()
    assert means.shape == (40, *store.snapshot.identity.latent_shape)
    some = store[4:-1:7]
    assert [one.key for one in some] == list(store.keys())[4:-1:7]
    np.testing.assert_array_equal(np.stack([one.tensors["mean"] for one in some]), means[4:-1:7])
    assert store[4] == store[4]
    assert store[4] != store[5]
    with pytest.raises(ConfigError, match=r"no tensor 'nope'\. There are: mean, logvar\."):
        store.to_numpy("nope")
    items = store.to_torch()
    assert [item["key"] for item in items[4:-1:7]] == [one.key for one in some]
    table = store.to_pandas()
    assert table["key"].tolist() == list(store.keys())
    assert table["label"].tolist() == [key.split("/")[0] for key in table["key"]]


def test_a_store_of_draws_gives_them_as_its_array(dataset: Dataset, tmp_path: Path) -> None:
    draws = encode(small_vae(), dataset, tmp_path, content="sample")
    found = np.stack([one.tensors["sample"] for one in draws])
    np.testing.assert_array_equal(draws.to_numpy(), found)


def test_lists_and_arrays_of_numbers_are_taken_and_what_is_no_number_is_told(
    dataset: Dataset, store: LatentStore
) -> None:
    keys = list(store.keys())
    assert list(dataset.keys()) == keys
    held: Any
    for held in (dataset, store):
        for some in ([3, -1], (3, -1), np.array([3, -1]), torch.tensor([3, -1])):
            assert [one.key for one in held[some]] == [keys[3], keys[-1]]
        assert held[np.int64(3)].key == held[torch.tensor(3)].key == keys[3]
        assert held[[]] == held[np.array([], dtype=int)] == []
        for asked, said in (
            (keys[0], rf"asked by numbers; by a key it is `\.by_key\('{keys[0]}'\)`"),
            (np.arange(40) < 2, r"no mask: `numpy\.flatnonzero\(mask\)`"),
            (1.5, "a slice, or a list or array of whole numbers; found float"),
            ([0, "a"], "found str"),
            (np.zeros((2, 2), dtype=int), "found ndarray"),
            (None, "found NoneType"),
        ):
            with pytest.raises(TypeError, match=said):
                held[asked]
        with pytest.raises(IndexError, match="holds 40, asked for number 40"):
            held[[0, 40]]


def test_a_loader_says_what_it_takes(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"found str\. `Dataset\.open\('runs/a'\)` is one"):
        Loader("runs/a", global_batch_size=8)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"columns is a list of names: `columns=\['label'\]`"):
        Loader(dataset, global_batch_size=8, columns="label")
    assert {"Dataset", "Loader", "load_images"} <= set(dir(pipeline.data))


def test_a_picture_is_encoded_as_its_file_was(
    folder: Path, dataset: Dataset, store: LatentStore, vae: VAE
) -> None:
    files = [folder / "images" / path_of(key) for key in list(store.keys())]
    pictures = [Image.open(file) for file in files]
    pixels = vae.pixels(pictures)
    for others in ([np.asarray(each) for each in pictures], [file.read_bytes() for file in files]):
        assert torch.equal(vae.pixels(others), pixels)
    one = vae.pixels(pictures[0])
    for single in (files[0].read_bytes(), np.asarray(pictures[0])):
        assert torch.equal(vae.pixels(single), one)
    assert torch.equal(one, pixels[:1])
    found = vae.encode(pixels).mean.half().numpy()
    np.testing.assert_allclose(found, store.to_numpy(), atol=2e-3)


def test_an_array_that_is_half_transparent_is_one_picture_on_white(vae: VAE) -> None:
    array = np.random.default_rng(0).integers(0, 256, (24, 16, 4), dtype=np.uint8)
    found = vae.pixels(array)
    assert found.shape == (1, *vae.image_shape)
    assert torch.equal(found, vae.pixels(Image.fromarray(array)))
    assert torch.equal(vae.pixels(np.stack([array, array])), found.expand(2, -1, -1, -1))
    hidden = np.zeros((8, 8, 4), np.uint8)
    assert vae.pixels(hidden).unique().tolist() == [255]


def test_a_samples_pixels_are_those_of_training_bit_for_bit(tmp_path: Path) -> None:
    """Photographs are large JPEGs, which are shrunk while they are decoded."""
    noise = np.random.default_rng(0)
    for number in range(12):
        coarse = Image.fromarray(noise.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        large = coarse.resize((1000 + number, 700), Image.Resampling.BICUBIC)
        (tmp_path / "in").mkdir(exist_ok=True)
        large.save(tmp_path / f"in/{number}.{('jpg', 'png')[number % 2]}")
    packed = pipeline.pack(tmp_path / "in", output=tmp_path / "o", workers=1)
    dataset, vae = Dataset.open(packed), small_vae()
    vae.preprocess = PreprocessConfig(image_size=32, crop="random")
    trained = {
        key: image
        for batch in Loader(dataset, vae.preprocess.held_out(), global_batch_size=4)
        for key, image in zip(batch.keys, batch.images, strict=True)
    }
    assert len(trained) == 12
    pixels = vae.pixels(dataset[:])
    for sample, found in zip(dataset, pixels, strict=True):
        assert torch.equal(found, trained[sample.key])
        assert torch.equal(vae.pixels(sample)[0], found)
    decoded = vae.pixels([sample.image for sample in dataset])
    assert not torch.equal(decoded, pixels), "its image, decoded whole, gives others"


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def test_a_picture_of_any_kind_is_seen_as_its_file_is(vae: VAE) -> None:
    """Held sideways, in inks, half transparent, in 16 bits: the decoder's own rules."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    plain = Image.fromarray(noise)
    turned = Image.Exif()
    turned[0x0112] = 6
    files = [saved(plain, "PNG", exif=turned), saved(plain, "TIFF", exif=turned)]
    alpha = plain.copy()
    alpha.putalpha(Image.fromarray(noise[..., 0]))
    palette = plain.quantize(16)
    files += [saved(plain.convert("CMYK"), "TIFF"), saved(alpha, "PNG")]
    files += [saved(palette, "PNG", transparency=3), saved(palette, "GIF")]
    files += [saved(Image.fromarray(noise[..., 0].astype(np.uint16) * 257), "PNG")]
    for number, data in enumerate(files):
        picture = Image.open(io.BytesIO(data))
        assert torch.equal(vae.pixels([picture]), vae.pixels([data])), (number, picture.mode)
    assert not torch.equal(vae.pixels([plain]), vae.pixels(files[:1])), "it was turned"


def test_a_picture_without_a_scale_or_cut_short_is_told(vae: VAE) -> None:
    with pytest.raises(SampleError, match="pixels of type F have no agreed scale"):
        vae.pixels([Image.new("F", (8, 8))])
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    half = saved(Image.fromarray(noise), "PNG")[:6000]
    with pytest.raises(SampleError, match=r"a picture can't be read: .*truncated"):
        vae.pixels([Image.open(io.BytesIO(half))])


def test_what_comes_out_is_an_image_of_the_models_shape(vae: VAE) -> None:
    sampled = vae.sample(5, seed=1)
    assert sampled.shape == (5, *vae.image_shape)
    assert torch.equal(sampled, vae.sample(5, seed=1))
    pixels = torch.randint(0, 256, (3, *vae.image_shape), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(vae.reconstruct(pixels), vae.decode(vae.encode(pixels).mean))
    assert vae.device == torch.device("cpu")
    assert vae.pixels([]).shape == (0, *vae.image_shape)


def test_a_wrong_input_is_named_with_what_is_needed(vae: VAE) -> None:
    with pytest.raises(SampleError, match=r"found float32 \[2, 1, 8, 8\], need uint8 \[B, 1, 8, 8"):
        vae.encode(torch.zeros(2, 1, 8, 8))
    with pytest.raises(SampleError, match=r"found uint8 \[2, 3, 9, 8\].*needs uint8 \[B, 1, 8, 8"):
        vae.encode(torch.zeros(2, 3, 9, 8, dtype=torch.uint8))
    with pytest.raises(SampleError, match=r"NumPy array uint8 \[2, 1, 8, 8\].*torch\.from_numpy"):
        vae.encode(np.zeros((2, 1, 8, 8), np.uint8))  # type: ignore[arg-type]
    with pytest.raises(SampleError, match=r"found list, need a tensor uint8.*`vae\.pixels`"):
        vae.encode([Image.new("L", (8, 8))])  # type: ignore[arg-type]
    with pytest.raises(SampleError, match=r"NumPy array float16 .*need a tensor \[B, 3, 2, 2\]"):
        vae.decode(np.zeros((2, 3, 2, 2), np.float16))  # type: ignore[arg-type]
    with pytest.raises(SampleError, match=r"found \[3, 2, 2\], .*\[B, 3, 2, 2\]\. One alone"):
        vae.decode(torch.zeros(3, 2, 2))
    with pytest.raises(SampleError, match=r"found \[2, 12\], this model needs \[B, 3, 2, 2\]\."):
        vae.decode(torch.zeros(2, 12))
    assert torch.equal(vae.sample(np.int64(2)), vae.sample(2))  # type: ignore[arg-type]
    for count in (-1, 2.5, "3"):
        with pytest.raises(ConfigError, match="takes how many images, 0 or more; found"):
            vae.sample(count)  # type: ignore[arg-type]
    with pytest.raises(SampleError, match=r"array float64 \[4, 4\], need .* an array uint8"):
        vae.pixels([np.zeros((4, 4))])  # type: ignore[list-item]
    path: Any
    for path in ("a.png", ["a.png"], Path("a.png")):
        with pytest.raises(SampleError, match=r"need a .* path: `Path\('a\.png'\)\.read_bytes"):
            vae.pixels(path)
    for nothing in (7, None, object()):
        with pytest.raises(SampleError, match=f"found {type(nothing).__name__}, need a Dataset's"):
            vae.pixels(nothing)  # type: ignore[arg-type]
    for shape, said in (
        ((8, 8, 1), r"A grey one: `array\[\.\.\., 0\]`"),
        ((3, 8, 8), r"With its colours first: `array\.transpose\(1, 2, 0\)`"),
        ((9, 8, 8), r"Several grey ones: `list\(array\)`"),
        ((2, 9, 8, 8), r"found an array uint8 \[9, 8, 8\]"),
        ((8,), r"found an array uint8 \[8\]"),
    ):
        with pytest.raises(SampleError, match=said):
            vae.pixels(np.zeros(shape, np.uint8))
    with pytest.raises(ConfigError, match=r"takes a seed, 0 or more, as `seed=1`; found 0\.5"):
        vae.sample(1, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"VAE: .* a `Noise`, .*found Tensor\. .*`vae\.encode"):
        vae(torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 2, 2))


def test_each_thing_says_what_it_is_in_three_lines(
    dataset: Dataset, store: LatentStore, vae: VAE
) -> None:
    assert repr(dataset).splitlines()[1].startswith("40 samples in ")
    assert repr(store).splitlines()[1] == "40 latents of (3, 2, 2)"
    assert {len(repr(each).splitlines()) for each in (dataset, store)} == {3}
    assert repr(dataset[0]).startswith(f"Sample {dataset[0].key}: image 8 x 8, ")
    assert repr(store[0]).endswith(": mean float16 [3, 2, 2], logvar float16 [3, 2, 2], label")
    rows = next(store.batches())
    assert repr(rows).startswith(f"LatentRows of {len(rows)} latents: mean float16 [{len(rows)}, ")
    latents = LatentLoader(store, global_batch_size=16, moments=True)
    assert repr(latents) == (
        "LatentLoader of 3 batches an epoch, 16 of 16 latents each, 3 x 2 x 2; at epoch 0, batch 0"
    )
    assert repr(next(iter(latents))).endswith(
        " of epoch 0: latents float32 [16, 3, 2, 2], 16 of 16 valid, log_variance, label"
    )
    posterior = vae.encode(vae.pixels(dataset[0]))
    assert repr(posterior) == "DiagonalPosterior: mean and log_variance float32 [1, 3, 2, 2]"
    assert "images uint8 [B, 1, 8, 8], latents [B, 3, 2, 2], on cpu" in repr(vae)
    loader = Loader(dataset, vae.preprocess, global_batch_size=16)
    assert len(loader) == loader.steps_per_epoch == 3
    assert repr(loader).startswith("Loader of 3 batches an epoch, 16 of 16 images each, 1 x 8 x 8")
    assert "images uint8 [16, 1, 8, 8], 16 of 16 valid" in repr(next(iter(loader)))
    loader.close()


def test_a_notebook_shows_pictures_and_no_name_runs_in_it(tmp_path: Path) -> None:
    (tmp_path / "in/<script>x").mkdir(parents=True)
    Image.new("RGB", (300, 200), "red").save(tmp_path / "in/<script>x/a.png")
    pack(PackConfig(source=(str(tmp_path / "in"),), output=str(tmp_path / "o"), workers=1))
    page = Dataset.open(str(tmp_path / "o"))._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;x" in page
    picture = base64.b64decode(page.split("base64,")[1].split('"')[0])
    assert Image.open(io.BytesIO(picture)).size == (96, 64)


def test_training_from_python_is_what_the_job_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_digits(tmp_path, 120)
    settings = {"steps": 4, "global_batch_size": 16, "workers": 0, "image_size": 8, "channels": 1}
    run = pipeline.train(str(data), run="first", model={"kind": "mlp"}, **settings)
    assert (run.reason, run.steps, run.samples) == ("done", 4, 64)
    assert repr(run).splitlines()[0].endswith("first: done after 4 steps")
    assert "<td>elbo</td>" in run._repr_html_()
    assert run.model is not None
    assert pipeline.load_model(run.model).digest == run.digest
    with pytest.raises(
        ConfigError, match=r"steps: .*greater than 0; optimiser: .*did you mean optimizer"
    ):
        pipeline.train(str(data), run="second", steps=-1, optimiser={})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sweep": "objective.beta=0.5,1"}, "train: sweep: that is several runs; call `train` for"),
        ({"dry_run": True}, "train: dry_run: from Python nothing is tried out"),
        ({"lr": 1e-3}, r"train: lr: .* has no such key; did you mean optimizer\.learning_rate"),
        ({"batch_size": 8}, "did you mean .*global_batch_size"),
        ({"recipe": "fotos-64"}, r'recipe fotos-64: there is no .*mean `recipe="photos-64"`'),
        ({"config": "none.yaml"}, "config none.yaml: .*Name a readable YAML file"),
        ({"shards_below": "s3://a"}, r"train: shards_below: give a list: \['s3://a'\]"),
    ],
)
def test_a_key_that_training_from_python_does_not_heed_is_refused(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        pipeline.train("data", run="r", storage=str(tmp_path / "runs"), **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_key_of_another_command_is_none_of_this_one(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"pack: sweep: `pipeline\.config\.PackConfig` has no such"
    ):
        pipeline.pack("images", output=tmp_path / "o", sweep="a=1,2")
    with pytest.raises(ConfigError, match=r"pack: recipe: .* has no such key"):
        pipeline.pack("images", output=tmp_path / "o", recipe="photos-64")


def test_a_recipe_and_a_file_hold_what_is_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pipeline.recipes()["photos-64"]["image_size"] == 64
    data = write_digits(tmp_path, 120)
    (tmp_path / "mine.yaml").write_text("model: {kind: mlp, width: 32}\nsteps: 90\nseed: 3\n")
    pipeline.train(
        data, run="first", recipe="digits", config="mine.yaml", steps=2, workers=0,
        global_batch_size=16, model={"latent_channels": 4}, no_register=True,
    )  # fmt: skip
    config = Run(str(tmp_path / "runs/first")).config()
    assert (config.steps, config.seed, config.evaluate_every) == (2, 3, 200)
    assert (config.model.kind, config.model.width, config.model.latent_channels) == ("mlp", 32, 4)
    vae = pipeline.load_model("first")
    assert vae.latent_shape == (4, 1, 1)
    assert not vae.encode(vae.pixels(Image.new("L", (9, 9)))).mean.requires_grad
    latents = torch.zeros(1, 4, 1, 1)
    assert not vae.decode(latents).requires_grad
    assert vae.decode(latents.requires_grad_()).requires_grad
    with pytest.raises(ModelError, match=r'Did you mean `load_model\("first"\)`'):
        pipeline.load_model("frist")


def test_a_pack_and_an_encoding_say_what_came_of_them(tmp_path: Path) -> None:
    write_digits(tmp_path / "given")
    (tmp_path / "given/images/broken.png").write_bytes(b"\x89PNG")
    packed = pipeline.pack(tmp_path / "given/images", output=tmp_path / "d", workers=1, holdout=0.1)
    first, law, why, *_ = repr(packed).splitlines()
    assert first == (
        f"Dataset {packed.dataset}: {packed.samples:,} samples in {packed.shards} shards, "
        f"and {packed.holdout_samples} in {packed.holdout}"
    )
    assert law == "601 seen = 600 packed + 0 duplicates + 1 rejected + 0 ignored."
    assert "Rejected: 1" in why
    save_bundle(small_vae(), str(tmp_path / "b"), {})
    made = pipeline.encode(tmp_path / "b", packed.dataset, output=tmp_path / "s", actors=0)
    assert repr(made).splitlines()[0].endswith("0 images failed, 0 left out; whole")
    assert (
        repr(made).splitlines()[1] == f"{len(Dataset.open(packed.dataset))} images read now, "
        f"{made.encoded} of them encoded"
    )


def test_places_may_be_paths(tmp_path: Path) -> None:
    write_digits(tmp_path / "given")
    pipeline.pack(tmp_path / "given/images", output=tmp_path / "data", workers=1)
    assert len(Dataset.open(tmp_path / "data")) > 0
