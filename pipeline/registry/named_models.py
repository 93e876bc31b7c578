"""A model may be named by the run that made it: NAME below --storage, or the run's own folder."""

from collections.abc import Collection
from dataclasses import dataclass

from pipeline import storage
from pipeline.config import TrainConfig
from pipeline.errors import ObjectNotFoundError
from pipeline.registry.models import SCHEME, load_model
from pipeline.runs.run import Run
from pipeline.vae import VAE, load_bundle


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
    name: str, runs: str, allow_custom: Collection[str] = ()
) -> tuple[VAE, FinishedRun | None]:
    """The VAE of a registry URI, a bundle's path or a finished run, and that run."""
    found = finished_run(name, runs)
    if found is None:
        return load_model(name, allow_custom), None
    return load_bundle(found.bundle, allow_custom, digest=found.digest), found
