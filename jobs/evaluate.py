"""Measure a model on held-out images: exact numbers with intervals, and pictures."""

import math
from typing import TYPE_CHECKING

from jobs.command import Outcome, run_job
from pipeline.config import EvaluateConfig
from pipeline.counted import counted

if TYPE_CHECKING:
    from pipeline.commands.evaluate import Evaluation
    from pipeline.evaluation.comparison import Comparison
    from pipeline.evaluation.distances import SetDistances


def main(config: EvaluateConfig) -> Outcome:
    """Measures, writes report and pictures where asked, and prints a summary."""
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
    """Reconstruction and generation apart, with what they are measured over."""
    told = ""
    if found.is_short:
        told = f" (far too high: fewer images than its {found.dimensions:,} features)"
    return [
        f"  Fréchet distance to {found.images} images over {found.features}: "
        f"{found.reconstruction:.4g} of as many reconstructions, {found.generation:.4g} of "
        f"{found.samples} samples{told}",
        f"  kernel distance: {found.reconstruction_kernel:.3g} "
        f"+- {_number(found.reconstruction_kernel_error)} and "
        f"{found.generation_kernel:.3g} +- {_number(found.generation_kernel_error)}{_why(found)}",
    ]


def _why(found: "SetDistances") -> str:
    """What of a kernel distance surprises: a distance below 0, an error that nobody knows."""
    both = found.reconstruction_kernel, found.generation_kernel
    errors = found.reconstruction_kernel_error, found.generation_kernel_error
    told = ["below 0 by chance alone, for its estimate is unbiased"] if min(both) < 0 else []
    if not all(map(math.isfinite, errors)):
        told.append("too few images for an error")
    return f" ({'; '.join(told)})" if told else ""


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
