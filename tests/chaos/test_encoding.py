"""Encoding while everything fails, on local Ray clusters and the real S3 server."""

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.demo import write_digits
from pipeline import storage
from pipeline.config import ModelConfig, PackConfig, PreprocessConfig
from pipeline.data import Dataset
from pipeline.latents import verify_store
from pipeline.latents.snapshot import read_pointer
from pipeline.packing.pack import pack
from pipeline.vae import build_vae, save_bundle
from tests.servers import rgw
from tests.servers.fault_proxy import FaultProxy, Rule
from tests.servers.rgw import S3Server
from tests.support.killing import descendants, finish, kill_all, start_job, tree

pytestmark = pytest.mark.chaos


def make_inputs(
    folder: Path, count: int, image_size: int = 64, shard_bytes: int = 60_000
) -> tuple[str, str]:
    """Digits in many small shards, and a bundle that takes its time."""
    write_digits(folder / "images", range(count))
    source, output = (str(folder / "images"),), str(folder / "data")
    pack(PackConfig(source=source, output=output, shard_bytes=shard_bytes))
    torch.manual_seed(0)
    size = PreprocessConfig(image_size=image_size, channels=1)
    save_bundle(build_vae(ModelConfig(width=48), size), str(folder / "bundle"), {})
    return output, str(folder / "bundle")


def start(folder: Path, bundle: str, data: str, output: str, *more: str) -> subprocess.Popen[str]:
    return start_job(
        folder, "jobs.encode", "--model", bundle, "--data", data, "--output", output,
        "--batch-size", "16", "--attempts", "20", *more,
    )  # fmt: skip


def upload(folder: str, url: str) -> None:
    for path in Path(folder).rglob("*"):
        if path.is_file():
            storage.publish(f"{url}/{path.relative_to(folder)}", path.read_bytes())


def far_tree(url: str) -> dict[str, str]:
    """Every object's checksum below a URL, but for attempts."""
    return {
        info.url.removeprefix(f"{url}/"): hashlib.sha256(storage.read(info.url)).hexdigest()
        for info in storage.list_objects(url)
        if "/attempts/" not in info.url
    }


def whole(tree: dict[str, str]) -> dict[str, str]:
    """Less what tells that a snapshot was published, without lost shards, before the whole one."""
    told = (".partial-", "published/", "store.json")
    return {name: digest for name, digest in tree.items() if not any(part in name for part in told)}


def assert_same_store(found: dict[str, str], calm: dict[str, str]) -> None:
    """A killed encoder may leave a latent file that no receipt names, with the right bytes."""
    assert {name: found.get(name) for name in calm} == calm
    assert all(name.startswith("latents/") for name in found.keys() - calm.keys())


def receipts(server: S3Server, store: str) -> int:
    """How many shards of a store are done; asked past the proxy."""
    bucket, prefix = store.removeprefix("s3://").split("/", 1)
    pages = server.client().get_paginator("list_objects_v2")
    found = pages.paginate(Bucket=bucket, Prefix=f"{prefix}/receipts/")
    return sum(page["KeyCount"] for page in found)


def kill_one(process: subprocess.Popen[str], kind: str, dice: random.Random) -> None:
    """SIGKILL to an actor, to the raylet, or to the driver with all below it."""
    if kind == "driver":
        kill_all(process)
        return
    mark, victims = {"actor": "EncodeActor", "raylet": "/raylet/raylet"}[kind], list[int]()
    deadline = time.monotonic() + 60
    # An actor may be between two lives, a cluster about to start: the next one is waited for.
    while not victims:
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline
        below = descendants(process.pid)
        victims = [pid for pid, line in below.items() if mark in line.split("\0")[0]]
    os.kill(dice.choice(victims), signal.SIGKILL)
    if kind == "raylet":
        # Ray has no life without it. The driver says so or hangs; either way it is run again.
        time.sleep(dice.uniform(0, 3))
        if process.poll() is None:
            kill_all(process)


