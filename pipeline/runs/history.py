"""What the hold-out looked like at each validation: its numbers, and the same images rebuilt.

RUN/history/0000001000.safetensors: `originals` and `reconstructions`, uint8 `[N, C, H, W]`, decoded
at the posterior mean by the averaged weights; `kl_per_dimension`, float64 `[D]` nats; `elbos`, of
the first images, float64 `[M]`; `course`, the training steps since the look before, float64
`[T, 6]`, with a column for each of `COURSE`.
0000001000.json, written after it: the numbers.
"""

import hashlib
import logging
import math
import re
from dataclasses import asdict, dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pipeline import storage
from pipeline.errors import ObjectNotFoundError, RunError, StorageError
from pipeline.masking import shell_word
from pipeline.runs.run import Run

logger = logging.getLogger(__name__)

COURSE = ("step", "elbo", "log_likelihood", "kl", "learning_rate", "beta")
"""Of a training step: means over its batch, in nats per image; what the optimiser was given."""


@dataclass(frozen=True)
class Validation:
    """Means over the hold-out's `images` after `step` steps, of the averaged weights, in nats."""

    step: int
    images: int
    terms: dict[str, float]

    @property
    def elbo(self) -> float:
        """By which looks are compared; NaN where it was no number, which is not kept."""
        return self.terms.get("elbo", math.nan)


@dataclass(frozen=True)
class HeldOut:
    """A validation, each latent dimension's share of its KL (`[D]` nats, float64), and the ELBO of
    each of the first images (`[M]` nats, float64).
    """

    validation: Validation
    kl_per_dimension: Tensor
    elbos: Tensor


@dataclass(frozen=True)
class Moment:
    """One validation: `reconstructions` of the same `originals`, uint8 `[N, C, H, W]`."""

    validation: Validation
    originals: Tensor
    reconstructions: Tensor


def read_validations(run: Run) -> list[Validation]:
    """Every validation of a run, in the order of steps; empty where it has none.

    Raises `RunError` where one of them is damaged, or gone.
    """
    found = [_read(url) for url in _listed(run)]
    for before, stored in zip([None, *found], found, strict=False):
        if stored.previous != (before.validation.step if before else None):
            raise RunError(
                f"{run.path('history')}: the validation of step {stored.previous} is gone, which "
                f"that of step {stored.validation.step} names. {VALIDATION.advice}"
            )
    _check_last(run, max((stored.step for stored in found), default=0))
    return [stored.validation for stored in found]


def _check_last(run: Run, newest: int) -> None:
    """No validation names the last one, but the result does: a run with a hold-out ends by it."""
    result = run.result()
    if result is not None and result.holdout_after is not None and newest < result.steps:
        raise RunError(
            f"{run.path('history')}: the validation of step {result.steps} is gone, by which "
            f"result.json says that the run ended. {VALIDATION.advice}"
        )


@dataclass(frozen=True)
class _Stored:
    """A validation as it lies in its file: beside it the checksum of its tensors.

    `previous`: the step of the validation before it, so that one that is gone is missed.
    """

    step: int
    images: int
    terms: dict[str, float]
    sha256: str
    previous: int | None

    @property
    def validation(self) -> Validation:
        return Validation(self.step, self.images, self.terms)


VALIDATION = storage.DocumentKind(
    "vae-pipeline/validation", 2, RunError, "Restore it, or begin anew on purpose: `--begin-anew`."
)


def write_validation(run: Run, validation: Validation, tensors: bytes) -> None:
    """Keeps a validation; its tensors first. A replayed step writes the same bytes again."""
    name = f"{validation.step:010d}"
    steps = [int(_step_of(url)) for url in _listed(run) if _step_of(url) < name]
    stored = {
        **asdict(validation),
        "sha256": hashlib.sha256(tensors).hexdigest(),
        "previous": max(steps, default=None),
    }
    storage.publish(run.path("history", f"{name}.safetensors"), tensors)
    storage.publish(run.path("history", f"{name}.json"), VALIDATION.encode(stored))


