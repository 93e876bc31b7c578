"""All pictures of one evaluation, by name."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.findings import Findings
from pipeline.evaluation.quadrature import windows
from pipeline.evaluation.rows import Measured
from pipeline.evaluation.sums import evaluating, seen_images
from pipeline.evaluation.walks import decode_walks, principal_axes
from pipeline.figures.canvas import label_names, to_png
from pipeline.figures.images import (
    draw_interpolations,
    draw_reconstructions,
    draw_samples,
    draw_traversals,
)
from pipeline.figures.latents import (
    draw_aggregated_posterior,
    draw_kl_per_dimension,
    draw_latent_means,
    draw_posteriors,
)
from pipeline.vae import VAE, draw_noise

_RECONSTRUCTED, _SAMPLES, _WALKS, _DIRECTIONS, _POSTERIORS = 20, 60, 6, 8, 16
"""Images, rows or panels of a picture: what a page holds at a size that shows something."""
_AXES_OF = 500
"""First images whose latent means give the axes."""
_TRAVERSAL = (-3.0, -2.25, -1.5, -0.75, 0.0, 0.75, 1.5, 2.25, 3.0)


def draw_evaluation(
    vae: VAE, measured: Measured, findings: Findings, first: Tensor, seed: int
) -> Iterator[tuple[str, bytes]]:
    """(file name, PNG) of each picture; `first` are the hold-out's first uint8 images."""
    with torch.no_grad(), evaluating(vae):
        yield "reconstructions.png", _reconstructions(vae, findings, first, seed)
        noise = draw_noise(vae, seed, -5, range(_SAMPLES)).posterior
        yield "samples.png", to_png(draw_samples, vae.decode(noise))
        if findings.mixture is not None:
            yield "samples_mixture.png", _mixture_samples(vae, findings, seed)
        latents = vae.latent.unflattened(torch.from_numpy(measured.means))
        walks = min(_WALKS, len(latents) // 2, len(first) // 2)
        if walks:
            yield "interpolations.png", _interpolations(vae, findings, latents, first, walks)
        yield "traversals.png", _traversals(vae, latents)
        note = ""
        if neighbours := findings.numbers.neighbours:
            whose = (
                f"of most of their {neighbours.neighbours} nearest"
                if neighbours.neighbours > 1
                else "of their nearest"
            )
            note = (
                f"{neighbours.agreement:.1%} of {neighbours.images:,} images have the label "
                f"{whose} (labels shuffled: {neighbours.shuffled:.1%}); no label was ever seen"
            )
        yield (
            "latent_means.png",
            to_png(
                draw_latent_means,
                measured.means,
                labels=label_names(measured.labels or [None]),
                note=note,
            ),
        )
        if vae.latent.dimensions == 2:
            yield "posteriors.png", _posteriors(vae, findings, first, seed)
        yield "aggregated_posterior.png", _aggregated(findings, measured)
        yield (
            "kl_per_dimension.png",
            to_png(draw_kl_per_dimension, findings.kl_per_dimension, activity=findings.activity),
        )


def _reconstructions(vae: VAE, findings: Findings, first: Tensor, seed: int) -> bytes:
    images = first[:_RECONSTRUCTED]
    noise = draw_noise(vae, seed, 0, range(len(images)))
    seen = seen_images(vae, images, noise)
    posterior = vae.encode(seen)
    rows = {
        "at the mean": vae.decode(posterior.mean),
        "at one draw": vae.decode(posterior.sample(noise.posterior)),
    }
    psnr = findings.numbers.reconstruction.psnr_mean
    note = f"all {findings.numbers.images:,} measured images: {psnr:.2f} dB at the mean"
    return to_png(draw_reconstructions, seen, rows, note=note)


def _mixture_samples(vae: VAE, findings: Findings, seed: int) -> bytes:
    gain = findings.numbers.mixture
    assert findings.mixture is not None and gain is not None, "they come together"  # noqa: PT018
    generator = torch.Generator().manual_seed(seed)
    draws = vae.latent.unflattened(findings.mixture.sample(_SAMPLES, generator).float())
    return to_png(
        draw_samples,
        vae.decode(draws),
        headline=f"{_SAMPLES} samples from a mixture fitted to the latents",
        note=f"z from {len(findings.mixture.means)} Gaussians fitted after training, which "
        f"describe unseen codes {gain.gain:+.1f} nats better than the prior",
    )


def _interpolations(
    vae: VAE, findings: Findings, latents: Tensor, first: Tensor, walks: int
) -> bytes:
    paths = decode_walks(vae, latents[:walks], latents[walks : 2 * walks], 9)
    path = findings.numbers.interpolation
    assert path is not None, "there are pairs to walk between"
    note = (
        f"between two images pixels change by {path.length:.3f} on the way, by {path.direct:.3f} "
        "straight (root mean square)\n"
        f"in half as long steps the largest is {path.jump_ratio:.0%} as large (50%: smooth)"
    )
    ends = (first[:walks], first[walks : 2 * walks])
    return to_png(draw_interpolations, paths, ends=ends, note=note)


def _traversals(vae: VAE, latents: Tensor) -> bytes:
    """Along principal axes: one of a hundred dimensions alone hardly changes an image."""
    found = principal_axes(latents[:_AXES_OF], _DIRECTIONS)
    steps = torch.tensor(_TRAVERSAL, dtype=torch.float64)
    moves = steps[None, :, None] * (found.deviations[:, None] * found.axes)[:, None]
    walks = (latents[:1].double().flatten(1) + moves).to(latents.dtype)
    images = vae.decode(vae.latent.unflattened(walks.flatten(0, 1)))
    names = [f"axis {n}  {share:.0%}" for n, share in enumerate(found.share.tolist(), 1)]
    return to_png(
        draw_traversals,
        images.view(len(names), len(_TRAVERSAL), *vae.image_shape),
        _TRAVERSAL,
        names,
        note="the first image's latent mean moves along each principal axis of all images' means,\n"
        "by so many of its deviations; beside each axis stands its share of their variance",
    )


def _posteriors(vae: VAE, findings: Findings, first: Tensor, seed: int) -> bytes:
    images = first[:_POSTERIORS]
    noise = draw_noise(vae, seed, 0, range(len(images)))
    exact = findings.numbers.quadrature
    assert exact is not None, "z has two dimensions"
    note = (
        "shaded: exact, by quadrature;  red: q at 1 and 2 of its deviations\n"
        f"KL(q || p(z|x)) {exact.kl_q_posterior:.3f} nats, the other way round "
        f"{exact.kl_posterior_q:.3f}, means of {exact.images} images"
    )
    seen = seen_images(vae, images, noise)
    return to_png(draw_posteriors, seen, windows(vae, images, noise), note=note)


def _aggregated(findings: Findings, measured: Measured) -> bytes:
    surgery = findings.numbers.surgery
    note = "blue: q(z), the average of q(z|x);  dashed: the prior N(0, 1)"
    if surgery is not None:
        least, most = ("≥ ", "≤ ") if surgery.is_at_cap else ("", "")
        note += (
            f"\nof {surgery.images:,} {surgery.of} images: marginal KL {most}"
            f"{surgery.marginal_kl:.2f} nats over all dimensions, mutual information {least}"
            f"{surgery.mutual_information:.2f} (can't show more than log N = {surgery.cap:.2f})"
        )
    order = np.argsort(-findings.kl_per_dimension, kind="stable")[:8]
    return to_png(
        draw_aggregated_posterior,
        measured.means,
        measured.log_variances,
        dimensions=order,
        note=note,
    )
