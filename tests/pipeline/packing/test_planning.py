"""Planning needs little memory, however much is listed."""

import json
import subprocess
import sys

import pytest


def planned(count: int) -> dict[str, float]:
    found = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.planning", str(count)],
        capture_output=True, text=True, timeout=7200, check=True,
    )  # fmt: skip
    return json.loads(found.stdout.splitlines()[-1])


def test_memory_does_not_grow_with_the_listing() -> None:
    small, large = planned(20_000), planned(100_000)
    grown = large["memory_mb"] - small["memory_mb"]
    assert grown < 80, "80,000 inputs more: some 400 bytes each would be 32 MB, SQLite keeps 64"
    assert large["memory_mb"] < 300


@pytest.mark.chaos
def test_ten_million_inputs_are_planned_in_under_500_mb() -> None:
    assert planned(10**7)["memory_mb"] < 500
