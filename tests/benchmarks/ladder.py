"""A ladder from what is known exactly to what papers publish: one command for each row.

    python -m tests.benchmarks.ladder ppca
    python -m tests.benchmarks.ladder digits-logistic
    python -m tests.benchmarks.ladder mnist-k5 --mnist ../shared/data/mnist
    python -m tests.benchmarks.ladder --table

Each epoch of MNIST is kept: the same command goes on where it was stopped. Each row is kept in
WORK/ROW.json with its date; `--table` prints those that are there as Markdown.
Means stand with one standard error over images. Rows are compared only where their measure is one:
nats of the binarised image (MNIST), bits of the 256 levels (digits; 17 levels of them are used, so
that no paper's number stands beside).
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from pipeline.evaluation.evidence import bracket_evidence
from pipeline.evaluation.quadrature import integrate
from pipeline.vae import VAE, draw_noise, importance_estimate
from tests.benchmarks import iwae_table
from tests.support.digit_models import TRAINED_ON, digits_vae, images
from tests.support.ppca import data, exact_noise, optimum, terms_of

PUBLISHED = {"mnist-k1": 86.76, "mnist-k5": 85.54, "mnist-k50": 84.78}
"""Burda et al. 2015, table 1, one stochastic layer, after 3,280 epochs: NLL in nats."""

LIKELIHOODS = (
    "bernoulli", "continuous_bernoulli", "gaussian", "gaussian_fixed", "gaussian_per_pixel",
    "laplace", "logistic", "logistic_mixture",
)  # fmt: skip
_DIGIT_STEPS = 2000
_INTEGRATED = 300
"""Test images of the row by quadrature, half a second each."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table; `what` says of what the value is a mean, and which bound it is."""

    row: str
    what: str
    unit: str
    value: float
    error: float
    epochs: float
    seconds: float
    published: float | None = None
    exact: float | None = None
    bracket: float | None = None
    date: str = dataclasses.field(default_factory=lambda: datetime.now(UTC).date().isoformat())


def ppca(arguments: argparse.Namespace) -> Row:
    """A linear VAE at its optimum: the ELBO, without a draw's noise, is the exact log p(x)."""
    started = time.perf_counter()
    model, positions = optimum("diagonal"), data()
    terms = terms_of(model.vae, positions, exact_noise(len(positions), 5))
    exact = model.log_prob(positions)
    elbo = terms.elbo.detach()
    return Row(
        "ppca", "ELBO <= log p(x)", "nats", float(elbo.mean()), _error(elbo), 0,
        time.perf_counter() - started, exact=float(exact.mean()),
        bracket=bracket_evidence(model.vae, 64, 0).width,
    )  # fmt: skip


def digits(likelihood: str, arguments: argparse.Namespace) -> Row:
    """scikit-learn's digits, 8 latent dimensions: -ELBO in bits per pixel, or nats if binarised."""
    started = time.perf_counter()
    vae = digits_vae(likelihood, steps=arguments.steps)
    trained = time.perf_counter() - started
    pixels = images()[0][TRAINED_ON:]
    estimate = importance_estimate(vae, pixels, 1000, 1)
    binary = likelihood == "bernoulli"
    scale = 1.0 if binary else 64 * math.log(2)
    values = -estimate.bound / scale
    epochs = 128 * arguments.steps / TRAINED_ON
    return Row(
        f"digits-{likelihood}", "-log p(x) <=, 1,000 importance samples",
        "nats, binarised" if binary else "bits/dim", float(values.mean()), _error(values),
        epochs, trained, bracket=bracket_evidence(vae, 100, 0).width / scale,
    )  # fmt: skip


