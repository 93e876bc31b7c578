"""List runs with what they take; remove what finished runs do not need any more."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from jobs.command import Outcome, run_job
from pipeline.config import RunsConfig
from pipeline.counted import counted
from pipeline.json_value import Json
from pipeline.masking import one_line

if TYPE_CHECKING:
    from pipeline.retention.runs import ListedRun, Removal

_COST = {
    "checkpoints": "Without its checkpoints a run can't be trained on, whatever `--steps` say: its "
    "model, history and pictures stay, and `vae train --init` begins a new run with the model.",
    "runs": "A removed run can't be trained on, looked at or explained; versions of its model that "
    "are registered stay.",
}


def main(config: RunsConfig) -> Outcome:
    """`--remove WHAT` alone is the dry run of `--remove WHAT --delete`."""
    from pipeline import storage
    from pipeline.retention.runs import choose, list_runs, removal

    place = storage.absolute(config.storage)
    runs = list_runs(place, config.run)
    lines = _table(runs)
    if config.remove is None:
        return Outcome({"runs": [asdict(run) for run in runs]}, summary=lines)
    named = bool(config.run)
    chosen = choose(runs, older_days=config.older_days, keep_last=config.keep_last, named=named)
    gone = [removal(place, run, config.remove, named=named, delete=config.delete) for run in chosen]
    result: Json = {
        "runs": [asdict(run) for run in runs],
        "removals": [asdict(each) for each in gone],
        "bytes": sum(each.bytes for each in gone),
        "deleted": config.delete,
    }
    refused = [each for each in gone if each.refused]
    return Outcome(
        result,
        1 if named and refused else 0,
        [*lines, *(_said(each, config) for each in gone), *_total(gone, config)],
    )


def _table(runs: "list[ListedRun]") -> list[str]:
    lines = [f"{'run':<24}{'state':<12}{'step':>9}{'MiB':>10}{'checkpoints':>13}  changed"]
    for run in runs:
        when = f"{datetime.fromtimestamp(run.changed, UTC):%Y-%m-%d %H:%M}"
        lines.append(
            f"{one_line(run.run):<24}{run.state:<12}{run.step:>9}{run.bytes / 2**20:>10.1f}"
            f"{run.checkpoint_bytes / 2**20:>13.1f}  {when}  "
            f"{run.model or one_line(run.problem) or '-'}"
        )
    return lines


def _said(each: "Removal", config: RunsConfig) -> str:
    if each.refused:
        return f"left alone: {each.refused}"
    what = "its checkpoints" if config.remove == "checkpoints" else "all of it"
    done = "removed" if config.delete else "would go"
    return f"  {one_line(each.run)}: {what}, {each.objects} objects, {each.bytes} bytes {done}"


def _total(gone: "list[Removal]", config: RunsConfig) -> list[str]:
    size = sum(each.bytes for each in gone)
    cost = [_COST[str(config.remove)]] if size else []
    if config.delete:
        return [f"{counted(size, 'byte')} removed.", *cost]
    hint = " The same command with `--delete` removes it." if size else ""
    return [f"{counted(size, 'byte')} would go.{hint}", *cost]


if __name__ == "__main__":
    run_job(RunsConfig, main)
