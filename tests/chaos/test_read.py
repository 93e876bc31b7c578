"""Reading while everything fails at once; the row of the table in README.md."""

import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline import storage
from pipeline.config import IndexConfig
from pipeline.data import Dataset
from pipeline.packing.adopt import adopt
from tests.servers import rgw
from tests.servers.fault_proxy import FaultProxy, Rule
from tests.servers.rgw import ACCESS_KEY, SECRET_KEY
from tests.support.warm import ROOT

pytestmark = pytest.mark.chaos

TARS, PER_TAR, STEPS = 12, 100, 38  # 38 = 1200 / 32, rounded up
BROKEN_AT_THE_SOURCE = (17, 560, 1111)
DAMAGED_IN_THE_STORE = (203, 777, 1050)
CUT = 4
"""The tar that is cut short after it was adopted."""


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(number)).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[: len(data) // 2] if number in BROKEN_AT_THE_SOURCE else data


def make_dataset(bucket: str, folder: Path) -> tuple[str, dict[str, str]]:
    """Tars by webdataset, adopted, then damaged: the URL, and the reason of each bad key."""
    for tar in range(TARS):
        with webdataset.TarWriter(str(folder / "x.tar"), encoder=False) as writer:
            for number in range(tar * PER_TAR, (tar + 1) * PER_TAR):
                writer.write({"__key__": f"{number:05d}", "png": png(number)})
        storage.publish(f"{bucket}/tars/{tar:03d}.tar", (folder / "x.tar").read_bytes())
    adopt(IndexConfig(source=(f"{bucket}/tars",), output=f"{bucket}/d", verify="none"))
    dataset = Dataset.open(f"{bucket}/d", None, [bucket])
    reasons = {f"{number:05d}": "truncated" for number in BROKEN_AT_THE_SOURCE}
    for number in DAMAGED_IN_THE_STORE:
        index, url = dataset.read_index(number // PER_TAR), _tar(bucket, number // PER_TAR)
        data = bytearray(storage.read(url))
        data[int(index.offsets[number % PER_TAR]) + 500] ^= 4
        storage.publish(url, bytes(data))
        reasons[f"{number:05d}"] = "checksum"
    index, url = dataset.read_index(CUT), _tar(bucket, CUT)
    middle = int(index.offsets[60]) + 100
    storage.publish(url, storage.read(url, 0, middle))
    reasons |= dict.fromkeys(index.keys[60:], "truncated")
    return dataset.url, reasons


def _tar(bucket: str, number: int) -> str:
    return f"{bucket}/tars/{number:03d}.tar"


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_bytes().split(b"\n")[:-1]] if log.exists() else []


def write_credentials(path: Path, secret: str) -> None:
    text = f"[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={secret}\n"
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def start_reader(url: str, log: Path, world: int, proxy: FaultProxy, credentials: Path) -> Any:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests/chaos/reader.py"), url, str(log), str(world), "0.2"],
        stderr=log.with_suffix(".err").open("a"),
        env={
            **kept, "PYTHONPATH": str(ROOT), "AWS_ENDPOINT_URL": proxy.endpoint,
            "AWS_SHARED_CREDENTIALS_FILE": str(credentials), "AWS_DEFAULT_REGION": "us-east-1",
        },
    )  # fmt: skip


def wait_for_lines(process: subprocess.Popen[str], log: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    while len(lines(log)) < count:
        assert process.poll() is None, log.with_suffix(".err").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_epoch_on_a_failing_store_has_each_good_sample_once_and_no_wrong_byte(
    s3_server: rgw.S3Server, tmp_path: Path
) -> None:
    url, reasons = make_dataset(s3_server.bucket(), tmp_path)
    log, credentials = tmp_path / "log", tmp_path / "credentials"
    write_credentials(credentials, s3_server.secret)
    with FaultProxy(s3_server.port, seed=11) as proxy:
        body = "^GET .*[.]tar"
        proxy.rules = [
            Rule(body, "flip", count=3, after_bytes=9000),
            Rule("^GET ", "status", probability=0.05),
            Rule(body, "reset", probability=0.04, after_bytes=20_000),
            Rule(body, "truncate", probability=0.03, after_bytes=50_000),
        ]
        for world, until in ((3, 9), (2, 20)):
            process = start_reader(url, log, world, proxy, credentials)
            wait_for_lines(process, log, until)
            if world == 2:
                s3_server.rotate_secret("rotated")
                time.sleep(0.5)  # the pods' secret arrives later than the change
                write_credentials(credentials, "rotated")
                wait_for_lines(process, log, until + 3)
            process.kill()
            process.wait()
        last = start_reader(url, log, 5, proxy, credentials)
        try:
            assert last.wait(300) == 0, log.with_suffix(".err").read_text()
        finally:
            s3_server.rotate_secret(SECRET_KEY)
        faults = Counter(request.fault for request in proxy.requests)
    batches = lines(log)
    assert len(batches) == STEPS
    assert [batch["world"] for batch in batches] == sorted(
        (batch["world"] for batch in batches), key=[3, 2, 5].index
    )
    assert len({batch["world"] for batch in batches}) == 3
    seen = [tuple(sample) for batch in batches for sample in batch["samples"]]
    assert sorted(key for key, _ in seen) == [f"{n:05d}" for n in range(TARS * PER_TAR)]
    assert {key: reason for batch in batches for key, reason in batch["errors"].items()} == reasons
    decoded = {key: digest for key, digest in seen if digest is not None}
    assert decoded.keys() == {key for key, _ in seen} - reasons.keys()
    assert decoded == {
        key: hashlib.sha256(pixels(int(key)).transpose(2, 0, 1).tobytes()).hexdigest()
        for key in decoded
    }
    assert min(faults[kind] for kind in ("flip", "status", "reset", "truncate")) > 0, faults
    assert 1 - faults[None] / faults.total() > 0.07, faults
    assert any(batch["retries"].get("credentials") for batch in batches), "no secret was renewed"