def newest_validation(run: Run) -> int:
    """The step of the newest validation, 0 where there is none; reads none of them."""
    return max((int(_step_of(url)) for url in _listed(run)), default=0)


def refuse_other_validations(run: Run) -> None:
    """Raises `RunError` where another program version wrote the newest validation."""
    for url in _listed(run)[-1:]:
        VALIDATION.refuse_other_version(storage.read(url), url)


def _listed(run: Run) -> list[str]:
    try:
        urls = [item.url for item in storage.list_objects(run.path("history"))]
    except ObjectNotFoundError:
        return []
    return sorted(url for url in urls if re.search(r"/\d{10}\.json$", url))


def _step_of(url: str) -> str:
    return url.rsplit("/", 1)[-1].removesuffix(".json")


def _read(url: str) -> _Stored:
    stored = VALIDATION.typed(_Stored, storage.read_document(VALIDATION, url), url)
    if f"{stored.step:010d}" != _step_of(url):
        raise VALIDATION.damaged(url, f"it is the validation of step {stored.step}")
    return stored


def read_kl_per_dimension(run: Run, validation: Validation) -> Tensor:
    """Each latent dimension's KL at a validation: `[D]` nats, float64; they sum to its `kl`."""
    return _tensor(run, validation, "kl_per_dimension")


def read_elbos(run: Run, validation: Validation) -> Tensor:
    """The ELBO of each of the first images at a validation: `[M]` nats, float64."""
    return _tensor(run, validation, "elbos")


def no_course() -> Tensor:
    """Of a run that has made no step since its last validation: `[0, 6]`."""
    return torch.empty(0, len(COURSE), dtype=torch.float64)


def read_course(run: Run, validation: Validation) -> Tensor:
    """Training steps before a validation, and after the one before: `[T, 6]`, as `COURSE` says."""
    return _tensor(run, validation, "course")


def check_history(run: Run) -> None:
    """Raises `RunError` where a run's way can't be drawn, before minutes go into measuring it."""
    for validation in read_validations(run)[-1:]:
        read_course(run, validation)


def read_moments(run: Run, validations: list[Validation], count: int) -> list[Moment]:
    """Up to `count` moments, the first and the last among them and the rest at growing distances.

    Training changes most at its start, so the steps between grow from one to the next.
    """
    if not validations:
        return []
    last = len(validations) - 1
    places = {round(last * (place / max(1, count - 1)) ** 2) for place in range(count)}
    moments = []
    for validation in (validations[place] for place in sorted(places)):
        originals, rebuilt = (
            _tensor(run, validation, name) for name in ("originals", "reconstructions")
        )
        moments.append(Moment(validation, originals, rebuilt))
    return moments


def _tensor(run: Run, validation: Validation, name: str) -> Tensor:
    tensors = _tensors(run, validation)
    if name not in tensors:
        url = run.path("history", f"{validation.step:010d}.safetensors")
        raise RunError(
            f"{storage.shown(url)}: holds no {name!r}, so an older version of this program wrote "
            f"it. Measure the run's model itself: `--model {shell_word(run.path('bundle'))}`"
        )
    return tensors[name]


def _tensors(run: Run, validation: Validation) -> dict[str, Tensor]:
    url = run.path("history", f"{validation.step:010d}.safetensors")
    wanted = _read(run.path("history", f"{validation.step:010d}.json")).sha256
    data = storage.read(url)
    if hashlib.sha256(data).hexdigest() != wanted:
        raise StorageError(
            f"{storage.shown(url)}: is damaged: its bytes are not those that were written. Remove "
            "it and the .json of the same name: the pictures go on without that step."
        )
    try:
        return load(data)
    except SafetensorError as error:
        raise StorageError(
            f"{storage.shown(url)}: is damaged ({error}). Remove it and the .json of the same "
            "name: the pictures go on without that step."
        ) from None
