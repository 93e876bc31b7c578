"""A store, or the keys in it, made to write and read elsewhere."""

from pathlib import Path

import pytest

from pipeline.data import Dataset
from pipeline.latents.snapshot import STORE
from pipeline.vae import save_bundle
from tests.support.hostile import folder_of_one_image, forged_dataset, refused
from tests.support.small_store import encode, small_dataset, small_vae


@pytest.mark.parametrize("key", ["../../up", "/tmp/up", "a/../../../up"])
def test_a_key_that_leads_out_is_never_a_file_name(tmp_path: Path, key: str) -> None:
    url = forged_dataset(folder_of_one_image(tmp_path), key=key)
    vae = small_vae()
    vae.digest = save_bundle(vae, tmp_path / "b", {})
    store = tmp_path / "s"
    encode(vae, Dataset.open(url), store)
    flags = ("--store", str(store), "--output", str(tmp_path / "out" / "deep" / "er"))
    assert "leads out" in refused("decode", *flags, "--model", str(tmp_path / "b"))
    assert "leads out" in refused("export", *flags[:2], "--output", str(tmp_path / "tars"))
    assert not list(tmp_path.rglob("up*"))


def test_a_store_that_leads_out_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "s"
    encode(small_vae(), small_dataset(tmp_path / "d", range(4)), store)
    pointer = STORE.parse((store / "store.json").read_bytes(), "store.json")
    for path in ("../x.json", "/etc/passwd", "http://127.0.0.1:9/x"):
        (store / "store.json").write_bytes(STORE.encode({**pointer, "snapshot": path}))
        assert "leads out" in refused("verify", "--store", str(store))
