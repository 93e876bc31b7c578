"""Whole training runs as any number of gloo ranks, without Ray: what the loop itself does."""

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed
from torch.multiprocessing.spawn import spawn

from pipeline.config import TrainConfig
from pipeline.data import Dataset
from pipeline.runs.outbox import Outbox
from pipeline.runs.run import Pins, Run, Start
from pipeline.training import loop
from pipeline.training.settings import settings_of
from pipeline.training.step import StepReport
from pipeline.training.stepper import Made, Stepper
from pipeline.training.world import current_world, leave_process_group


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
    arguments = (ranks, config.model_dump(mode="json"), start.number, str(folder))
    spawn(_rank, args=arguments, nprocs=ranks)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def _rank(rank: int, ranks: int, config: dict[str, Any], start: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=ranks
    )
    made = TrainConfig.model_validate(config)
    result = _train(made, Run.at(made), Start(start))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))
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
