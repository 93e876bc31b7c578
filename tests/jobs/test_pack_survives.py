"""`jobs.pack` on broken archives, and killed in the middle."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.dataset import Dataset
from pipeline.data.sources import IMAGE_SUFFIXES
from pipeline.data.verify import verify_dataset
from tests.killing import ROOT, kill_all, start_job, tree

NASTY = ROOT.parent / "shared/data/nasty"


def pack(*arguments: str) -> tuple[int, dict, str]:
    """Exit code, result and stderr of `python -m jobs.pack`."""
    found = subprocess.run(
        [sys.executable, "-m", "jobs.pack", *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    lines = found.stdout.splitlines()
    return found.returncode, json.loads(lines[-1]) if lines else {}, found.stderr


@pytest.fixture(scope="module")
def packed_nasty(tmp_path_factory) -> tuple[dict[str, str], int, dict, str]:
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


def test_of_a_nasty_archive_every_good_image_is_packed_and_every_other_one_is_listed(packed_nasty):
    expected, code, result, _ = packed_nasty
    assert code == 3, "the rejected are far over the budget of 1%"
    dataset = Dataset.open(result["dataset"])
    keys = {key for n in range(len(dataset.shards)) for key in dataset.read_index(n).keys}
    lines = [json.loads(line) for line in Path(result["rejects_url"]).read_text().splitlines()]
    rejected = {line["path"]: line["reason"] for line in lines}
    looked_at = {name for name in expected if Path(name).suffix.lower() in IMAGE_SUFFIXES}
    good = {name for name, verdict in expected.items() if verdict == "decode"}
    assert good - looked_at == {"005"}, "a name without a suffix is not taken for an image's"
    bad = {name for name, verdict in expected.items() if verdict == "reject"}
    assert {Path(name).stem for name in good & looked_at} <= keys
    assert bad & looked_at <= rejected.keys()
    assert keys.isdisjoint(Path(name).stem for name in rejected)
    assert len(keys) + len(rejected) == len(looked_at), "nothing is left out silently"
    assert sum(result["ignored"].values()) == len(expected) - len(looked_at)
    assert all(rejected.values())
    assert verify_dataset(dataset.url) == []


def test_a_nasty_archive_prints_nothing_but_our_own_lines(packed_nasty):
    *_, stderr = packed_nasty
    lines = [line for line in stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert [line for line in lines if not line.startswith("packing:")] == []


def test_a_pack_killed_at_any_moment_keeps_its_finished_shards_and_ends_the_same(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for n in range(300):
        pixels = rng.integers(0, 256, (90, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"in/{n}.png", compress_level=1)
    command = ("--source", str(tmp_path / "in"), "--shard-bytes", "300000", "--output")
    code, calm, _ = pack(*command, str(tmp_path / "calm"))
    assert code == 0
    plans = tmp_path / "storm/plans/000001"
    process = start_job(tmp_path, "jobs.pack", *command, str(tmp_path / "storm"), "--workers", "1")
    deadline = time.monotonic() + 120
    while True:  # until it sleeps between a finished shard and a half-written one
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
        if not list(plans.glob("*.json")):
            continue
        os.killpg(process.pid, signal.SIGSTOP)
        receipts = sorted(plans.glob("*.json"))
        if list((tmp_path / "storm/shards").glob(".*.partial")):
            break
        os.killpg(process.pid, signal.SIGCONT)
    kill_all(process)
    assert not (tmp_path / "storm/manifest.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in receipts}
    shards = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "storm/shards").glob("*.tar")}
    code, result, _ = pack(*command, str(tmp_path / "storm"))
    assert (code, result["digest"]) == (0, calm["digest"])
    for name in before:
        (path,) = (tmp_path / "storm/shards").glob(f"001-{name.removesuffix('.json')}-*.tar")
        assert path.stat().st_mtime_ns == shards[path.name], "a finished shard was written again"
    assert tree(tmp_path / "storm") == tree(tmp_path / "calm")
