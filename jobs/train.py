"""Train a VAE on a packed dataset; run again, it continues."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.command import LOADING, Outcome, run_job
from pipeline.config import TrainConfig
from pipeline.counted import counted
from pipeline.machine import cores_here
from pipeline.masking import shell_word
from pipeline.progress import phase

if TYPE_CHECKING:
    from pipeline.commands.sweep import SweepResult, SweepRow
    from pipeline.runs.result import TrainingResult


def main(config: TrainConfig) -> Outcome:
    """Trains to the last step, tracks, checkpoints and registers."""
    if config.dry_run:
        with phase(LOADING):
            from pipeline.commands.train_cost import dry_run

        cost = dry_run(config)
        return Outcome(
            asdict(cost),
            summary=[
                f"{cost.images:,} images, {cost.epochs:.1f} epochs in {cost.steps:,} "
                f"steps of {cost.seconds_per_step:.3f} s: {cost.hours:.2f} hours on "
                f"{counted(cost.workers, 'worker')}, {cost.bytes_read / 1e9:.1f} GB read",
                f"A step was measured now ({counted(cost.probed_steps, 'step')}), beside a load of "
                f"{cost.load:.1f} on {cores_here():g} cores; start-up, looks at the hold-out and "
                "messages between workers are not in the hours.",
            ],
        )
    if config.sweep is not None:
        with phase(LOADING):
            from pipeline.commands.sweep import run_sweep

        swept = run_sweep(config)
        return Outcome(swept.to_json(), summary=[*_table(swept.rows), *_after_sweep(config, swept)])
    with phase(LOADING):
        from pipeline.commands.train import run_training

    result = run_training(config)
    return Outcome(result.to_json(), summary=_lines(config, result))


def _lines(config: TrainConfig, result: "TrainingResult") -> list[str]:
    """What came out, where it lies, and what to do next."""
    if result.reason != "done":
        return [f"{config.run}: {result.reason} at step {result.steps} of {config.steps:,}"]
    lines = [
        f"{config.run}: {counted(result.steps, 'step')}, {counted(result.samples, 'image')} seen",
        *_elbo(result),
    ]
    if result.model is None and not config.no_register:
        return [*lines, f"no model was registered; its run lies in {result.run}"]
    return [
        *lines,
        f"model: {result.model} (version {result.model_version}), the same in {result.bundle}"
        if result.model is not None
        else f"model: {result.bundle}; not registered, as asked",
        f"curves and pictures: {_where_to_look(result)}",
        f"What its numbers mean: `vae explain --run {shell_word(config.run)}{config.storage_flag}`",
        f"Latents: {_encoding(config, result)}",
    ]


def _encoding(config: TrainConfig, result: "TrainingResult") -> str:
    """The command that encodes by this model, as a store that is there already was encoded."""
    from pipeline import storage
    from pipeline.latents.repair_command import encode_next

    model = result.model or result.bundle or ""
    first, second = (
        storage.join(config.storage, name) for name in ("latents", f"{config.run}-latents")
    )
    return encode_next(model, config.data, (first, second), digest=result.digest)


def _where_to_look(result: "TrainingResult") -> str:
    """MLflow's pages; of a file whole, since `mlflow ui` shows an empty one elsewhere."""
    from pipeline.errors import TrackingError
    from pipeline.tracking.mlflow_client import tracking_uri
    from pipeline.tracking.mlflow_facts import run_page

    uri = tracking_uri()
    with suppress(TrackingError):
        page = uri if result.run_id is None else run_page(result.run_id)
        if uri.startswith("http"):
            return page
        return f"`mlflow ui --backend-store-uri {shell_word(uri)}`, then {page}"
    return uri


def _elbo(result: "TrainingResult") -> list[str]:
    before = (result.holdout_before or {}).get("elbo")
    after = (result.holdout_after or {}).get("elbo")
    if after is None or before is None:
        where = "of the last batch that was trained on: nothing is held out"
        return [] if result.elbo is None else [f"ELBO {result.elbo:,.2f} nats per image, {where}"]
    lines = [f"held-out ELBO {after:,.2f} nats per image; before it was {before:,.2f}"]
    if result.chosen_step < result.steps:
        lines.append(
            f"the model is that of step {result.chosen_step:,}: no later look at the hold-out was "
            "better"
        )
    return lines


def _table(rows: Sequence["SweepRow"]) -> list[str]:
    head = f"{'':<20}{'ELBO':>12}{'rate':>12}{'distortion':>12}{'active':>8}"
    return [head] + [
        f"{row.name:<20}{_nats(row.elbo)}{_nats(row.rate)}{_nats(row.distortion)}"
        f"{'-' if row.active_units is None else row.active_units:>8}"
        for row in rows
    ]


def _after_sweep(config: TrainConfig, swept: "SweepResult") -> list[str]:
    """Which run it was, the picture, and what to do next."""
    from pipeline import storage
    from pipeline.commands.train import resolve

    best = swept.best
    lines = [f"best on the hold-out: {best.run}, " + (best.model or best.bundle or "no model")]
    lines += [f"rate against distortion: {url}" for url in swept.figures]
    if best.reason != "done":
        return lines
    others = [row.run for row in swept.rows if row.elbo is not None and row.run != best.run]
    told = [f"What its numbers mean: `vae explain --run {shell_word(best.run)}`"]
    if others:
        words = ["--model", best.run, "--compare", *others, "--data", str(resolve(config).holdout)]
        words += ["--output", storage.join(config.storage, f"{config.run}-compared")]
        told.append(f"All runs side by side: `vae evaluate {' '.join(map(shell_word, words))}`")
    return [*lines, *told, f"Latents: {_encoding(config, best)}"]


def _nats(value: float | None) -> str:
    return f"{'diverged':>12}" if value is None else f"{value:12.3f}"


if __name__ == "__main__":
    run_job(TrainConfig, main)
