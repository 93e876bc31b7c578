"""`python -m tests.support.killed_training CONFIG STEP`: a training that kills itself.

It does so at STEP or later, between two checkpoints, once it is written down that steps after the
last of them were made: they come again.
"""

import json
import os
import signal
import sys
from pathlib import Path

from pipeline.config import TrainConfig
from pipeline.data import Dataset
from pipeline.runs import goodput
from pipeline.runs.outbox import Outbox
from pipeline.runs.run import Pins, Run
from pipeline.training.loop import train
from pipeline.training.settings import settings_of
from pipeline.training.world import current_world


def main() -> None:
    """CONFIG is JSON, with a checkpoint every 7 steps."""
    goodput.WRITE_SECONDS = 0.1
    config = TrainConfig.model_validate_json(sys.argv[1])
    run = Run.at(config)
    run.open(config, Pins(Dataset.open(config.data).digest, None))
    start = run.claim()
    tally = Path(run.path("time", f"{start.name}.json"))
    for report in train(settings_of(config), run, start, current_world(), Outbox()):
        if (
            report.step >= int(sys.argv[2])
            and report.step % 7 in (4, 5)
            and json.loads(tally.read_text())["step"] > report.step - 4
        ):
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
