"""What the hold-out looked like at each validation: its numbers, and the same images rebuilt.

RUN/history/0000001000.safetensors: `originals` and `reconstructions`, uint8 `[N, C, H, W]`, decoded
at the posterior mean by the averaged weights; `kl_per_dimension`, float64 `[D]` nats.
0000001000.json, written after it: the numbers.
"""

import logging
import math
from dataclasses import asdict, dataclass, replace

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline import storage
from pipeline.data import Dataset, load_images
from pipeline.errors import ObjectNotFoundError, StorageError
from pipeline.training.evaluation import evaluating
from pipeline.training.run import Run
from pipeline.training.validation import HeldOut, Validation
from pipeline.vae import VAE

logger = logging.getLogger(__name__)

_IMAGES = 10
_BYTES = 1_000_000
"""Of one picture row: large images are kept fewer, so that a thousand validations stay small."""


@dataclass(frozen=True)
class Moment:
    """One validation: `reconstructions` of the same `originals`, uint8 `[N, C, H, W]`."""

    validation: Validation
    originals: Tensor
    reconstructions: Tensor


class HistoryWriter:
    """Keeps each validation of a run; a replayed step writes the same bytes again."""

    def __init__(self, run: Run, holdout: Dataset, vae: VAE) -> None:
        count = max(2, min(_IMAGES, _BYTES // math.prod(vae.image_shape)))
        batch = load_images(holdout, count, vae.preprocess)
        self._run = run
        self._originals = batch.images[batch.valid]

    def write(self, held: HeldOut, vae: VAE) -> None:
        """Adds one validation. Storage that fails costs a picture and a warning, never the run."""
        if len(self._originals) == 0:
            return
        validation = held.validation
        device = next(vae.parameters()).device
        with torch.no_grad(), evaluating(vae):
            decoded = vae.decode(vae.encode(self._originals.to(device)).mean)
            pixels = (decoded * 255).round().clamp(0, 255).to(torch.uint8).cpu()
        tensors = {
            "kl_per_dimension": held.kl_per_dimension,
            "originals": self._originals,
            # Convolutions give their channels last, and safetensors keeps plain order alone.
            "reconstructions": pixels.contiguous(),
        }
        name = f"{validation.step:010d}"
        # A run that diverges goes on, and says so: NaN is no JSON, and no point of a curve.
        finite = {key: value for key, value in validation.terms.items() if math.isfinite(value)}
        try:
            storage.publish(self._run.path("history", f"{name}.safetensors"), save(tensors))
            storage.publish(
                self._run.path("history", f"{name}.json"),
                storage.canonical_json(asdict(replace(validation, terms=finite))),
            )
        except StorageError as error:
            logger.warning("the pictures of step %d are not kept: %s", validation.step, error)


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
