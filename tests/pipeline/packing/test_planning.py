"""Planning needs little memory, however much is listed."""

import json
import subprocess
import sys

import pytest


def planned(count: int, form: str) -> dict[str, float]:
    found = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.planning", str(count), form],
        capture_output=True, text=True, timeout=7200, check=True,
    )  # fmt: skip
    return json.loads(found.stdout.splitlines()[-1])


@pytest.mark.parametrize("form", ["listing", "table"])
def test_memory_does_not_grow_with_the_listing(form: str) -> None:
    small, large = planned(20_000, form), planned(100_000, form)
    grown = large["memory_mb"] - small["memory_mb"]
    assert grown < 80, "80,000 inputs more: some 400 bytes each would be 32 MB, SQLite keeps 64"
    assert large["memory_mb"] < 300


@pytest.mark.chaos
@pytest.mark.parametrize("form", ["listing", "table"])
def test_ten_million_inputs_are_planned_in_under_500_mb(form: str) -> None:
    assert planned(10**7, form)["memory_mb"] < 500
