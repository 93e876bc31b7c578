"""`jobs.pack` on broken archives, and killed in the middle."""

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import PackConfig
from pipeline.data.dataset import Dataset
from pipeline.data.image_kinds import IMAGE_SUFFIXES
from pipeline.data.keys import path_of
from pipeline.packing import pack as in_process
from pipeline.packing.verify_dataset import verify_dataset
from tests.support import warm
from tests.support.killing import kill_all, start_job, tree
from tests.support.warm import ROOT

NASTY = ROOT.parent / "shared/data/nasty"


def pack(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, result and stderr of `python -m jobs.pack`."""
    found = warm.run(ROOT, "jobs.pack", *arguments)
    lines = found.stdout.splitlines()
    return found.returncode, json.loads(lines[-1]) if lines else {}, found.stderr


@pytest.fixture(scope="module")
def packed_nasty(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, str], int, dict[str, Any], str]:
    """All nasty files, each under a number of its own, packed in one go."""
    if not NASTY.exists():
        pytest.skip(f"{NASTY} is not there")
    folder = tmp_path_factory.mktemp("nasty")
    (folder / "in").mkdir()
    expected = {}
    with (NASTY / "manifest.csv").open() as file:
        for number, row in enumerate(csv.DictReader(file)):
            source = NASTY / row["file"]
            if source.suffix != ".tar":  # a whole archive of good images, by its suffix a source
                name = f"{number:03d}{source.suffix}"
                shutil.copy(source, folder / "in" / name)
                expected[name] = row["expected"]
    return expected, *pack("--source", str(folder / "in"), "--output", str(folder / "out"))


def test_of_a_nasty_archive_every_good_image_is_packed_and_every_other_one_is_listed(
    packed_nasty: tuple[dict[str, str], int, dict[str, Any], str],
) -> None:
    expected, code, result, _ = packed_nasty
    assert code == 3, "the rejected are far over the budget of 1%"
    dataset = Dataset.open(result["dataset"])
    paths = set(map(path_of, dataset.keys()))
    lines = [json.loads(line) for line in Path(result["rejects_url"]).read_text().splitlines()]
    rejected = {line["path"]: line["reason"] for line in lines}
    by_name = {name for name in expected if Path(name).suffix.lower() in IMAGE_SUFFIXES}
    good = {name for name, verdict in expected.items() if verdict == "decode"}
    assert "005" in good - by_name, "one has no suffix: its bytes say what it is"
    bad = {name for name, verdict in expected.items() if verdict == "reject"}
    assert good <= paths
    assert bad & by_name <= rejected.keys()
    assert paths.isdisjoint(rejected)
    assert len(paths) + len(rejected) == result["seen"], "nothing is left out silently"
    assert result["seen"] + sum(result["others"].values()) == len(expected)
    assert all(rejected.values())
    assert verify_dataset(dataset.url) == []


def test_a_nasty_archive_prints_nothing_but_our_own_lines(
    packed_nasty: tuple[dict[str, str], int, dict[str, Any], str],
) -> None:
    *_, stderr = packed_nasty
    lines = [line for line in stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert [line for line in lines if not line.startswith(("listing:", "packing:"))] == []


def write_images(folder: Path, numbers: range, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for n in numbers:
        pixels = rng.integers(0, 256, (90, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png", compress_level=1)


def stopped_while_writing(folder: Path, output: Path, *command: str) -> subprocess.Popen[str]:
    """A pack under SIGSTOP, between a finished shard and a half-written one."""
    process = start_job(folder, "jobs.pack", *command, str(output), "--workers", "1")
    deadline = time.monotonic() + 600
    while True:
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be stopped"
        time.sleep(0.002)
        if list((output / "plans/000001").glob("*.json")):
            os.killpg(process.pid, signal.SIGSTOP)
            if list((output / "shards").glob(".*.partial")):
                return process
            os.killpg(process.pid, signal.SIGCONT)


def test_a_pack_killed_at_any_moment_keeps_its_finished_shards_and_ends_the_same(
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "in", range(300))
    command = ("--source", str(tmp_path / "in"), "--shard-bytes", "300000", "--output")
    code, calm, _ = pack(*command, str(tmp_path / "calm"))
    assert code == 0
    process = stopped_while_writing(tmp_path, tmp_path / "storm", *command)
    kill_all(process)
    receipts = sorted((tmp_path / "storm/plans/000001").glob("*.json"))
    assert not (tmp_path / "storm/manifest.json").exists()
    shards = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "storm/shards").glob("*.tar")}
    code, result, _ = pack(*command, str(tmp_path / "storm"))
    assert (code, result["digest"]) == (0, calm["digest"])
    for receipt in receipts:
        (path,) = (tmp_path / "storm/shards").glob(f"001-{receipt.name.split('-')[0]}-*.tar")
        assert path.stat().st_mtime_ns == shards[path.name], "a finished shard was written again"
    assert tree(tmp_path / "storm") == tree(tmp_path / "calm")


def test_a_pack_that_slept_through_two_generations_changes_no_byte_of_them(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_images(source, range(60))
    options = ("--source", str(source), "--shard-bytes", "150000", "--append", "--output")
    slow = stopped_while_writing(tmp_path, output, *options)
    config = PackConfig(
        source=(str(source),), output=str(output), shard_bytes=150_000, append=True
    )  # fmt: skip
    assert in_process.pack(config).samples == 60
    write_images(source, range(50, 70), seed=1)
    removed = config.model_copy(update={"remove": tuple(map(str, range(20)))})
    for n in range(20):
        (source / f"{n}.png").unlink()
    grown = in_process.pack(removed)
    assert (grown.samples, grown.generation) == (50, 2)
    before = tree(output)
    os.killpg(slow.pid, signal.SIGCONT)
    slow.communicate(timeout=600)
    assert slow.returncode == 1
    assert "another pack finished" in (tmp_path / "log").read_text()
    after = tree(output)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if name.endswith(".partial")]
    assert verify_dataset(str(output)) == []
    assert in_process.pack(config).added == 0
