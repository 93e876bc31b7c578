"""Training, and each of its parts alone, for some seconds: images per second.

Nothing is modelled: what a knob brings is measured with that knob.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice, repeat

import torch

from pipeline.config import TrainConfig
from pipeline.data import Batch, Dataset, Loader
from pipeline.data.loader import PREFETCH_BATCHES
from pipeline.runs.run import Run
from pipeline.training.batches import training_loader, without_end
from pipeline.training.restore import numerics, restore
from pipeline.training.settings import settings_of
from pipeline.training.state import TrainState
from pipeline.training.step import train_step
from pipeline.training.world import current_world

_WARM_UP = PREFETCH_BATCHES + 2
"""Batches: those that wait already, and the first steps' allocations and choices of kernels."""
_IN_MEMORY = 8
"""Batches that a ceiling is measured on."""
_FILLING_SECONDS = 60.0
"""For the first epoch of a cache: what it holds by then is read from it."""


@dataclass(frozen=True)
class Subject:
    """What is timed: training on a dataset as a config says. It takes `seconds` for each look."""

    dataset: Dataset
    config: TrainConfig
    seconds: float

    def having(self, **changes: object) -> "Subject":
        """The same with other settings."""
        return replace(self, config=self.config.model_copy(update=changes))


def fill_cache(subject: Subject) -> None:
    """Reads an epoch of a training that has a cache: the first one is not what later ones take."""
    if subject.config.loader.cache_folder is None:
        return
    began = time.perf_counter()
    with _loader(subject) as loader:
        for _ in loader:
            if time.perf_counter() - began > _FILLING_SECONDS:
                break


def training_pace(subject: Subject) -> float:
    """Images per second of training as it is: reading, decoding and stepping beside each other."""
    with _loader(subject) as loader, _state(subject) as state:
        return _pace(_steps(state, subject, without_end(loader)), subject.seconds)


def loader_pace(subject: Subject) -> float:
    """Of reading and decoding, while nobody trains."""
    with _loader(subject) as loader:
        return _pace((int(batch.valid.sum()) for batch in without_end(loader)), subject.seconds)


def ceiling_pace(subject: Subject) -> float:
    """Of training on batches that are in memory: what no loader can exceed."""
    with _state(subject) as state:
        return _pace(_steps(state, subject, cycle(_in_memory(subject))), subject.seconds)


def step_pace(subject: Subject) -> float:
    """Of steps on one batch that is on the device already."""
    with _state(subject) as state:
        (batch,) = _in_memory(subject, 1)
        there = replace(batch, images=batch.images.to(current_world().device))
        return _pace(_steps(state, subject, repeat(there)), subject.seconds)


@contextmanager
def _loader(subject: Subject) -> Iterator[Loader]:
    settings = settings_of(subject.config)
    with closing(
        training_loader(subject.dataset, settings.batches, current_world(), None)
    ) as loader:
        yield loader


@contextmanager
def _state(subject: Subject) -> Iterator[TrainState]:
    settings = settings_of(subject.config)
    # A run that nobody will ever start has no checkpoint to go on from.
    nowhere = Run(f"{Run.at(subject.config).url}.bench")
    with numerics(settings.state):
        yield restore(settings.state, nowhere, current_world(), subject.dataset)[0]


def _in_memory(subject: Subject, count: int = _IN_MEMORY) -> list[Batch]:
    with _loader(subject) as loader:
        return list(islice(without_end(loader), count))


def _steps(state: TrainState, subject: Subject, batches: Iterable[Batch]) -> Iterator[int]:
    """Images of each step."""
    settings = settings_of(subject.config).step
    world = current_world()
    for batch in batches:
        report = train_step(
            state, batch, world, settings, rate=1e-9, stop=False, data_wait_seconds=0.0
        )
        yield report.images


def _pace(images: Iterator[int], seconds: float) -> float:
    """Images per second after the warm-up, over whole batches."""
    for _ in islice(images, _WARM_UP):
        pass
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began, done = time.perf_counter(), 0
    for count in images:
        done += count
        if time.perf_counter() - began >= seconds:
            break
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return done / (time.perf_counter() - began)
