"""A run's or an encoding's live numbers in the terminal, for who has no Grafana."""

import sys

from jobs.command import Outcome, run_job
from pipeline.config import WatchConfig
from pipeline.json_value import Json
from pipeline.masking import safe_line, shell_word


def main(config: WatchConfig) -> Outcome:
    """Draws the picture anew every few seconds until what it shows has ended."""
    from pipeline.tracking.terminal import ended_run

    ended = ended_run(config)
    if ended is not None:
        explain = f"`vae explain --run {shell_word(str(config.run))}{config.storage_flag}`"
        more = f"It is over. {explain} says what its numbers mean."
        if ended.reason != "done":
            more = "It has stopped. The command that started it goes on from there."
        return Outcome(ended.to_json(), summary=[*repr(ended).splitlines(), more])
    try:
        result = _watched(config)
    except KeyboardInterrupt:
        if config.once:
            raise
        # Who watches has seen enough: that is how it ends.
        return Outcome({}, summary=["Watched no longer; what runs goes on."])
    said = "One look; without `--once` there are more." if config.once else "It has ended."
    return Outcome(result, summary=[said])


def _watched(config: WatchConfig) -> Json:
    """The last picture, once there is no further one."""
    from pipeline.tracking.terminal import watch

    result: Json = {"run": [], "store": []}
    again = "\033[H\033[J" if sys.stdout.isatty() and not config.once else ""
    for picture, lines in watch(config):
        print(again + "\n".join(map(safe_line, lines)), flush=True)
        result = {
            room: [
                {"name": subject.name, **numbers.series}
                for subject, numbers in picture.items()
                if subject.room == room
            ]
            for room in ("run", "store")
        }
    return result


if __name__ == "__main__":
    run_job(WatchConfig, main)
