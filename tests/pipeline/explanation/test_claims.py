"""Every sentence of `jobs.explain` on three runs: its claim holds when it is computed otherwise."""

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import ModelConfig, ObjectiveConfig, PreprocessConfig
from pipeline.data import Batch
from pipeline.evaluation.findings import FindingOptions, find, mean_and_error, surgery
from pipeline.evaluation.numbers import TrainingMeans
from pipeline.evaluation.rows import MeasureOptions, measure
from pipeline.explanation.page import Known, explain
from pipeline.explanation.sentences import Check, Part
from pipeline.vae import VAE, Optimised, build_vae, draw_noise, objective_loss
from tests.support.claims import CLAIMS, World
from tests.support.digit_models import TRAINED_ON, digits_vae, images, sigma_of
from tests.support.health_claims import HEALTH_CLAIMS
from tests.support.warm import ROOT

PHOTOS = ROOT.parent / "shared/data/photos"
HELD_OUT, BATCH = 120, 40
ALL_CLAIMS = CLAIMS | HEALTH_CLAIMS


def batches(pixels: torch.Tensor, labels: list[str]) -> Iterator[Batch]:
    for index, start in enumerate(range(0, len(pixels), BATCH)):
        part = slice(start, start + BATCH)
        count = len(pixels[part])
        yield Batch(
            images=pixels[part], keys=[str(start + i) for i in range(count)],
            valid=torch.ones(count, dtype=torch.bool), columns={"label": labels[part]},
            epoch=0, index=index, slots=range(count),
        )  # fmt: skip


def explained(
    vae: VAE, train: torch.Tensor, held: torch.Tensor, labels: list[str], beta: float
) -> tuple[World, list[Part]]:
    """A model's report and its explanation, as `jobs.explain` makes them for a run."""
    measured = measure(vae, batches(held, labels), MeasureOptions(16, 0, BATCH, 1000))
    numbers = find(vae, measured, held, FindingOptions(0, 16, 12)).numbers
    known = measure(vae, batches(train, [""] * len(train)), MeasureOptions(1, 0, BATCH, 2000))
    elbo, error = mean_and_error(known.column("elbo"))
    means, spread = torch.from_numpy(known.means), torch.from_numpy(known.log_variances)
    numbers = replace(
        numbers,
        training=TrainingMeans(len(train), elbo, error),
        surgery=surgery(vae, means, spread, 0, "training"),
    )
    objective = {"kind": "beta", "beta": beta}
    said = Known(Optimised("beta", beta, 1), sigma_of(vae).item(), has_way=True)
    return World(vae, held, labels, numbers, train, objective), explain(numbers, said)


def digits(beta: float) -> tuple[World, list[Part]]:
    pixels, labels = images()
    held = slice(TRAINED_ON, TRAINED_ON + HELD_OUT)
    vae = digits_vae(latents=2, beta=beta)
    return explained(vae, pixels[TRAINED_ON - 400 : TRAINED_ON], pixels[held], labels[held], beta)


def photos() -> tuple[World, list[Part]]:
    """300 photos at 16 pixels, and a model of 240 of them."""
    if not PHOTOS.is_dir():
        pytest.skip("needs ../shared/data/photos")
    paths = sorted(path for path in PHOTOS.rglob("*.jp*g"))[:300]
    pixels = torch.stack(
        [
            torch.from_numpy(np.array(Image.open(p).convert("RGB").resize((16, 16)))).permute(
                2, 0, 1
            )
            for p in paths
        ]
    )
    train, held = pixels[60:], pixels[:60]
    torch.manual_seed(0)
    config = ModelConfig(kind="mlp", latent_channels=2, width=64)
    vae = build_vae(config, PreprocessConfig(image_size=16))
    optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
    for step in range(1, 151):
        chosen = torch.randint(0, len(train), (64,))
        terms = vae(train[chosen], draw_noise(vae, 0, step, range(64)))
        loss = objective_loss(ObjectiveConfig(), terms, step).loss_per_image.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    labels = [path.parent.name for path in paths[:60]]
    return explained(vae.eval(), train, held, labels, 1.0)


RUNS = {"digits": lambda: digits(1.0), "collapsed": lambda: digits(500.0), "photos": photos}


def test_every_check_has_a_function_that_holds_it() -> None:
    assert set(ALL_CLAIMS) == set(Check) - {Check.DEFINITION}


@pytest.mark.parametrize("run", RUNS)
def test_every_claim_of_the_page_holds_by_other_means(run: str) -> None:
    world, parts = RUNS[run]()
    wrong = []
    for part in parts:
        for sentence in part.sentences:
            if sentence.check is Check.DEFINITION:
                continue
            told = re.findall(r"\d+\.\d+", sentence.text)
            own = [abs(value) for value in sentence.figures.values()]
            for number in told:
                digits = len(number.split(".")[1])
                stands = any(abs(float(number) - v) <= 0.51 * 10**-digits for v in own)
                if not stands and number not in ("0.01", "0.5"):
                    wrong.append(f"{part.name}: {number} is no figure of its sentence")
            try:
                ALL_CLAIMS[sentence.check](world, sentence.figures, sentence.text)
            except AssertionError as error:
                wrong.append(f"{part.name}: {sentence.check}: {error}")
    assert wrong == []
    names = {part.name for part in parts}
    assert {"training", "bayes", "pull", "similar", "weight", "samples"} <= names


def test_the_collapsed_run_is_not_told_of_classes_nor_of_codes_that_mean_something() -> None:
    _, parts = digits(500.0)
    text = " ".join(part.text for part in parts)
    assert "labels do not group here" in text
    assert "near codes say nothing of their images" in text
    assert "labels group, though" not in text


def tinted() -> tuple[World, list[Part]]:
    """13 held-out images of three tints, 8, 2 and 3 of them: what 5% of 260 may be."""
    pixels, _ = images()
    labels = ["red"] * 8 + ["green"] * 2 + ["blue"] * 3
    held = pixels[TRAINED_ON : TRAINED_ON + 13].clone()
    for index, label in enumerate(labels):
        held[index] = (held[index] // 16) + {"red": 0, "green": 110, "blue": 230}[label]
    vae = digits_vae(latents=2)
    return explained(vae, pixels[TRAINED_ON - 400 : TRAINED_ON], held, labels, 1.0)


def test_of_few_images_neither_groups_nor_their_absence_are_told_without_power() -> None:
    world, parts = tinted()
    text = " ".join(part.text for part in parts)
    assert "of the image with the nearest code" in text
    assert "labels do not group here" not in text
    assert world.numbers.neighbours is not None
    random = replace(world.numbers.neighbours, agreement=world.numbers.neighbours.shuffled)
    parts = explain(replace(world.numbers, neighbours=random), Known(None, None, has_way=False))
    assert "13 images are too few to tell whether labels group" in " ".join(p.text for p in parts)
    assert world.numbers.similarity is not None
    unsure = replace(world.numbers.similarity, nearest=0.3, any=0.3, error=0.1)
    parts = explain(replace(world.numbers, similarity=unsure), Known(None, None, has_way=False))
    text = " ".join(part.text for part in parts)
    assert "so few images can't tell whether near codes are of similar ones" in text
    assert "samples are" not in text
    assert "so few images are too few to compare by it" in text
