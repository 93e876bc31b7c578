"""`jobs.explain`: a run or a model is measured, and its numbers are put into words."""

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from pipeline import storage
from pipeline.commands.evaluate import Evaluated, draw_all, measure_model
from pipeline.config import EvaluateConfig, ExplainConfig
from pipeline.data import Dataset
from pipeline.errors import ConfigError, DatasetError
from pipeline.evaluation.findings import mean_and_error, surgery
from pipeline.evaluation.health import check_health
from pipeline.evaluation.reading import in_order
from pipeline.evaluation.rows import MeasureOptions, measure
from pipeline.explanation.mistakes import Diagnosis, diagnose, known_slips
from pipeline.explanation.objective import recorded
from pipeline.explanation.page import explain, to_markdown, to_text
from pipeline.figures.page import to_html
from pipeline.registry.named_models import finished_run, load_named, nothing_called
from pipeline.runs.history import read_validations
from pipeline.runs.json_numbers import plain_json
from pipeline.runs.run import Run
from pipeline.vae import VAE
from pipeline.vae.likelihoods import Gaussian

_TRAINING_IMAGES, _TRAINING_BATCH = 2000, 100
"""Of the training set, which are set against the hold-out: the standard error of their mean is then
about that of a hold-out as large."""


@dataclass(frozen=True)
class Subject:
    """What is explained: a model by name, the images it is measured on, and what it was trained on.

    training: the training set and its digest, None where nobody knows.
    """

    name: str
    data: str
    training: tuple[str, str] | None


def run_explanation(config: ExplainConfig) -> tuple[str, dict[str, Any]]:
    """The page as plain text, and the job's result with every answer and its numbers."""
    subject, found = _subject(config)
    evaluation = EvaluateConfig(
        model=subject.name,
        data=subject.data,
        output=config.output,
        storage=config.storage,
        importance_samples=config.importance_samples,
        seed=config.seed,
        allow_custom=config.allow_custom,
        shards_below=config.shards_below,
    )
    dataset = Dataset.open(subject.data, None, config.shards_below)
    model = measure_model(subject.name, *found, evaluation, dataset)
    numbers = model.findings.numbers
    if numbers["images"] < 2:
        raise DatasetError(
            f"{subject.data}: one image has no intervals to explain. Give `--data URL` with more."
        )
    # Into the findings' own numbers: the pictures tell the same ones as the text.
    numbers |= {
        "pixels": math.prod(model.vae.image_shape),
        "likelihood": model.vae.model_config.likelihood,
        "step": (model.vae.metadata or {}).get("step"),
    }
    numbers |= _of_training_set(model.vae, subject, numbers, config.seed)
    sigma = deviation(model.vae)
    has_way = model.run is not None and len(read_validations(model.run.run)) > 1
    optimised = recorded(model.vae.metadata)
    parts = explain(numbers, optimised, has_way)
    warnings = check_health(numbers, sigma)
    beta = optimised.beta if optimised else None
    diagnoses = _diagnoses(config, model, numbers, 1.0 if beta is None else beta, sigma)
    yours = "".join(f"{line}\n" for d in diagnoses for line in d.describe().splitlines())
    result = {
        "model": subject.name,
        "data": subject.data,
        "images": numbers["images"],
        "step": numbers["step"],
        "answers": {part.name: part.numbers for part in parts},
        "checks": {
            part.name: [str(sentence.check) for sentence in part.sentences] for part in parts
        },
        "warnings": warnings,
        "slips": {d.quantity: [slip.name for slip in d.slips] for d in diagnoses},
        "page": None,
        "figures": [],
    }
    if config.output is not None:
        result["figures"] = draw_all(config.output, dataset, model, config.seed)
        names = [url.rsplit("/", 1)[-1] for url in result["figures"]]
        page = to_markdown(numbers, parts, warnings, names)
        page += f"\n## Your figures\n\n{yours}" if yours else ""
        result["page"] = storage.join(config.output, "explanation.html")
        pictures = {name: storage.read(storage.join(config.output, name)) for name in names}
        storage.publish(storage.join(config.output, "explanation.md"), page.encode())
        storage.publish(result["page"], to_html(page, pictures).encode())
    text = to_text(numbers, parts, warnings) + (f"\nYour figures\n{yours}" if yours else "")
    return text, result


def deviation(vae: VAE) -> float | None:
    """The one scale of all pixels (1 is the whole range), where the likelihood has one."""
    scale = vae.likelihood.one_scale
    return None if scale is None else scale.item()


def _subject(config: ExplainConfig) -> tuple[Subject, tuple[VAE, Any]]:
    """What is asked about, and the loaded model with the run that it was named by."""
    if config.model is not None:
        if config.data is None:
            raise ConfigError("--model needs `--data URL`: the images to measure it on.")
        found = load_named(config.model, config.storage, config.allow_custom)
        return Subject(config.model, config.data, None), found
    name = str(config.run)
    run = finished_run(name, config.storage)
    if run is None:
        raise nothing_called(name, config.storage, "--run")
    found = load_named(name, config.storage, config.allow_custom)
    # The run's own config names the hold-out that lay beside its data when it began.
    data = config.data or run.config.holdout or run.config.data
    training = None
    pins = Run(run.run.url).pins()
    if pins is not None and data != run.config.data:
        training = (run.config.data, pins.dataset)
    return Subject(name, data, training), found


def _of_training_set(
    vae: VAE, subject: Subject, numbers: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """`training`: the ELBO on images of the training set; and `surgery`, if these are more.

    What z knows about x is capped by the log of the number of images, so more of them tell more.
    """
    if subject.training is None:
        return {"training": None}
    dataset = Dataset.open(*subject.training)
    options = MeasureOptions(1, seed, _TRAINING_BATCH, _TRAINING_IMAGES)
    with closing(in_order(dataset, vae.preprocess, _TRAINING_BATCH)) as loader:
        batches = islice(loader, _TRAINING_IMAGES // _TRAINING_BATCH)
        measured = measure(vae, batches, options)
    if len(measured.positions) < 2:
        return {"training": None}
    elbo, error = mean_and_error(measured.column("elbo"))
    found: dict[str, Any] = {
        "training": {"images": len(measured.positions), "elbo": elbo, "elbo_error": error}
    }
    known = numbers["surgery"]
    if known is not None and len(measured.means) > known["images"]:
        means, spread = torch.from_numpy(measured.means), torch.from_numpy(measured.log_variances)
        found["surgery"] = surgery(vae, means, spread, seed, "training")
    return dict(plain_json(found))


def _diagnoses(
    config: ExplainConfig,
    model: Evaluated,
    numbers: Mapping[str, Any],
    beta: float,
    sigma: float | None,
) -> list[Diagnosis]:
    is_gaussian = isinstance(model.vae.likelihood, Gaussian)
    slips = known_slips(numbers, model.measured, beta, sigma if is_gaussian else None)
    return [
        diagnose(quantity, figure, slips, numbers[quantity])
        for quantity, figure in config.figures.items()
    ]