def test_ten_kills_two_drivers_and_failing_requests_leave_the_store_of_a_calm_day(
    s3_server: rgw.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, bundle = make_inputs(tmp_path, 1797, image_size=128, shard_bytes=25_000)
    bucket = s3_server.bucket()
    upload(data, f"{bucket}/data")
    finish(start(tmp_path, bundle, f"{bucket}/data", f"{bucket}/calm", "--actors", "2"))
    store, dice = f"{bucket}/storm", random.Random(5)
    kinds = ["actor"] * 4 + ["raylet"] * 3 + ["driver"] * 3
    dice.shuffle(kinds)
    with FaultProxy(s3_server.port, seed=5) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.rules = [
            Rule("^(GET|PUT|HEAD) ", "status", probability=0.05),
            Rule("^GET .*[.]tar", "reset", probability=0.05, after_bytes=20_000),
            Rule("^(GET|PUT) ", "lose_answer", probability=0.05),
        ]
        command = (tmp_path, bundle, f"{bucket}/data", store)
        process = start(*command, "--actors", "1")
        for kind in kinds:
            if process.poll() is not None:
                process = start(*command, "--actors", "1")
            before, deadline = receipts(s3_server, store), time.monotonic() + 300
            while receipts(s3_server, store) == before:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            time.sleep(dice.uniform(0, 0.5))
            assert process.poll() is None, "it was done before it was killed ten times"
            kill_one(process, kind, dice)
        if process.poll() is None:
            kill_all(process)
        assert receipts(s3_server, store) < len(Dataset.open(data).shards), "nothing was left"
        for driver in [start(*command, "--actors", "1") for _ in range(2)]:
            assert finish(driver)["complete"]
        faults = Counter(request.fault for request in proxy.requests)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    assert 1 - faults[None] / faults.total() > 0.07, faults
    assert_same_store(far_tree(store), far_tree(f"{bucket}/calm"))
    assert verify_store(store) == []


def ended_with(process: subprocess.Popen[str], code: int) -> dict[str, Any]:
    out, _ = process.communicate(timeout=400)
    assert process.returncode == code, out
    return json.loads(out.splitlines()[-1])


def test_a_shard_that_kills_its_process_is_listed_and_the_rest_is_that_of_a_calm_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    write_digits(tmp_path / "images", range(200))
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "images/white.png")
    source, output = (str(tmp_path / "images"),), str(tmp_path / "data")
    pack(PackConfig(source=source, output=output, shard_bytes=60_000))
    torch.manual_seed(0)
    model = ModelConfig(kind="custom", custom="tests.chaos.deadly_network:Deadly")
    vae = build_vae(model, PreprocessConfig(image_size=8, channels=1))
    save_bundle(vae, str(tmp_path / "bundle"), {})
    process = start(
        tmp_path, str(tmp_path / "bundle"), output, "s", "--actors", "2", "--attempts", "1",
        "--allow-custom", str(model.custom),
    )  # fmt: skip
    result = ended_with(process, 3)
    ((_, reason),) = result["lost"]
    assert "its worker died" in reason
    (poisoned,) = [
        shard for number, shard in enumerate(Dataset.open(output).shards)
        if "white%2Epng" in Dataset.open(output).read_index(number).keys
    ]  # fmt: skip
    assert result["lost_samples"] == poisoned.samples
    assert result["samples"] == 201 - poisoned.samples
    (problem,) = verify_store(str(tmp_path / "s"))
    assert "have no latents" in problem


def test_a_source_overwritten_midway_is_noticed_listed_and_mended_by_restoring_it(
    s3_server: rgw.S3Server, tmp_path: Path
) -> None:
    data, bundle = make_inputs(tmp_path, 600)
    bucket = s3_server.bucket()
    upload(data, f"{bucket}/data")
    finish(start(tmp_path, bundle, f"{bucket}/data", f"{bucket}/calm", "--actors", "0"))
    process = start(tmp_path, bundle, f"{bucket}/data", f"{bucket}/storm", "--actors", "1",
                    "--attempts", "2")  # fmt: skip
    deadline = time.monotonic() + 200
    while not any("/receipts/" in info.url for info in storage.list_objects(bucket)
                  if "/storm/" in info.url):  # fmt: skip
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    dataset = Dataset.open(f"{bucket}/data")
    shard = dataset.shards[-1]
    index, good = (
        dataset.read_index(len(dataset.shards) - 1),
        storage.read(dataset.shard_url(shard)),
    )
    broken = bytearray(good)
    for offset in index.offsets:
        broken[int(offset) + 40] ^= 255
    storage.publish(dataset.shard_url(shard), bytes(broken))
    result = ended_with(process, 3)
    ((lost, reason),) = result["lost"]
    assert lost in shard.path
    assert "not those that were packed" in reason
    storage.publish(dataset.shard_url(shard), good)
    again = finish(start(tmp_path, bundle, f"{bucket}/data", f"{bucket}/storm", "--actors", "1"))
    assert again["encoded"] == shard.samples
    found, calm = far_tree(f"{bucket}/storm"), far_tree(f"{bucket}/calm")
    assert_same_store(whole(found), whole(calm))
    pointers = [read_pointer(f"{bucket}/{name}") for name in ("storm", "calm")]
    assert len({pointer and pointer.snapshot for pointer in pointers}) == 1


def test_on_a_disk_that_is_full_what_is_lost_is_listed_and_with_room_it_goes_on(
    tmp_path: Path,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    data, bundle = make_inputs(tmp_path, 1200, image_size=8)
    finish(start(tmp_path, bundle, data, "calm", "--actors", "0"))
    calm = tree(tmp_path / "calm")
    small = tmp_path / "small"
    small.mkdir()
    needed = sum(path.stat().st_size for path in (tmp_path / "calm/latents").rglob("*.arrow"))
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={needed * 3 // 4}", "none", str(small)], check=True
    )
    try:
        process = start(tmp_path, bundle, data, str(small / "s"), "--actors", "0",
                        "--attempts", "2")  # fmt: skip
        out, _ = process.communicate(timeout=400)
        assert process.returncode in (1, 3), out
        if process.returncode == 3:
            assert json.loads(out.splitlines()[-1])["lost"]
        subprocess.run(["mount", "-o", f"remount,size={needed * 9}", str(small)], check=True)
        finish(start(tmp_path, bundle, data, str(small / "s"), "--actors", "0"))
        found = tree(small / "s")
        assert_same_store(whole(found), whole(calm))
        assert verify_store(str(small / "s")) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
