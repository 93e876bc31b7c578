"""What annealing wins over importance sampling in the same time, on given held-out images.

    python -m tests.benchmarks.bounds [--photos ../shared/data/photos] [--images 32]

For each model the better bound of `jobs.evaluate` (q optimised for each image, then annealed) is
timed; importance sampling with the encoder's q (IWAE_K, Burda et al. 2015) gets as many draws as
fit into the same seconds. Both score the same dequantised or binarised images and are lower bounds,
so that the higher one is the better: `gain` is the mean of their paired differences in nats.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.config import ModelConfig, ObjectiveConfig, PreprocessConfig
from pipeline.evaluation.amortisation import optimise_posterior
from pipeline.evaluation.annealing import Schedule, anneal
from pipeline.evaluation.sums import seen_images
from pipeline.vae import VAE, build_vae, draw_noise, importance_estimate, objective_loss
from tests.support.digit_models import TRAINED_ON, digits_vae, images

_FIRST_DRAWS = 64


def main() -> None:
    """Prints one JSON line for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, help="Folder of JPEGs, for a model of 64 pixels.")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300, help="Of the photos' model.")
    arguments = parser.parse_args()
    held = images()[0][TRAINED_ON : TRAINED_ON + arguments.images]
    for likelihood in ("gaussian", "bernoulli", "logistic"):
        told = compare(digits_vae(likelihood), held)
        print(json.dumps({"model": f"digits, {likelihood}, 8 latents", **told}), flush=True)
    if arguments.photos is not None:
        vae, held = photos(arguments.photos, arguments.steps, arguments.images)
        told = compare(vae, held)
        name = f"photos of 64 pixels, conv, 32 latents, {arguments.steps} steps"
        print(json.dumps({"model": name, **told}), flush=True)


def compare(vae: VAE, pixels: torch.Tensor) -> dict[str, float]:
    """Seconds and means of both lower bounds on log p(x), in nats."""
    slots = range(len(pixels))
    noise = draw_noise(vae, 0, 0, slots)
    started = time.perf_counter()
    with torch.no_grad():
        target = vae.likelihood.target(pixels, noise.pixels)
        start = vae.encode(seen_images(vae, pixels, noise))
    found = optimise_posterior(vae, start, target, 0, 200)
    annealed = anneal(vae, found.posterior, target, 0, Schedule())
    seconds = time.perf_counter() - started
    draws, taken = _FIRST_DRAWS, 0.0
    while True:
        began = time.perf_counter()
        estimate = importance_estimate(vae, pixels, draws, 0)
        taken = time.perf_counter() - began
        if taken > 0.8 * seconds:
            break
        # Not all at once: the first calls warm up, and would promise too few.
        draws = math.ceil(draws * min(8.0, max(1.3, seconds / taken)))
    gain = annealed.lower - estimate.bound
    return {
        "images": len(pixels),
        "elbo": float(estimate.mean_log_weight.mean()),
        "iwae": float(estimate.bound.mean()),
        "iwae_draws": draws,
        "iwae_seconds": round(taken, 1),
        "iwae_effective": float(estimate.effective_samples.mean()),
        "annealed": float(annealed.lower.mean()),
        "annealed_seconds": round(seconds, 1),
        "gain": float(gain.mean()),
        "gain_error": float(gain.std()) / math.sqrt(len(gain)),
    }


def photos(folder: Path, steps: int, count: int) -> tuple[VAE, torch.Tensor]:
    """The default model of 64 pixels after a few steps, and images that it has not seen."""
    pixels = torch.stack([_square(path) for path in sorted(folder.rglob("*.jp*g"))])
    train, held = pixels[count:], pixels[:count]
    torch.manual_seed(0)
    vae = build_vae(ModelConfig(kind="conv"), PreprocessConfig(image_size=64))
    vae.start_at(train.double().mean(0).float() / 255)
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3)
    order = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        chosen = torch.randint(len(train), (32,), generator=order)
        terms = vae(train[chosen], draw_noise(vae, 0, step, range(32)))
        loss = objective_loss(ObjectiveConfig(), terms, step).loss_per_image.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vae.eval(), held


def _square(path: Path) -> torch.Tensor:
    image = Image.open(path).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cut = image.resize((64, 64), box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1)


if __name__ == "__main__":
    main()
