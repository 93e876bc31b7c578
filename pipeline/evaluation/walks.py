"""Ways through latent space: straight walks and how evenly images move along them, directions
between labels, and principal axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.masking import shell_word
from pipeline.nearest import nearest
from pipeline.vae import VAE


@dataclass(frozen=True)
class PathLengths:
    """Means over `pairs` walks, in root-mean-square pixel difference (images in [0, 1]).

    `length` is the decoded path's, `direct` the distance of its ends: their ratio is 1 for a mere
    cross-fade. `jump` is the largest single step; `jump_ratio` is what is left of it when the walk
    takes twice as many steps: 0.5 for a smooth decoder, 1 where the image jumps.
    """

    pairs: int
    steps: int
    length: float
    direct: float
    jump: float
    jump_ratio: float


def walk(starts: Tensor, goals: Tensor, steps: int) -> Tensor:
    """Straight walks from `[P, ...]` to `[P, ...]` with `steps` points each: `[P, steps, ...]`."""
    shares = torch.linspace(0, 1, steps, device=starts.device, dtype=starts.dtype)
    shares = shares.view(1, steps, *[1] * (starts.dim() - 1))
    return torch.lerp(starts[:, None], goals[:, None], shares)


def decode_walks(vae: VAE, starts: Tensor, goals: Tensor, steps: int) -> Tensor:
    """The decoder's mean images along walks between latents `[P, Z, h, w]`: `[P, S, C, H, W]`."""
    with torch.no_grad():
        latents = walk(starts, goals, steps)
        images = vae.decode(latents.flatten(0, 1))
        return images.view(*latents.shape[:2], *vae.image_shape)


def path_lengths(vae: VAE, starts: Tensor, goals: Tensor, steps: int = 33) -> PathLengths:
    """The numbers for walks between latents `[P, Z, h, w]` of `steps` points, an odd number."""
    pairs = [
        _step_lengths(vae, starts[i : i + 1], goals[i : i + 1], steps) for i in range(len(starts))
    ]
    fine = torch.stack([lengths for lengths, _, _ in pairs])
    coarse = torch.stack([lengths for _, lengths, _ in pairs])
    direct = torch.stack([distance for _, _, distance in pairs])
    jump = float(fine.max(dim=1).values.mean())
    return PathLengths(
        pairs=len(pairs),
        steps=steps - 1,
        length=float(fine.sum(dim=1).mean()),
        direct=float(direct.mean()),
        jump=jump,
        jump_ratio=jump / max(float(coarse.max(dim=1).values.mean()), 1e-12),
    )


def _step_lengths(
    vae: VAE, start: Tensor, goal: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths of all steps, of every second point's steps, and between the ends, for one walk."""
    images = decode_walks(vae, start, goal, steps)[0].double().flatten(1)
    fine = (images[1:] - images[:-1]).square().mean(dim=1).sqrt()
    every_second = images[::2]
    coarse = (every_second[1:] - every_second[:-1]).square().mean(dim=1).sqrt()
    return fine, coarse, (images[-1] - images[0]).square().mean().sqrt()


@dataclass(frozen=True)
class PrincipalAxes:
    """The axes `[A, D]` of largest variance of latent means, unit vectors, with deviations `[A]`.

    `share` is the part of the whole variance that each explains.
    """

    axes: Tensor
    deviations: Tensor
    share: Tensor


def label_direction(means: Tensor, labels: Sequence[str], start: str, goal: str) -> Tensor:
    """The mean latent of label `goal` minus that of `start`: `[N, ...]` to `[...]`, float64.

    Added to an image's latent, it exchanges what the two labels differ in on average.
    """
    known = sorted(set(labels))
    if missing := [name for name in (start, goal) if name not in known]:
        meant = [[name, *nearest(name, known, cutoff=0.4)][-1] for name in (start, goal)]
        raise ConfigError(
            f"label {missing[0]!r} is not in the dataset, which has {', '.join(known[:20])}. "
            f"Name two of these, as `--edit {' '.join(map(shell_word, meant))}`."
        )
    places = torch.tensor([known.index(label) for label in labels], device=means.device)
    points = means.double()
    averages = [points[places == known.index(name)].mean(dim=0) for name in (start, goal)]
    return averages[1] - averages[0]


def principal_axes(means: Tensor, count: int) -> PrincipalAxes:
    """The `count` principal axes of latent means `[N, ...]`, flattened to `[N, D]`, float64.

    A sign is fixed (the entry of largest size is positive), so that equal data give equal axes.
    """
    points = means.double().flatten(1)
    centred = points - points.mean(dim=0)
    _, singular, vectors = torch.linalg.svd(centred, full_matrices=False)
    axes, singular = vectors[:count], singular[:count]
    largest = axes.abs().argmax(dim=1, keepdim=True)
    axes = axes * axes.gather(1, largest).sign()
    variance = singular.square() / len(points)
    total = centred.square().sum() / len(points)
    return PrincipalAxes(axes, variance.sqrt(), variance / total.clamp(min=1e-300))
