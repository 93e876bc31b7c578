"""`jobs.encode` is killed by SIGKILL midway; the same command ends with the same bytes."""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.demo import write_digits
from pipeline.config import ModelConfig, PackConfig, PreprocessConfig
from pipeline.packing.pack import pack
from pipeline.storage.local import unfinished
from pipeline.vae import build_vae, save_bundle
from tests.support.killing import finish, kill_all, start_job, tree


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
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


def start(inputs: Any, folder: Path, actors: int, threads: int = 1) -> subprocess.Popen[str]:
    data, bundle = inputs
    return start_job(
        folder, "jobs.encode", "--model", str(bundle), "--data", str(data),
        "--output", "s", "--actors", str(actors), "--cores", str(threads),
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(
    inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("store")
    result = finish(start(inputs, folder, actors=0))
    assert result["samples"] == 800
    assert result["shards"] > 10
    return tree(folder / "s")


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The jobs' temporary folder; Ray's sockets lie in it, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def test_killed_midway_with_its_actors_it_ends_with_the_same_bytes(
    inputs: tuple[Path, Path], undisturbed: dict[str, str], tmp_path: Path, temporary: Path
) -> None:
    store = tmp_path / "s"
    process = start(inputs, tmp_path, actors=2)
    deadline = time.monotonic() + 600
    while not list(store.glob("receipts/*/*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    kill_all(process)
    assert not (store / "store.json").exists(), "it had ended before it was killed"
    assert list(temporary.glob("vae-*"))
    finish(start(inputs, tmp_path, actors=2))
    assert not list(temporary.glob("vae-*"))
    found = tree(store)
    # A file without a receipt may be left of a shard in flight, and what was half written, which
    # no listing shows; nothing else may differ.
    assert {name: found[name] for name in undisturbed} == undisturbed
    half = {str(Path(path).relative_to(store)) for path, _ in unfinished(store, below=True)}
    left = sorted(found.keys() - undisturbed.keys() - half)
    assert [name for name in left if not name.startswith("latents/")] == []


def test_threads_make_no_difference_and_running_again_changes_no_byte(
    inputs: tuple[Path, Path], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    store = tmp_path / "s"
    finish(start(inputs, tmp_path, actors=0, threads=2))
    assert tree(store) == undisturbed
    before = _times(store)
    assert finish(start(inputs, tmp_path, actors=0))["encoded"] == 0
    assert _times(store) == before


def _times(store: Path) -> dict[Path, int]:
    """When each file was written, but for those that tell when an encoding last ended well."""
    files = (path for path in store.rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files if path.stem != "outcome"}


def test_one_actor_makes_the_store_that_two_threads_and_no_actor_make(
    inputs: tuple[Path, Path], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    assert finish(start(inputs, tmp_path, actors=1, threads=2))["samples"] == 800
    assert tree(tmp_path / "s") == undisturbed
