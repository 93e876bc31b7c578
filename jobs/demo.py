"""The whole way, from images to a registered VAE and a verified latent store."""

import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, TypeVar, cast

from jobs.command import Outcome, run_job, validate
from pipeline.config import (
    DemoConfig,
    EncodeConfig,
    EvaluateConfig,
    PackConfig,
    TrainConfig,
    VerifyConfig,
)
from pipeline.json_value import Json
from pipeline.recipe import merge, read_recipe

HOLDOUT = 0.1
"""Of the images: some 180 digits, enough for an ELBO with an error."""
WORKERS = 2
"""Ray Train workers and encoding actors: the fewest that work together."""
LATE_IMAGES = 60
"""Digits that are held back at first, and appended at the end."""

logger = logging.getLogger("demo")


class Packed(TypedDict):
    """What is read of a pack's result."""

    samples: int


class Trained(TypedDict):
    """What is read of a training's."""

    run: str
    model: str
    model_version: int
    elbo: float
    holdout_before: dict[str, float]
    holdout_after: dict[str, float]


class Gap(TypedDict):
    """How the posterior gap was found."""

    images: int
    how: str


class Evaluated(TypedDict):
    """What is read of an evaluation's."""

    images: int
    posterior_gap: float
    gap: Gap
    figures: list[str]


class Encoded(TypedDict):
    """What is read of an encoding's."""

    samples: int
    images_per_second: float


class Verified(TypedDict):
    """What is read of a verification's."""

    ok: bool


class Demonstrated(TypedDict):
    """The demo's own."""

    model: str
    store: str
    samples: int
    elbo: float
    figures: list[str]
    verified: bool
    appended: int
    images_per_second: float
    seconds: dict[str, float]


Result = TypeVar("Result")


@dataclass
class Stages:
    """Runs the stages, says where it is, and keeps how long each took."""

    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, work: Callable[[], Outcome], kind: type[Result]) -> Result:
        """One stage's result, read as any script reads it.

        A job that ends past its budget still counts as done here, and says so.
        """
        print(f"\n== {name} ==", file=sys.stderr)
        started = time.perf_counter()
        outcome = work()
        self.seconds[name] = round(time.perf_counter() - started, 1)
        if outcome.exit_code:
            logger.warning("%s: some inputs were refused: %s", name, json.dumps(outcome.result))
        return cast(Result, outcome.result)


def main(config: DemoConfig) -> Outcome:
    """Packs, trains, evaluates, encodes, appends, encodes the rest, verifies and draws."""
    from jobs import encode, evaluate, pack, train, verify
    from pipeline.cluster.ray_cluster import ray_cluster

    kind = "digits" if config.images is None else named_after(Path(config.images))
    folder = new_folder(Path("runs/demo").absolute(), kind)
    dataset, store = str(folder / "dataset"), str(folder / "latents")
    stages = Stages()

    images, late = prepare(config, folder)
    packing = PackConfig(source=(str(images),), output=dataset, holdout=HOLDOUT)
    packed = stages.run("pack", lambda: pack.main(packing), Packed)
    training = train_config(config, folder, dataset)
    cluster: AbstractContextManager[None] = ray_cluster(WORKERS)
    with cluster:
        trained = stages.run("train", lambda: train.main(training), Trained)
        model = f"models:/{folder.name}/{trained['model_version']}"
        evaluating = EvaluateConfig(
            bound_images=16,
            model=trained["run"], data=f"{dataset}/holdout", output=str(folder / "figures"),
        )  # fmt: skip
        evaluated = stages.run("evaluate", lambda: evaluate.main(evaluating), Evaluated)
        encoding = EncodeConfig(
            model=model, data=f"{dataset}/train", output=store, actors=WORKERS,
            columns=label_column(f"{dataset}/train"),
        )  # fmt: skip
        encoded = stages.run("encode", lambda: encode.main(encoding), Encoded)
        if late:
            for source, target in late.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        appending = packing.model_copy(update={"append": True})
        appended = stages.run("append", lambda: pack.main(appending), Packed)
        increment = stages.run("encode what is new", lambda: encode.main(encoding), Encoded)
    proving = VerifyConfig(store=store)
    verified = stages.run("verify", lambda: verify.main(proving), Verified)
    result: Demonstrated = {
        "model": trained["model"],
        "store": store,
        "samples": increment["samples"],
        "elbo": trained["elbo"],
        "figures": evaluated["figures"],
        "verified": verified["ok"],
        "appended": appended["samples"] - packed["samples"],
        "images_per_second": encoded["images_per_second"],
        "seconds": stages.seconds,
    }
    lines = summary(config, trained, evaluated, result, folder)
    return Outcome(cast(Json, result), summary=lines)


