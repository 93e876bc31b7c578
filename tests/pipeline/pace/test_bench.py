"""The bench finds what was planted where that is beyond doubt; how well it predicts, and eight
bottlenecks, are measured by tests/benchmarks/bench.py: no test is timed."""

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.bench import _words, main
from pipeline.commands.bench import Bench, run_bench
from pipeline.config import BenchConfig, TrainConfig
from pipeline.data import Dataset
from pipeline.errors import DatasetError, StorageError
from pipeline.pace.chart import Bar, bar_lines
from pipeline.pace.probes import Subject
from pipeline.pace.ranking import Ranking, Tried
from pipeline.pace.trials import trials
from tests.support.packed_digits import write_digits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_digits(tmp_path_factory.mktemp("bench"), 300))


def subject(data: str, **settings: object) -> Subject:
    config = TrainConfig.model_validate({"data": data, "run": "bench", "workers": 0, **settings})
    return Subject(Dataset.open(data), config, 0.1)


def test_a_planted_bottleneck_is_named_with_its_gain_and_the_chart_is_drawn(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text(
        "import time\n\ndef slow(images, seeds):\n    time.sleep(0.02 * len(images))\n"
        "    return images\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = BenchConfig(
        data=data, image_size=8, channels=1, global_batch_size=16, transform="planted:slow",
        output=str(tmp_path / "chart"), compare=True,
    )  # fmt: skip
    found = run_bench(config, seconds=0.3)
    sys.modules.pop("planted", None)
    assert found.best is not None
    assert found.best.flag == "without --transform planted:slow"
    assert found.best.gain > 2
    assert found.limit == "reading and decoding"
    assert found.loader < found.ceiling
    assert found.stock is not None
    with Image.open(tmp_path / "chart/bench.png") as picture:
        assert picture.width > 500
    gains = [tried.gain for tried in found.ranking.tried]
    assert gains == sorted(gains, reverse=True)
    told: Any = found.to_json()
    assert told["best"] == "without --transform planted:slow"
    assert told["training"] == pytest.approx(sum(told["looks"]) / len(told["looks"]))


def test_only_what_differs_from_what_was_asked_for_is_tried(data: str) -> None:
    plain = [trial.flag for trial in trials(subject(data, global_batch_size=200), "/cache")]
    assert plain == ["--loader.cache-folder FOLDER --loader.cache-decoded"]
    asked = subject(
        data, crop="random", precision="fp64", micro_batch_size=2, deterministic=True,
        objective={"samples": 8}, loader={"threads": 1},
        model={"kind": "autoencoder_kl", "gradient_checkpointing": True}, global_batch_size=4,
    )  # fmt: skip
    flags = [trial.flag for trial in trials(asked, "/cache")]
    assert [flag for flag in flags if not flag.startswith("--loader.threads")] == [
        "without --deterministic", "--precision auto", "without --micro-batch-size",
        "without --model.gradient-checkpointing", "--objective.samples 1",
        "--global-batch-size 16",
    ]  # fmt: skip


def test_what_a_loader_below_the_ceiling_holds_up_is_said_in_bars_of_a_terminal() -> None:
    tried = Tried("--precision fp32", "", True, 103.0, 1.03, 1.03)
    bench = Bench(Ranking([100.0, 100.0], [tried]), 300.0, 120.0, 310.0, 500.0, None, None)
    assert bench.best is None
    assert bench.limit == "reading and decoding"
    said = [line for line in bar_lines(bench.bars()) if "images/s" in line]
    assert len(said) == 6
    assert max(map(len, said)) <= 80


def test_each_kind_of_knob_is_named_in_a_line_of_its_own_and_a_busy_machine_is_said() -> None:
    batch = Tried("--global-batch-size 1024", "fewer steps per image", True, 300.0, 3.0, 2.5)
    threads = Tried("--loader.threads 8", "", False, 140.0, 1.4, 1.2)
    bench = Bench(Ranking([100.0, 120.0], [batch, threads]), 9.0, 9.0, 9.0, 9.0, None, None)
    assert _words(bench) == [
        "Training is held up by the network's steps.",
        "What brings most: --loader.threads 8, 1.40 times the images/s.",
        "Of what makes it another training: --global-batch-size 1024, 3.00 times the images/s "
        "(fewer steps per image).",
        "Two looks at the same training, one after the other, differed by 18%: this machine is "
        "busy. A knob is named where it is faster than both looks beside its own.",
    ]


def test_bars_are_as_long_as_their_paces() -> None:
    lines = bar_lines([Bar("a", 100.0), Bar("b", 50.0), Bar("c", 0.1)])
    assert [line.count("█") for line in lines] == [28, 14, 1]


def test_an_empty_place_is_refused_before_anything_is_timed(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no dataset here"):
        main(BenchConfig(data=str(tmp_path / "nothing")))


def test_a_file_in_the_pictures_way_is_told_before_anything_is_timed(
    data: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file is a file"):
        run_bench(BenchConfig(data=data, output=str(tmp_path / "file/charts")))
