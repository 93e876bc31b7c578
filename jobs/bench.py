"""Why is it slow: training and its parts timed on your data, and the one knob that brings most."""

from typing import TYPE_CHECKING

from jobs.command import Outcome, run_job
from pipeline.config import BenchConfig

if TYPE_CHECKING:
    from pipeline.commands.bench import Bench


def main(config: BenchConfig) -> Outcome:
    """Times, draws and says what to turn."""
    from pipeline.commands.bench import run_bench
    from pipeline.pace.chart import bar_lines

    found = run_bench(config)
    return Outcome(found.to_json(), summary=[*bar_lines(found.bars()), *_words(found)])


def _words(found: "Bench") -> list[str]:
    best = found.best
    lines = [f"Training is held up by {found.limit}."]
    if best is None:
        lines.append("No knob that was tried brings more than 5%.")
    else:
        note = f" ({best.note})" if best.note else ""
        lines.append(f"What brings most: {best.flag}, {best.gain:.2f} times the images/s{note}.")
    if found.drift > 0.1:
        lines.append(
            f"Two looks at the same training differed by {found.drift:.0%}: this machine is busy, "
            "and no smaller gain is sure."
        )
    if found.stock is not None:
        lines.append(
            f"This loader reads {found.loader / found.stock:.2f} times what stock webdataset does."
        )
    if found.chart is not None:
        lines.append(f"The chart: {found.chart}")
    return lines


if __name__ == "__main__":
    run_job(BenchConfig, main)
