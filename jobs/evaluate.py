"""Measure a model on held-out images: exact numbers with intervals, and pictures."""

import math
from typing import TYPE_CHECKING

from jobs.command import LOADING, Outcome, run_job
from pipeline.config import EvaluateConfig
from pipeline.counted import counted
from pipeline.progress import phase

if TYPE_CHECKING:
    from pipeline.commands.evaluate import Evaluation
    from pipeline.evaluation.comparison import Comparison
    from pipeline.evaluation.distances import SetDistances


def main(config: EvaluateConfig) -> Outcome:
    """Measures, writes report and pictures where asked, and prints a summary."""
    with phase(LOADING):
        from pipeline.commands.evaluate import run_evaluation

    found = run_evaluation(config)
    return Outcome(found.to_json(), summary=_summary(found))


def _summary(found: "Evaluation") -> list[str]:
    result = found.numbers
    gap = result.gap
    step = "" if result.step is None else f" of step {result.step:,}"
    lines = [
        f"{counted(result.images, 'image')} by {found.model}{step}, nats per image:",
        f"  ELBO            {result.elbo:12.3f}  +- {_number(result.elbo_error)}",
        f"    log p(x|z)    {result.log_likelihood:12.3f}",
        f"    - KL to prior {-result.kl:12.3f}",
        f"  posterior gap >={result.posterior_gap:12.3f}",
        f"  log p(x) >=     {gap.evidence:12.3f}  = ELBO {gap.elbo:.3f} + gap: both of "
        f"{_which(gap.images, result.images)}, by {gap.how}, of whose {gap.samples} draws "
        f"{gap.effective_samples:.1f} count (this ELBO is of other draws than the first line's)",
        f"  active units    {result.active_units} of {result.latent_dimensions}"
        + " (over one image nothing varies)" * (result.images == 1),
        f"  reconstruction  {result.reconstruction.psnr_mean:.2f} dB PSNR at the mean",
    ]
    lines += _distances(result.distances) if result.distances else []
    if perceptual := result.lpips:
        lines.append(
            f"  LPIPS           {perceptual.reconstruction:.4f} "
            f"+- {_number(perceptual.reconstruction_error, digits=4)} of {perceptual.images} "
            f"reconstructions, {perceptual.generation:.4f} "
            f"+- {_number(perceptual.generation_error, digits=4)} of {perceptual.samples} "
            f"samples to the nearest image ({perceptual.weights})"
        )
    if result.bits_per_dim is not None:
        lines.append(f"  bits per dim <= {result.bits_per_dim:12.4f}")
    if bracket := result.bracket:
        lines.append(
            f"{bracket.images} images drawn from the model: log p(x) from "
            f"{bracket.lower:.3f} to {bracket.upper:.3f}, {bracket.width:.3f} "
            f"+- {_number(bracket.width_error)} wide"
        )
    lines += _comparison(found.comparison) if found.comparison else []
    if found.figures:
        lines.append(
            f"{counted(len(found.figures), 'picture')}, all beside the first: {found.figures[0]}"
        )
    return lines


def _distances(found: "SetDistances") -> list[str]:
    """Reconstruction and generation apart, with what they are measured over.

    A kernel distance without an error says nothing, and is left out.
    """
    told = ""
    if found.is_short:
        told = f" (far too high: too few images for its {found.dimensions:,} features)"
    lines = [
        f"  Fréchet distance to {found.images} images over {found.features}: "
        f"{found.reconstruction:.4g} of as many reconstructions, {found.generation:.4g} of "
        f"{found.samples} samples{told}",
    ]
    both = found.reconstruction_kernel, found.generation_kernel
    errors = found.reconstruction_kernel_error, found.generation_kernel_error
    if all(map(math.isfinite, errors)):
        why = " (below 0 by chance alone, for its estimate is unbiased)" if min(both) < 0 else ""
        lines.append(
            f"  kernel distance: {both[0]:.3g} +- {_number(errors[0])} and "
            f"{both[1]:.3g} +- {_number(errors[1])}{why}"
        )
    return lines


def _which(few: int, images: int) -> str:
    return "all images" if few == images else f"the first {few:,} images"


def _comparison(found: "Comparison") -> list[str]:
    """The paired differences, a line for each model."""
    lines = [f"minus {found.reference}, mean over the images [95% interval]:"]
    for name, terms in found.differences.items():
        same = " (the same weights)" if name in found.same_weights else ""
        parts = [
            f"{title} {_number(term.mean, '+')} "
            f"[{_number(term.low, '+')}, {_number(term.high, '+')}]"
            for title, term in (("ELBO", terms["elbo"]), ("PSNR", terms["psnr_mean"]))
        ]
        lines.append(f"  {name}{same}: {', '.join(parts)}")
    return lines


def _number(value: float, sign: str = "", digits: int = 3) -> str:
    """A single image has no error, and no interval."""
    return format(value, f"{sign}.{digits}f") if math.isfinite(value) else "unknown"


if __name__ == "__main__":
    run_job(EvaluateConfig, main)
