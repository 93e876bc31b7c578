"""A model may be named by the run that made it: NAME below --storage, or the run's own folder."""

from collections.abc import Collection
from dataclasses import dataclass

from pipeline import storage
from pipeline.config import TrainConfig
from pipeline.config.command_line import training_command
from pipeline.config.sections import StorageConfig
from pipeline.errors import ModelError, ObjectNotFoundError, PipelineError, RunError
from pipeline.exchange.model_folder import is_model_folder
from pipeline.masking import safe_line, shell_word
from pipeline.nearest import nearest
from pipeline.registry.models import SCHEME, load_model
from pipeline.runs.checkpoint import newest_step
from pipeline.runs.run import Run
from pipeline.vae import VAE, load_bundle
from pipeline.vae.bundle import RECEIPT

DEFAULT_RUNS = StorageConfig().storage
"""Where runs are looked for by jobs that take none but say what a name may mean."""


@dataclass(frozen=True)
class FinishedRun:
    """A run that ended, what it was asked for (`config`), its model's bundle and that's digest."""

    run: Run
    config: TrainConfig
    bundle: str
    digest: str


def finished_run(name: str, runs: str) -> FinishedRun | None:
    """The finished run called `name` below `runs`, or in the folder `name`; None if there is none.

    Costs no request for a registry URI.
    """
    if name.startswith(SCHEME):
        return None
    for url in dict.fromkeys([name, storage.join(runs, name)]):
        try:
            run = Run(url)
            result, config = run.result(), run.config()
        except ObjectNotFoundError:
            continue
        if result is not None:
            # Where a run is there lies its bundle: what its result says of that is for people.
            return FinishedRun(run, config, run.path("bundle"), str(result.digest))
    return None


def load_named(
    name: str, runs: str, allow_custom: Collection[str] = (), *, flag: str = "--model"
) -> tuple[VAE, FinishedRun | None]:
    """The VAE of a registry URI, a bundle's path or a finished run, and that run.

    Errors name `flag` for it.
    """
    found = finished_run(name, runs)
    if found is None:
        if not name.startswith(SCHEME) and not is_model_folder(name):
            raise nothing_called(name, runs, flag)
        return load_model(name, allow_custom), None
    return load_bundle(found.bundle, allow_custom, digest=found.digest), found


def nothing_called(name: str, runs: str, flag: str) -> PipelineError:
    """The error of a name that is no finished run's (and no bundle's), and what to do instead."""
    for url in dict.fromkeys([name, storage.join(runs, name)]):
        # A flag of finished runs takes no bundle.
        if flag != "--run" and storage.exists(storage.join(url, "bundle", RECEIPT)):
            return ModelError(f"{name}: is a run. Its model: {_given(flag, f'{url}/bundle')}.")
        unfinished = _unfinished(Run(url), flag)
        if unfinished is not None:
            return unfinished
    where = storage.shown(storage.absolute(runs))
    known = storage.names_beside(storage.join(storage.absolute(runs), "run"))
    likely = [each for each in nearest(name, known, count=3) if _is_run(runs, each)]
    hint = f"Did you mean {_given(flag, likely[0])}?" if likely else ""
    if not likely:
        folders = "A run" if flag == "--run" else "A run, a bundle or a model of diffusers'"
        hint = f"{folders} elsewhere is named by its folder."
    kind = RunError if flag == "--run" else ModelError
    return kind(
        f"{storage.shown(name) or repr(name)}: is no finished run in {where}, no bundle's folder "
        f"and no models:/NAME@ALIAS. {hint}".rstrip()
    )


def _given(flag: str, value: str) -> str:
    """As it is typed: behind a flag, or in Python's call of `flag`."""
    return (
        f"`{flag} {shell_word(value)}`"
        if flag.startswith("--")
        else f'`{flag}("{safe_line(value)}")`'
    )


def _is_run(runs: str, name: str) -> bool:
    return storage.exists(storage.join(runs, name, "run.json"))


def _unfinished(run: Run, flag: str) -> RunError | None:
    """The error of a run that is there and has not ended; None where there is none."""
    if not storage.exists(run.path("run.json")):
        return None
    step, best, config = newest_step(run), run.path("best"), run.config()
    said = (
        f"{storage.shown(run.url)}: the run trains still, or was stopped before its end: step "
        f"{step} is saved, and its model is not finished."
    )
    if storage.exists(storage.join(best, RECEIPT)):
        data = config.holdout or config.data
        asked = f"python -m jobs.explain --model {shell_word(best)} --data {shell_word(data)}"
        said += f" Its best so far: {f'`{asked}`' if flag == '--run' else _given(flag, best)}."
    return RunError(
        f"{said} Where nothing trains it any more, `{training_command(config)}` goes on with it."
    )
