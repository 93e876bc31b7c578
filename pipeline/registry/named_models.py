"""A model may be named by the run that made it: NAME below --storage, or the run's own folder."""

from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.config import TrackingConfig
from pipeline.errors import ObjectNotFoundError
from pipeline.registry.models import SCHEME, load_model
from pipeline.runs.run import Run
from pipeline.vae import VAE


@dataclass(frozen=True)
class FinishedRun:
    """A run that ended, what it was asked for (`config`) and its model's bundle."""

    run: Run
    config: dict[str, Any]
    bundle: str


def finished_run(name: str, runs: str) -> FinishedRun | None:
    """The finished run called `name` below `runs`, or in the folder `name`; None if there is none.

    Costs no request for a registry URI.
    """
    if name.startswith(SCHEME):
        return None
    for url in dict.fromkeys([name, storage.join(runs, name)]):
        try:
            result = storage.read_json(storage.join(url, "result.json"))
            config = storage.read_json(storage.join(url, "run.json"))["config"]
        except ObjectNotFoundError:
            continue
        return FinishedRun(Run(url), config, result["bundle"])
    return None


def load_named(name: str, runs: str, tracking: TrackingConfig) -> tuple[VAE, FinishedRun | None]:
    """The VAE of a registry URI, a bundle's path or a finished run, and that run."""
    found = finished_run(name, runs)
    return load_model(found.bundle if found else name, tracking), found
