"""Which knobs might make a training faster: each is tried as the flag that a user would give."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.config import LoaderConfig, TrainConfig
from pipeline.pace.probes import Subject

Part = Literal["reading", "stepping"]
_LARGER = 4
"""Times the batch: it shows what a step costs however few images it has."""


@dataclass(frozen=True)
class Trial:
    """A knob's other value: as a flag of `jobs.train`, what it may cost, and the training so."""

    flag: str
    note: str
    subject: Subject


def trials(subject: Subject, cache: str) -> Iterator[Trial]:
    """Those that differ from what was asked for; `cache`: a folder that a cache may fill."""
    yield from _of_reading(subject, cache)
    yield from _of_steps(subject)


def _of_reading(subject: Subject, cache: str) -> Iterator[Trial]:
    config, cores = subject.config, len(os.sched_getaffinity(0))
    loader = config.loader
    if loader.threads is not None and loader.threads < cores:
        yield Trial(f"--loader.threads {cores}", "", _reading(subject, loader, threads=cores))
    if config.transform is not None:
        yield Trial(
            f"without --transform {config.transform}",
            "a faster transform brings at most this",
            subject.having(transform=None),
        )
    if loader.cache_folder is None and "://" in subject.dataset.url:
        yield Trial(
            "--loader.cache-folder FOLDER", "from the second epoch on",
            _reading(subject, loader, cache_folder=cache),
        )  # fmt: skip
    if not loader.cache_decoded and config.crop != "random":
        yield Trial(
            "--loader.cache-folder FOLDER --loader.cache-decoded",
            f"from the second epoch on; takes {_decoded_bytes(subject) / 2**30:,.1f} GiB of disk",
            _reading(
                subject, loader, cache_folder=loader.cache_folder or cache, cache_decoded=True
            ),
        )


def _reading(subject: Subject, loader: LoaderConfig, **changes: object) -> Subject:
    return subject.having(loader=loader.model_copy(update=changes))


def _decoded_bytes(subject: Subject) -> int:
    config = subject.config
    return len(subject.dataset) * config.channels * config.image_size**2


def _of_steps(subject: Subject) -> Iterator[Trial]:
    config = subject.config
    yield from _of_arithmetic(subject, config)
    if config.micro_batch_size is not None and not config.exact:
        yield Trial(
            "without --micro-batch-size", "takes more memory",
            subject.having(micro_batch_size=None),
        )  # fmt: skip
    if config.model.gradient_checkpointing:
        network = config.model.model_copy(update={"gradient_checkpointing": False})
        yield Trial(
            "without --model.gradient-checkpointing", "takes more memory",
            subject.having(model=network),
        )  # fmt: skip
    if config.objective.samples > 1:
        objective = config.objective.model_copy(update={"samples": 1})
        yield Trial(
            "--objective.samples 1", "another objective", subject.having(objective=objective)
        )
    larger = config.global_batch_size * _LARGER
    if larger <= len(subject.dataset):
        yield Trial(
            f"--global-batch-size {larger}", "another training: fewer steps per image",
            subject.having(global_batch_size=larger),
        )  # fmt: skip


def _of_arithmetic(subject: Subject, config: TrainConfig) -> Iterator[Trial]:
    if config.exact:
        yield Trial(
            "without --exact", "other bits with another number of workers",
            subject.having(exact=False),
        )  # fmt: skip
    if config.deterministic:
        yield Trial(
            "without --deterministic", "other bits each time", subject.having(deterministic=False)
        )
    if config.precision in ("fp64", "fp16") or (
        config.precision == "fp32" and torch.cuda.is_available()
    ):
        yield Trial("--precision auto", "other rounding", subject.having(precision="auto"))
    if config.precision == "bf16" and not torch.cuda.is_available():
        yield Trial("--precision fp32", "", subject.having(precision="fp32"))
