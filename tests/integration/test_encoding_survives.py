"""`jobs.encode` is killed by SIGKILL midway; the same command ends with the same bytes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from jobs.demo import write_digits
from pipeline.config import ModelConfig, PackConfig, PreprocessConfig
from pipeline.data.pack import pack
from pipeline.vae import build_vae, save_bundle

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    """A dataset of many small shards, and a bundle whose model is too large to be quick."""
    folder = tmp_path_factory.mktemp("inputs")
    write_digits(folder / "images", range(800))
    pack(
        PackConfig(
            source=(str(folder / "images"),), output=str(folder / "data"), shard_bytes=40_000
        )
    )
    torch.manual_seed(0)
    vae = build_vae(ModelConfig(width=48), PreprocessConfig(image_size=32, channels=1))
    save_bundle(vae, str(folder / "bundle"), {})
    return folder / "data", folder / "bundle"


def start(inputs, store: Path, actors: int, threads: int = 1) -> subprocess.Popen:
    data, bundle = inputs
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.encode", "--model", str(bundle), "--data", str(data),
         "--output", str(store), "--actors", str(actors), "--threads", str(threads)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def finish(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def tree(store: Path) -> dict[str, str]:
    """Every file's checksum, but for `attempts`: the only files that may differ."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and "attempts" not in path.parts
    }


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory) -> dict[str, str]:
    store = tmp_path_factory.mktemp("store") / "s"
    result = finish(start(inputs, store, actors=0))
    assert result["samples"] == 800
    assert result["shards"] > 10
    return tree(store)


def test_killed_midway_with_its_actors_it_ends_with_the_same_bytes(inputs, undisturbed, tmp_path):
    store = tmp_path / "s"
    process = start(inputs, store, actors=2)
    deadline = time.monotonic() + 120
    while not list(store.glob("receipts/*/*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (store / "store.json").exists(), "it had ended before it was killed"
    finish(start(inputs, store, actors=2))
    found = tree(store)
    # A file without a receipt may be left of a shard in flight; nothing else may differ.
    assert {name: found[name] for name in undisturbed} == undisturbed
    assert all(name.startswith("latents/") for name in found.keys() - undisturbed.keys())


def test_threads_make_no_difference_and_running_again_changes_no_byte(
    inputs, undisturbed, tmp_path
):
    store = tmp_path / "s"
    finish(start(inputs, store, actors=0, threads=2))
    assert tree(store) == undisturbed
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    assert finish(start(inputs, store, actors=0))["encoded"] == 0
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
