"""`jobs.decode`, `jobs.export` and `jobs.stores` on a small store of digits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import export, stores
from pipeline.commands.decode import run_decoding
from pipeline.commands.encode import run_encoding
from pipeline.config import (
    DecodeConfig,
    EncodeConfig,
    ExportConfig,
    ModelConfig,
    PreprocessConfig,
    StoresConfig,
)
from pipeline.data.keys import file_name_of
from pipeline.errors import ConfigError, ModelError
from pipeline.evaluation.walks import label_direction
from pipeline.latents import LatentStore
from pipeline.vae import VAE, build_vae, save_bundle
from tests.support.packed_digits import write_digits


@pytest.fixture(scope="module")
def vae() -> VAE:
    torch.manual_seed(0)
    return build_vae(ModelConfig(kind="mlp"), PreprocessConfig(image_size=8, channels=1)).eval()


@pytest.fixture(scope="module")
def store(vae: VAE, tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    folder = tmp_path_factory.mktemp("store")
    save_bundle(vae, str(folder / "bundle"), {})
    data = write_digits(folder, 80)
    run_encoding(
        EncodeConfig(
            model=str(folder / "bundle"), data=str(data), output=str(folder / "s"), actors=0,
            columns=("label",), dtype="float32",
        )
    )  # fmt: skip
    return LatentStore.open(str(folder / "s"))


def decode(store: Any, output: Path, **options: Any) -> int:
    return run_decoding(DecodeConfig(store=store.url, output=str(output), **options)).images


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def expected(vae: Any, latent: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        image = vae.decode(torch.tensor(latent)[None])[0, 0]
    return image.mul(255).round().numpy()


def test_every_image_is_what_its_own_latent_decodes_to(
    vae: VAE, store: LatentStore, tmp_path: Path
) -> None:
    assert decode(store, tmp_path) == len(store)
    for latent in store:
        found = pixels(tmp_path / f"{file_name_of(latent.key)}.png")
        np.testing.assert_allclose(found, expected(vae, latent.tensors["mean"]), atol=1)


def test_some_keys_or_a_limited_number_can_be_asked_for(store: LatentStore, tmp_path: Path) -> None:
    keys = (store[3].key, store[9].key)
    assert decode(store, tmp_path / "a", keys=keys) == 2
    assert {str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*.png")} == {
        f"{file_name_of(key)}.png" for key in keys
    }
    assert decode(store, tmp_path / "b", limit=5) == 5
    with pytest.raises(ConfigError, match="there is no 'nobody'"):
        decode(store, tmp_path, keys=("nobody",))
    for ends, said in (
        (("nobody", keys[0]), f"--interpolate KEY {keys[0]}"),
        ((keys[0], "nobody"), f"--interpolate {keys[0]} KEY"),
    ):
        with pytest.raises(ConfigError, match=f"Give another, as `{said}`"):
            decode(store, tmp_path, interpolate=ends, steps=3)


def test_a_walk_begins_at_one_image_passes_the_middle_and_ends_at_the_other(
    vae: VAE, store: LatentStore, tmp_path: Path
) -> None:
    start, goal = store[0], store[1]
    assert decode(store, tmp_path, interpolate=(start.key, goal.key), steps=5) == 5
    ends = [latent.tensors["mean"] for latent in (start, goal)]
    for name, latent in (("000", ends[0]), ("002", (ends[0] + ends[1]) / 2), ("004", ends[1])):
        np.testing.assert_allclose(
            pixels(tmp_path / f"step-{name}.png"), expected(vae, latent), atol=1
        )


def test_an_edit_moves_by_the_difference_of_two_labels_means(
    vae: VAE, store: LatentStore, tmp_path: Path
) -> None:
    latents = list(store)
    means = torch.from_numpy(np.stack([latent.tensors["mean"] for latent in latents]))
    direction = label_direction(
        means, [str(latent.columns["label"]) for latent in latents], "1", "7"
    )
    key = latents[4].key
    assert decode(store, tmp_path, edit=("1", "7"), keys=(key,), steps=3) == 3
    moved = latents[4].tensors["mean"] + direction.numpy()
    np.testing.assert_allclose(
        pixels(tmp_path / f"{file_name_of(key)}-002.png"), expected(vae, moved), atol=1
    )
    with pytest.raises(ConfigError, match="label 'x' is not in the dataset"):
        decode(store, tmp_path, edit=("1", "x"), keys=(key,))


def test_along_the_first_axis_the_middle_is_the_image_itself(
    vae: VAE, store: LatentStore, tmp_path: Path
) -> None:
    key = store[2].key
    assert decode(store, tmp_path, axis=0, keys=(key,), steps=5) == 5
    middle = pixels(tmp_path / f"{file_name_of(key)}-002.png")
    np.testing.assert_allclose(middle, expected(vae, store[2].tensors["mean"]), atol=1)
    with pytest.raises(ConfigError, match="span 50 axes only"):
        decode(store, tmp_path, axis=70, keys=(key,))


def test_a_contact_sheet_holds_all_in_one_picture(store: LatentStore, tmp_path: Path) -> None:
    assert decode(store, tmp_path, sheet=True, axis=1, limit=3, steps=4) == 12
    assert Image.open(tmp_path / "sheet.png").width > 1000  # with a title, keys and steps
    assert len(list(tmp_path.iterdir())) == 1


def test_another_models_decoder_is_refused(store: LatentStore, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = build_vae(ModelConfig(kind="mlp"), PreprocessConfig(image_size=8, channels=1))
    save_bundle(other, str(tmp_path / "other"), {})
    with pytest.raises(ModelError, match="Another model's decoder gives noise"):
        decode(store, tmp_path, model=str(tmp_path / "other"))


def test_the_store_is_exported_and_listed_by_its_jobs(store: LatentStore, tmp_path: Path) -> None:
    done = export.main(ExportConfig(store=store.url, output=str(tmp_path / "e"))).result
    assert done["samples"] == len(store)
    assert len(list((tmp_path / "e").glob("*.tar"))) == done["shards"]
    outcome = stores.main(StoresConfig(store=store.url, gc=True))
    result: Any = outcome.result
    (row,) = result["stores"]
    assert (row["current"], row["samples"]) == (True, len(store))
    assert (result["garbage"], result["busy"]) == ([], [])
    assert f"* {row['snapshot']}: {len(store)} latents, 0 failed" in outcome.summary[0]