def mnist(samples: int, latents: int, name: str, arguments: argparse.Namespace) -> Row:
    """MNIST with dynamic binarisation: the NLL by 5,000 importance samples, or by quadrature."""
    train, test = (
        iwae_table.write_dataset(arguments.mnist, file, arguments.work / f"{part}-{count}", count)
        for file, part, count in (
            ("train-images-idx3-ubyte.gz", "train", arguments.train_images),
            ("t10k-images-idx3-ubyte.gz", "test", arguments.test_images),
        )
    )
    schedule = iwae_table.Schedule(arguments.epochs, full=False)
    kept = arguments.work / f"{name}-{len(train)}-{arguments.epochs}.pt"
    trained = iwae_table.train(train, samples, schedule, seed=0, kept=kept, latents=latents)
    vae = trained.vae
    pixels = iwae_table.read(test)
    if latents <= 2:
        pixels = pixels[:_INTEGRATED]
        noise = draw_noise(vae, 1, 0, range(len(pixels)))
        nll = -integrate(vae, pixels, noise).log_evidence
        what = "-log p(x), quadrature"
    else:
        nll = _by_weights(vae, pixels)
        what = "-log p(x) <=, 5,000 importance samples"
    return Row(
        name, what, "nats, binarised", float(nll.mean()), _error(nll), arguments.epochs,
        trained.seconds, published=PUBLISHED.get(name), bracket=bracket_evidence(vae, 100, 0).width,
    )  # fmt: skip


ROWS: dict[str, Callable[[argparse.Namespace], Row]] = {
    "ppca": ppca,
    **{f"digits-{name}": partial(digits, name) for name in LIKELIHOODS},
    "mnist-2d": lambda arguments: mnist(1, 2, "mnist-2d", arguments),
    "mnist-10d": lambda arguments: mnist(1, 10, "mnist-10d", arguments),
    "mnist-k1": lambda arguments: mnist(1, 50, "mnist-k1", arguments),
    "mnist-k5": lambda arguments: mnist(5, 50, "mnist-k5", arguments),
    "mnist-k50": lambda arguments: mnist(50, 50, "mnist-k50", arguments),
}


def table(rows: list[Row]) -> str:
    """As Markdown, in the ladder's order."""
    order = {name: place for place, name in enumerate(ROWS)}
    lines = [
        "| row | value | unit | of | exact | bracket's width | published | epochs | s | date |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: order[row.row]):
        known = [row.exact, row.bracket, row.published]
        exact, bracket, published = ("" if v is None else f"{v:.4g}" for v in known)
        lines.append(
            f"| {row.row} | {row.value:.4f} ± {row.error:.4f} | {row.unit} | {row.what} | {exact} "
            f"| {bracket} | {published} | {row.epochs:.0f} | {row.seconds:.0f} | {row.date} |"
        )
    return "\n".join(lines)


def _by_weights(vae: VAE, pixels: torch.Tensor) -> torch.Tensor:
    parts = [
        importance_estimate(vae, pixels[start : start + 50], 5000, 1, slots=slots, chunk=100).bound
        for start in range(0, len(pixels), 50)
        for slots in [range(start, min(start + 50, len(pixels)))]
    ]
    return -torch.cat(parts)


def _error(values: torch.Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))


def main(words: list[str] | None = None) -> dict[str, object]:
    """Prints the row as one JSON line, or the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", nargs="?", choices=list(ROWS))
    parser.add_argument("--table", action="store_true", help="Print the rows that are there.")
    parser.add_argument("--work", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--mnist", type=Path, help="Folder of the four IDX files.")
    parser.add_argument("--epochs", type=int, default=28)
    parser.add_argument("--steps", type=int, default=_DIGIT_STEPS, help="Of the digits' rows.")
    parser.add_argument("--train-images", type=int, default=60_000)
    parser.add_argument("--test-images", type=int, default=1000)
    arguments = parser.parse_args(words)
    if arguments.row is None or (arguments.row.startswith("mnist") and arguments.mnist is None):
        if not arguments.table:
            parser.error("name a row, with --mnist for those of MNIST, or give --table")
    else:
        arguments.work.mkdir(parents=True, exist_ok=True)
        found = dataclasses.asdict(ROWS[arguments.row](arguments))
        (arguments.work / f"{arguments.row}.json").write_text(json.dumps(found))
        print(json.dumps(found))
    rows = [Row(**json.loads(path.read_text())) for path in sorted(arguments.work.glob("*.json"))]
    if arguments.table:
        print(table(rows))
    return {row.row: dataclasses.asdict(row) for row in rows}


if __name__ == "__main__":
    main()
