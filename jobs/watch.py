"""A run's or an encoding's live numbers in the terminal, for who has no Grafana."""

import sys

from jobs.command import Outcome, run_job
from pipeline.config import WatchConfig
from pipeline.json_value import Json
from pipeline.masking import safe


def main(config: WatchConfig) -> Outcome:
    """Draws the picture anew every few seconds until what it shows has ended."""
    from pipeline.tracking.terminal import watch

    result: Json = {"run": [], "store": []}
    again = "\033[H\033[J" if sys.stdout.isatty() and not config.once else ""
    for picture, lines in watch(config):
        print(again + safe("\n".join(lines)), flush=True)
        result = {
            room: [
                {"name": subject.name, **numbers.series}
                for subject, numbers in picture.items()
                if subject.room == room
            ]
            for room in ("run", "store")
        }
    return Outcome(result)


if __name__ == "__main__":
    run_job(WatchConfig, main)