def named_after(folder: Path) -> str:
    """A folder's name as far as runs and models may have it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("._-")[:40] or "images"


def new_folder(parent: Path, kind: str) -> Path:
    """The first of PARENT/KIND-1, KIND-2 ... that is free: each demo is a run of its own."""
    number = 1
    while (parent / f"{kind}-{number}").exists():
        number += 1
    folder = parent / f"{kind}-{number}"
    folder.mkdir(parents=True)
    return folder


def write_digits(folder: Path, numbers: Iterable[int]) -> None:
    """scikit-learn's handwritten digits (8 x 8, 17 levels) as PNG files in a folder per label."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number in numbers:
        path = folder / str(digits.target[number]) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(np.round(digits.images[number] * 255 / 16))).save(path)


def prepare(config: DemoConfig, folder: Path) -> tuple[Path, dict[Path, Path]]:
    """The folder to pack, and files to copy into it later: the new images of the next night."""
    if config.images is not None:
        return Path(config.images), {}
    images, late = folder / "images", folder / "late"
    write_digits(images, range(1797 - LATE_IMAGES))
    write_digits(late, range(1797 - LATE_IMAGES, 1797))
    return images, {path: images / path.relative_to(late) for path in late.rglob("*.png")}


def train_config(config: DemoConfig, folder: Path, dataset: str) -> TrainConfig:
    """Small enough for two cores and a few minutes."""
    recipe = read_recipe("digits" if config.images is None else "photos-64")
    asked: Json = {
        "data": f"{dataset}/train", "run": folder.name, "storage": str(folder),
        "steps": config.steps, "workers": WORKERS,
    }  # fmt: skip
    return validate(TrainConfig, merge(recipe, asked))


def label_column(dataset: str) -> tuple[str, ...]:
    """The column of labels, where sub-folders gave the images some."""
    from pipeline.data import Dataset

    return ("label",) if Dataset.open(dataset).has_column("label") else ()


def summary(
    config: DemoConfig,
    trained: Trained,
    evaluated: Evaluated,
    result: Demonstrated,
    folder: Path,
) -> list[str]:
    """What a reader wants to know first, and the commands to go on with."""
    before, after = trained["holdout_before"], trained["holdout_after"]
    rows = [
        f"  {name:<16}{before[name]:>12.2f}{after[name]:>12.2f}"
        for name in ("elbo", "log_likelihood", "kl")
    ]
    source = config.images or "YOUR_IMAGES"
    mlflow = Path("runs/mlflow.db").absolute()
    return [
        "",
        f"Held-out images ({evaluated['images']}), nats per image:",
        f"  {'':<16}{'untrained':>12}{'trained':>12}",
        *rows,
        f"  posterior gap KL(q || p(z|x)) >= {evaluated['posterior_gap']:.2f}: of the first "
        f"{evaluated['gap']['images']} images, by {evaluated['gap']['how']}",
        f"Encoded {result['samples']} images ({result['images_per_second']:.0f} images/s); the "
        f"store is {'whole' if result['verified'] else 'NOT WHOLE'}.",
        f"  pictures   {folder / 'figures'}",
        f"  latents    {result['store']}",
        f"  model      {result['model']} (version {trained['model_version']})",
        "Seconds: " + ", ".join(f"{name} {t}" for name, t in result["seconds"].items()),
        "Go on with:",
        f"  .venv/bin/mlflow ui --backend-store-uri sqlite:///{mlflow}",
        f"  .venv/bin/python -m jobs.pack --source {source} --output runs/mine --holdout 0.05",
        "  .venv/bin/python -m jobs.train --data runs/mine/train --run mine --image-size 64",
        f"  .venv/bin/python -m jobs.explain --run {trained['run']}",
        f"  .venv/bin/python -m jobs.pull --model {result['model']} --output runs/pulled",
        "",
    ]


if __name__ == "__main__":
    run_job(DemoConfig, main)
