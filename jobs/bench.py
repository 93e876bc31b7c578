"""Why is it slow: training and its parts timed on your data, and the knobs that bring most."""

from typing import TYPE_CHECKING

from jobs.command import Outcome, run_job
from pipeline.config import BenchConfig

if TYPE_CHECKING:
    from pipeline.commands.bench import Bench


_BUSY = 0.1
"""Two looks on a quiet machine differ by less: a few seconds hold dozens of steps."""


def main(config: BenchConfig) -> Outcome:
    """Times, draws and says what to turn."""
    from pipeline.commands.bench import run_bench
    from pipeline.pace.chart import bar_lines

    found = run_bench(config)
    return Outcome(found.to_json(), summary=[*bar_lines(found.bars()), *_words(found)])


def _words(found: "Bench") -> list[str]:
    lines = [f"Training is held up by {found.limit}."]
    heads = (
        ("What brings most", found.best),
        ("Of what makes it another training", found.best_changing),
    )
    for head, best in heads:
        if best is not None:
            note = f" ({best.note})" if best.note else ""
            lines.append(f"{head}: {best.flag}, {best.gain:.2f} times the images/s{note}.")
    if found.best is None and found.best_changing is None:
        lines.append("No knob that was tried is sure to bring more than 5%.")
    drift = found.ranking.drift
    if drift > _BUSY:
        lines.append(
            f"Two looks at the same training, one after the other, differed by {drift:.0%}: this "
            "machine is busy. A knob is named where it is faster than both looks beside its own."
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
