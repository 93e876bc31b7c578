"""Datasets, runs and stores in another bucket: copied by any tool, they are what they were.

The old bucket is emptied and removed before anything is asked of the new one.
"""

from pathlib import Path

import numpy as np
import pytest

from jobs.stores import main as stores
from jobs.verify import main as verify
from pipeline.commands.encode import run_encoding
from pipeline.commands.train import run_training
from pipeline.config import (
    EncodeConfig,
    ModelConfig,
    PackConfig,
    StoresConfig,
    TrainConfig,
    VerifyConfig,
)
from pipeline.data import Dataset
from pipeline.errors import DatasetError
from pipeline.latents import LatentStore
from pipeline.packing.pack import pack
from tests.servers import rgw
from tests.support.digit_models import pack_digits


@pytest.fixture(autouse=True)
def _mlflow_of_its_own(mlflow_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_file)


def train(bucket: str, steps: int) -> str:
    """The bundle of the run in this bucket, trained on its dataset."""
    done = run_training(TrainConfig(
        data=f"{bucket}/digits", holdout=f"{bucket}/digits", run="r", storage=f"{bucket}/runs",
        steps=steps, global_batch_size=20, image_size=8, channels=1, workers=0,
        model=ModelConfig(kind="mlp", latent_channels=2, width=8),
    ))  # fmt: skip
    assert done.steps == steps
    return f"{bucket}/runs/r/bundle"


def encode(bucket: str, bundle: str) -> int:
    """How many images were encoded anew."""
    done = run_encoding(EncodeConfig(
        model=bundle, data=f"{bucket}/digits", output=f"{bucket}/latents", actors=0,
        precision="fp32",
    ))  # fmt: skip
    return done.encoded


def copy_objects(server: rgw.S3Server, old: str, new: str) -> None:
    """Server-side copies of all objects, as `aws s3 sync` makes them; then the old bucket goes."""
    client, source, target = server.client(), old.removeprefix("s3://"), new.removeprefix("s3://")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=source):
        for item in page.get("Contents", ()):
            client.copy_object(
                Bucket=target, Key=item["Key"], CopySource={"Bucket": source, "Key": item["Key"]}
            )
            client.delete_object(Bucket=source, Key=item["Key"])
    client.delete_bucket(Bucket=source)


def test_everything_works_in_another_bucket_and_asks_nothing_of_the_old_one(
    s3_server: rgw.S3Server, tmp_path: Path
) -> None:
    pack_digits(tmp_path)
    old, new = s3_server.bucket(), s3_server.bucket()
    source = (str(tmp_path / "images"),)
    pack(PackConfig(source=source, output=f"{old}/digits", workers=1))
    assert encode(old, train(old, 2)) == 120
    latents = {latent.key: latent.tensors for latent in LatentStore.open(f"{old}/latents")}
    pixels = np.asarray(Dataset.open(f"{old}/digits")[5].image)
    copy_objects(s3_server, old, new)

    assert verify(VerifyConfig(dataset=f"{new}/digits")).exit_code == 0
    assert verify(VerifyConfig(store=f"{new}/latents")).exit_code == 0
    np.testing.assert_array_equal(np.asarray(Dataset.open(f"{new}/digits")[5].image), pixels)
    for latent in LatentStore.open(f"{new}/latents"):
        for name, values in latent.tensors.items():
            np.testing.assert_array_equal(values, latents[latent.key][name])
    with pytest.raises(DatasetError, match=r"if it has moved.*--sample 4 --dataset URL"):
        verify(VerifyConfig(store=f"{new}/latents", sample=4, model=f"{new}/runs/r/bundle"))
    again = verify(VerifyConfig(
        store=f"{new}/latents", sample=4, model=f"{new}/runs/r/bundle", dataset=f"{new}/digits"
    ))  # fmt: skip
    assert again.result["equal"] == again.result["reencoded"] == 4

    assert train(new, 2) == f"{new}/runs/r/bundle", "the finished run is finished still"
    bundle = train(new, 4)
    fresh = Path(tmp_path, "images/3")
    extra = next(iter(sorted(fresh.glob("*.png"))))
    (fresh / "late.png").write_bytes(extra.read_bytes() + b"\0")
    packed = pack(PackConfig(source=source, output=f"{new}/digits", append=True, workers=1))
    assert packed.added == 1
    done = run_encoding(EncodeConfig(
        model=bundle, data=f"{new}/digits", output=f"{new}/latents", actors=0, precision="fp32",
        replace_model=True,
    ))  # fmt: skip
    assert done.encoded == 121
    stores(StoresConfig(store=f"{new}/latents", gc=True, delete=True))
    assert verify(VerifyConfig(store=f"{new}/latents")).exit_code == 0
