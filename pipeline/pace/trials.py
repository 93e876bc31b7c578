"""Which knobs might make a training faster: each is tried as the flag that a user would give."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.pace.probes import Subject

_LARGER = 4
"""Times the batch: it shows what a step costs however few images it has."""


@dataclass(frozen=True)
class Trial:
    """A knob's other value: as a flag of `jobs.train`, what it may cost, and the training so.

    `changes_training`: its numbers are others then, by rounding at least.
    """

    flag: str
    note: str
    subject: Subject
    changes_training: bool = False


def trials(subject: Subject, cache: str) -> Iterator[Trial]:
    """Those that differ from what was asked for; `cache`: a folder that caches may fill."""
    yield from _of_reading(subject, cache)
    yield from _of_arithmetic(subject)
    yield from _of_memory(subject)
    yield from _of_objective(subject)


def _of_reading(subject: Subject, cache: str) -> Iterator[Trial]:
    config, cores = subject.config, len(os.sched_getaffinity(0))
    loader = config.loader
    if loader.threads is not None and loader.threads < cores:
        yield Trial(f"--loader.threads {cores}", "", _reading(subject, threads=cores))
    if config.transform is not None:
        # Not as one that changes the training: it is what making the transform faster can bring.
        yield Trial(
            f"without --transform {config.transform}",
            "a faster transform brings at most this",
            subject.having(transform=None),
        )
    if loader.cache_folder is None and "://" in subject.dataset.url:
        folder = os.path.join(cache, "fetched")
        yield Trial(
            "--loader.cache-folder FOLDER", "from the second epoch on",
            _reading(subject, cache_folder=folder),
        )  # fmt: skip
    if not loader.cache_decoded and config.crop != "random":
        folder = loader.cache_folder or os.path.join(cache, "decoded")
        yield Trial(
            "--loader.cache-folder FOLDER --loader.cache-decoded",
            f"from the second epoch on; takes {_decoded_bytes(subject) / 2**30:,.1f} GiB of disk",
            _reading(subject, cache_folder=folder, cache_decoded=True),
        )


def _reading(subject: Subject, **changes: object) -> Subject:
    return subject.having(loader=subject.config.loader.model_copy(update=changes))


def _decoded_bytes(subject: Subject) -> int:
    config = subject.config
    return len(subject.dataset) * config.channels * config.image_size**2


def _of_arithmetic(subject: Subject) -> Iterator[Trial]:
    config = subject.config
    if config.exact:
        yield Trial(
            "without --exact", "other bits with another number of workers",
            subject.having(exact=False), changes_training=True,
        )  # fmt: skip
    if config.deterministic:
        yield Trial(
            "without --deterministic", "other bits each time",
            subject.having(deterministic=False), changes_training=True,
        )  # fmt: skip
    for flag, precision in _precisions(config.precision):
        yield Trial(
            flag, "other rounding", subject.having(precision=precision), changes_training=True
        )


def _precisions(asked: str) -> Iterator[tuple[str, Literal["auto", "fp32"]]]:
    if asked in ("fp64", "fp16") or (asked == "fp32" and torch.cuda.is_available()):
        yield "--precision auto", "auto"
    if asked == "bf16" and not torch.cuda.is_available():
        yield "--precision fp32", "fp32"


def _of_memory(subject: Subject) -> Iterator[Trial]:
    config = subject.config
    if config.micro_batch_size is not None and not config.exact:
        yield Trial(
            "without --micro-batch-size", "other rounding; takes more memory",
            subject.having(micro_batch_size=None), changes_training=True,
        )  # fmt: skip
    if config.model.gradient_checkpointing:
        network = config.model.model_copy(update={"gradient_checkpointing": False})
        yield Trial(
            "without --model.gradient-checkpointing", "takes more memory",
            subject.having(model=network),
        )  # fmt: skip


def _of_objective(subject: Subject) -> Iterator[Trial]:
    config = subject.config
    if config.objective.samples > 1:
        objective = config.objective.model_copy(update={"samples": 1})
        yield Trial(
            "--objective.samples 1", "another objective", subject.having(objective=objective),
            changes_training=True,
        )  # fmt: skip
    larger = config.global_batch_size * _LARGER
    if larger <= len(subject.dataset):
        yield Trial(
            f"--global-batch-size {larger}", "fewer steps per image",
            subject.having(global_batch_size=larger), changes_training=True,
        )  # fmt: skip
