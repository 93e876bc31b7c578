from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from pipeline import storage
from pipeline.encoding.report import (
    Fidelity,
    Reconstructions,
    reconstruct,
    report_folder,
    report_of,
    to_markdown,
)
from tests.support.small_store import encode, small_dataset, small_vae


@pytest.fixture
def world(tmp_path: Path) -> Any:
    dataset = small_dataset(tmp_path, range(40))
    return dataset, encode(small_vae(), dataset, tmp_path / "s")


def test_psnr_is_scikit_images() -> None:
    generator = np.random.default_rng(0)
    originals = generator.integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    decoded = generator.random((3, 1, 8, 8))
    found = Reconstructions(("a", "b", "c"), torch.from_numpy(originals), torch.from_numpy(decoded))
    expected = [
        peak_signal_noise_ratio(o / 255, d, data_range=1)
        for o, d in zip(originals, decoded, strict=True)
    ]
    np.testing.assert_allclose(found.psnr, expected, rtol=1e-9)


def test_each_original_stands_beside_what_its_own_stored_latent_decodes_to(world: Any) -> None:
    dataset, store = world
    vae = small_vae()
    found = reconstruct(vae, dataset, store, 6)
    assert found is not None
    assert len(set(found.keys)) == 6
    for key, decoded in zip(found.keys, found.decoded, strict=True):
        latent = torch.from_numpy(store.by_key(key).tensors["mean"].astype(np.float32))
        with torch.no_grad():
            expected = vae.decode(latent[None])[0]
        torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-5)


def test_a_source_that_has_changed_since_is_left_out_of_the_pictures(world: Any) -> None:
    dataset, store = world
    for shard in dataset.shards[:-1]:
        Path(dataset.shard_url(shard)).write_bytes(b"cut short")
    found = reconstruct(small_vae(), dataset, store, 12)
    assert found is not None
    assert 0 < len(found.keys) < 12
    Path(dataset.shard_url(dataset.shards[-1])).write_bytes(b"cut short")
    assert reconstruct(small_vae(), dataset, store, 12) is None


def test_two_reports_of_one_snapshot_are_equal_and_name_it(world: Any) -> None:
    dataset, store = world
    one, other = (
        report_of(store.snapshot, reconstruct(small_vae(), dataset, store, 4)) for _ in range(2)
    )
    assert one == other
    assert storage.canonical_json(asdict(one))
    assert "| latents | 40 |" in to_markdown(one)
    assert report_folder(store.snapshot.path).startswith(
        f"reports/{store.snapshot.identity.digest}/"
    )


def test_names_that_somebody_else_chose_stay_text_in_the_page(world: Any) -> None:
    name = "a|b` <img src=x onerror=alert(1)>\n# [h](http://h)\x1b[2J"
    report = replace(
        report_of(world[1].snapshot, None),
        failures={name: 1},
        failed_samples=[("000000", name, name)],
        lost=[("000001", 3, name)],
        reconstruction=Fidelity(images=1, psnr=9.0, lowest_psnr=9.0, lowest_key=name),
    )
    page = to_markdown(report)
    rows = [line for line in page.splitlines() if "onerror" in line]
    assert not set("\x1b<>[]`") & set("".join(rows))
    assert len(rows) == 4
    assert {line.count("|") for line in rows if line.startswith("|")} == {3}
