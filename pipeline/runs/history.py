"""What the hold-out looked like at each validation: its numbers, and the same images rebuilt.

RUN/history/0000001000.safetensors: `originals` and `reconstructions`, uint8 `[N, C, H, W]`, decoded
at the posterior mean by the averaged weights; `kl_per_dimension`, float64 `[D]` nats; `elbos`, of
the first images, float64 `[M]`; `course`, the training steps since the look before, float64
`[T, 6]`, with a column for each of `COURSE`.
0000001000.json, written after it: the numbers.
"""

import logging
from dataclasses import dataclass

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pipeline import storage
from pipeline.errors import ObjectNotFoundError, StorageError
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
        """By which looks are compared."""
        return self.terms["elbo"]


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
    """Every validation of a run, in the order of steps; empty where it has none."""
    try:
        items = list(storage.list_objects(run.path("history")))
    except ObjectNotFoundError:
        return []
    urls = sorted(item.url for item in items if item.url.endswith(".json"))
    return [Validation(**storage.read_json(url)) for url in urls]


def read_kl_per_dimension(run: Run, validation: Validation) -> Tensor:
    """Each latent dimension's KL at a validation: `[D]` nats, float64; they sum to its `kl`."""
    return _tensors(run, validation)["kl_per_dimension"]


def read_elbos(run: Run, validation: Validation) -> Tensor:
    """The ELBO of each of the first images at a validation: `[M]` nats, float64."""
    return _tensors(run, validation)["elbos"]


def read_course(run: Run, validation: Validation) -> Tensor:
    """Training steps before a validation, and after the one before: `[T, 6]`, as `COURSE` says."""
    return _tensors(run, validation)["course"]


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
        images = _tensors(run, validation)
        moments.append(Moment(validation, images["originals"], images["reconstructions"]))
    return moments


def _tensors(run: Run, validation: Validation) -> dict[str, Tensor]:
    url = run.path("history", f"{validation.step:010d}.safetensors")
    try:
        return load(storage.read(url))
    except SafetensorError as error:
        raise StorageError(
            f"{storage.shown(url)}: is damaged ({error}). Remove it and the .json of the same "
            "name: the pictures go on without that step."
        ) from None
