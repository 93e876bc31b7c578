"""What the averaged weights make of the same held-out images, kept at each validation of a run."""

import logging
import math
from dataclasses import replace

import torch
from safetensors.torch import save

from pipeline.data import Dataset, load_images
from pipeline.errors import StorageError, without_advice
from pipeline.evaluation.sums import evaluating
from pipeline.runs.history import HeldOut, write_validation
from pipeline.runs.run import Run
from pipeline.vae import VAE

logger = logging.getLogger(__name__)

_IMAGES = 10
"""Kept with each look, beside what they were: a picture's row has room for so many."""


_BYTES = 1_000_000
"""Of one picture row: large images are kept fewer, so that a thousand validations stay small."""


class HistoryWriter:
    """Keeps each validation of a run; a replayed step writes the same bytes again."""

    def __init__(self, run: Run, holdout: Dataset, vae: VAE) -> None:
        count = max(2, min(_IMAGES, _BYTES // math.prod(vae.image_shape)))
        batch = load_images(holdout, count, vae.preprocess)
        self._run = run
        self._originals = batch.images[batch.valid]

    def write(self, held: HeldOut, vae: VAE, course: torch.Tensor) -> None:
        """Adds one validation and the training steps `[T, 6]` that led to it.

        Storage that fails costs a picture and a warning, never the run.
        """
        if len(self._originals) == 0:
            return
        validation = held.validation
        device = next(vae.parameters()).device
        with torch.no_grad(), evaluating(vae):
            decoded = vae.decode(vae.encode(self._originals.to(device)).mean)
            pixels = (decoded * 255).round().clamp(0, 255).to(torch.uint8).cpu()
        tensors = {
            "kl_per_dimension": held.kl_per_dimension,
            "elbos": held.elbos,
            "course": course,
            "originals": self._originals,
            # Convolutions give their channels last, and safetensors keeps plain order alone.
            "reconstructions": pixels.contiguous(),
        }
        # A run that diverges goes on, and says so: NaN is no JSON, and no point of a curve.
        finite = {key: value for key, value in validation.terms.items() if math.isfinite(value)}
        try:
            write_validation(self._run, replace(validation, terms=finite), save(tensors))
        except StorageError as error:
            logger.warning(
                "the pictures of step %d are not kept: %s", validation.step, without_advice(error)
            )
