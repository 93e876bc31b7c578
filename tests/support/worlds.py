"""Whole training runs as any number of gloo ranks, without Ray: what the loop itself does."""

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed

from pipeline.config import TrainConfig
from pipeline.data import Dataset
from pipeline.runs.outbox import Outbox
from pipeline.runs.run import Pins, Run, Start
from pipeline.training import loop
from pipeline.training.settings import settings_of
from pipeline.training.step import StepReport
from pipeline.training.stepper import Made, Stepper
from pipeline.training.world import current_world, leave_process_group
from tests.support.warm import run_ranks


def train_config(data: Path, runs: Path, run: str, **changes: Any) -> TrainConfig:
    """A small model of 8x8 images in `data`, in the run folder `runs`/`run`."""
    values: dict[str, Any] = {
        "data": str(data), "run": run, "storage": str(runs), "steps": 12,
        "global_batch_size": 24, "image_size": 8, "channels": 1, "workers": 0,
        "precision": "fp32", "checkpoint_every": 6, "evaluate_every": 6,
        "model": {"kind": "mlp", "latent_channels": 2, "width": 16},
    }  # fmt: skip
    return TrainConfig.model_validate(values | changes)


def train(config: TrainConfig, ranks: int = 1) -> list[dict[str, Any]]:
    """Trains to `config.steps`; each rank's steps (terms and keys) and how it ended."""
    run = Run.at(config)
    holdout = Dataset.open(config.holdout).digest if config.holdout else None
    run.open(config, run.pins() or Pins(Dataset.open(config.data).digest, holdout))
    start = run.claim()
    if ranks == 1:
        return [_train(config, run, start)]
    folder = Path(run.path(f"ranks-{start.number}"))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.model_dump_json())
    run_ranks(folder, ranks, "tests.support.worlds", str(start.number))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def _rank(rank: int, ranks: int, start: int) -> None:
    """In a process of its own, whose folder holds the config."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    meeting = f"file://{Path('rendezvous').resolve()}"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=ranks)
    config = TrainConfig.model_validate_json(Path("config.json").read_text())
    result = _train(config, Run.at(config), Start(start))
    Path(f"{rank}.json").write_text(json.dumps(result))
    leave_process_group()
    assert not [name for name in _threads() if "gloo" in name]


def _threads() -> list[str]:
    """The names of this process's threads, those of libraries too."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def _train(config: TrainConfig, run: Run, start: Start) -> dict[str, Any]:
    keys: list[list[str]] = []
    make = Stepper.make

    def noted(self: Stepper, *, stop: bool) -> Made:
        made = make(self, stop=stop)
        keys.append(list(made.batch.keys))
        return made

    with patch.object(Stepper, "make", noted):
        world = current_world(torch.device("cpu"))
        reports = list(loop.train(settings_of(config), run, start, world, Outbox()))
    ended = reports[-1]
    assert isinstance(ended, loop.Ended)
    steps = [report for report in reports if isinstance(report, StepReport)]
    return {
        "losses": [-report.objective for report in steps],
        "skipped": [report.skipped for report in steps],
        "keys": keys,
        "digest": ended.digest,
        "step": ended.step,
        "terms": dict(ended.terms),
        "converged": ended.converged,
        "run_seconds": ended.run_seconds,
        "seconds": [report.seconds for report in steps],
        "rank_seconds": [report.rank_seconds for report in steps],
        "chosen": ended.chosen.step if ended.chosen else None,
        "validations": [validation.terms for validation in ended.validations],
    }


if __name__ == "__main__":
    _rank(*map(int, sys.argv[1:]))
