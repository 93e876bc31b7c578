"""Every benchmark that needs no large data runs small, from its own command to its JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import ladder
from tests.support import warm
from tests.support.warm import ROOT

MNIST = ROOT.parent / "shared/data/mnist"


def run(*words: str) -> dict[str, Any]:
    ended = warm.run(ROOT, *words)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_the_gpu_benchmark_runs_small_and_counts_flops() -> None:
    small = (
        "--seconds",
        "0.1",
        "--batch",
        "1",
        "--image-size",
        "32",
        "--width",
        "32",
        "--variants",
        "float32",
    )
    result = run("tests.benchmarks.gpu", *small)
    assert len(result["rows"]) == 2
    encode, step = result["rows"][0], result["rows"][1]
    # Encoder, decoder and both backward passes: between six and twelve times the encoder alone.
    assert 6 < step["gflop"] / encode["gflop"] < 12
    assert all(row["images_per_second"] > 0 for row in result["rows"])


def test_the_iwae_table_runs_small_and_goes_on_where_it_was(tmp_path: Path) -> None:
    if not MNIST.exists():
        pytest.skip("needs ../shared/data/mnist")
    small = (
        "tests.benchmarks.iwae_table", "--mnist", str(MNIST), "--work", str(tmp_path),
        "--epochs", "1", "--train-images", "400", "--test-images", "20",
        "--importance-samples", "50", "--k", "1", "5", "--threads", "1",
    )  # fmt: skip
    result = run(*small)
    assert set(result["table"]) == {"1", "5"}
    assert result["paired"].keys() == {"k1 - k5"}
    assert 100 < result["table"]["1"]["nll"] < 600
    assert run(*small) == result


def test_the_ladders_rows_are_kept_and_printed_in_its_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ladder.main(["digits-logistic", "--work", str(tmp_path), "--steps", "30"])
    found: Any = ladder.main(["ppca", "--work", str(tmp_path), "--table"])
    # Every importance weight is log p(x) itself here: a bound without a gap, up to rounding.
    assert found["ppca"]["value"] == pytest.approx(found["ppca"]["exact"], abs=1e-9)
    order = [
        line.split("|")[1].strip()
        for line in capsys.readouterr().out.splitlines()
        if line[:1] == "|"
    ]
    assert order[2:] == ["ppca", "digits-logistic"]


@pytest.mark.parametrize("row", ["mnist-2d", "mnist-k5"])
def test_a_row_of_mnist_runs_small_and_goes_on_where_it_was(tmp_path: Path, row: str) -> None:
    if not MNIST.exists():
        pytest.skip("needs ../shared/data/mnist")
    small = [
        row, "--mnist", str(MNIST), "--work", str(tmp_path), "--epochs", "1",
        "--train-images", "400", "--test-images", "3",
    ]  # fmt: skip
    found: Any = ladder.main(small)[row]
    assert 100 < found["value"] < 600
    again: Any = ladder.main(small)[row]
    assert again["value"] == found["value"]


def test_the_loaders_benchmark_plans_a_billion_samples_and_mixes_classes(tmp_path: Path) -> None:
    words = ("--photos", str(tmp_path), "--work", str(tmp_path), "--parts", "scale", "quality")
    result = run("tests.benchmarks.loader", *words)
    assert result["scale"]["peak_mib"] - result["scale"]["of_it_imports_mib"] < 300
    quality = result["quality"]
    assert quality["packed"] == pytest.approx(quality["uniform"], rel=0.01)
    assert quality["sorted"] > 0.8 * quality["uniform"]
