"""One command removes from several places: what refuses does so before anything is removed."""

from pathlib import Path

import pytest

from jobs.stores import main
from pipeline import storage
from pipeline.config import StoresConfig
from pipeline.errors import PipelineError
from pipeline.latents.marks import begin
from tests.support.small_store import encode, small_dataset, small_vae


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("no store", "erase"), ("no store", "gc"), ("no Pushgateway", "erase"),
        ("no Pushgateway", "gc"), ("an encoding that has not ended", "erase"),
    ],
)  # fmt: skip
def test_what_refuses_does_so_before_anything_is_removed_elsewhere(
    tmp_path: Path, what: str, how: str
) -> None:
    data, store, gateway = str(tmp_path / "data"), str(tmp_path / "store"), None
    dataset = small_dataset(tmp_path, range(30), output=data)
    storage.publish(storage.join(data, "shards", "of-a-killed-pack.tar"), b"stray")
    if what != "no store":
        latents = encode(small_vae(), dataset, store)
        if what == "no Pushgateway":
            gateway = "http://127.0.0.1:9"
        else:
            begin(store, latents.snapshot.identity.digest, dataset.digest)
    before = {info.url: info.size for info in storage.list_objects(data)}
    with pytest.raises(PipelineError):
        main(
            StoresConfig(
                dataset=data, store=store, pushgateway=gateway, delete=True,
                erase=("label1/0007.png",) if how == "erase" else (), gc=how == "gc",
            )
        )  # fmt: skip
    assert {info.url: info.size for info in storage.list_objects(data)} == before
