"""The benchmark of training runs small; its parts that start Ray are run by hand."""

import json
from pathlib import Path

from tests.benchmarks.bare_training import Bare, samples, train
from tests.benchmarks.test_benchmarks import run
from tests.benchmarks.training import IMAGE_SIZE, model, write_images
from tests.benchmarks.training_control import order_of_a_step


def test_the_share_of_tracking_is_told() -> None:
    found = run("tests.benchmarks.training", "tracking", "--seconds", "1")
    assert 0 < found["reporter_share_of_step_time"] < 1
    assert found["load_before"] >= 0


def test_the_bare_loop_trains_on_every_image_of_the_dataset(tmp_path: Path) -> None:
    data = write_images(tmp_path, None)
    assert len(samples(data)) == 1000
    train(0, 1, Bare(data, model(4), IMAGE_SIZE, 8, 3, 1, 1), str(tmp_path))
    assert json.loads((tmp_path / "0.json").read_text()) > 0


def test_256_ranks_each_ask_for_their_part_of_the_order() -> None:
    found = order_of_a_step()
    assert 0 < found["order_ms_a_step_of_a_rank"] < found["order_ms_a_step_of_all"]
