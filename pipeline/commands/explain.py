"""`jobs.explain`: a run or a model is measured, and its numbers are put into words."""

import math
from typing import Any

from pipeline import storage
from pipeline.commands.evaluate import Evaluated, draw_all, measure_model
from pipeline.config import EvaluateConfig, ExplainConfig
from pipeline.data import Dataset
from pipeline.errors import ConfigError, DatasetError, RunError
from pipeline.evaluation.explanation import explain, render
from pipeline.evaluation.health import check_health
from pipeline.evaluation.mistakes import Diagnosis, diagnose, known_slips
from pipeline.registry.named_models import finished_run, load_named
from pipeline.runs.history import read_validations
from pipeline.vae import VAE
from pipeline.vae.likelihoods import Gaussian


def run_explanation(config: ExplainConfig) -> tuple[str, dict[str, Any]]:
    """The page as Markdown, and the job's result with every answer and its numbers."""
    name, data, beta = _subject(config)
    evaluation = EvaluateConfig(
        model=name,
        data=data,
        output=config.output,
        storage=config.storage,
        importance_samples=config.importance_samples,
        seed=config.seed,
        allow_custom=config.allow_custom,
    )
    dataset = Dataset.open(data)
    found = load_named(name, config.storage, config.allow_custom)
    model = measure_model(name, *found, evaluation, dataset)
    if model.findings.numbers["images"] < 2:
        raise DatasetError(f"{data}: one image has no intervals to explain. Give --data with more.")
    numbers = model.findings.numbers | {
        "pixels": math.prod(model.vae.image_shape),
        "likelihood": model.vae.model_config.likelihood,
    }
    sigma = deviation(model.vae)
    has_way = model.run is not None and len(read_validations(model.run.run)) > 1
    parts = explain(numbers, beta, has_way)
    warnings = check_health(numbers, sigma)
    diagnoses = _diagnoses(config, model, numbers, beta, sigma)
    page = render(numbers, parts, warnings)
    if diagnoses:
        page += "\n## Your figures\n\n" + "\n".join(d.describe() for d in diagnoses) + "\n"
    result = {
        "model": name,
        "data": data,
        "images": numbers["images"],
        "answers": {part.name: dict(part.numbers) for part in parts},
        "warnings": warnings,
        "slips": {d.quantity: [slip.name for slip in d.slips] for d in diagnoses},
        "page": None,
        "figures": [],
    }
    if config.output is not None:
        result["figures"] = draw_all(config.output, dataset, model, config.seed)
        result["page"] = storage.join(config.output, "explanation.md")
        storage.publish(storage.join(config.output, "explanation.md"), page.encode())
    return page, result


def deviation(vae: VAE) -> float | None:
    """The one scale of all pixels (1 is the whole range), where the likelihood has one."""
    scale = vae.likelihood.one_scale
    return None if scale is None else scale.item()


def _subject(config: ExplainConfig) -> tuple[str, str, float]:
    """The model, the images to measure it on, and the KL's weight in its training."""
    if config.model is not None:
        if config.data is None:
            raise ConfigError("--model needs --data: name the images to measure it on.")
        return config.model, config.data, 1.0 if config.beta is None else config.beta
    run = finished_run(str(config.run), config.storage)
    if run is None:
        raise RunError(
            f"{storage.join(config.storage, str(config.run))}: is no finished run. Give --run and "
            "--storage of one that ended, or --model and --data."
        )
    # The run's own config names the hold-out that lay beside its data when it began.
    data = config.data or run.config["holdout"] or run.config["data"]
    beta = run.config["objective"]["beta"] if config.beta is None else config.beta
    return str(config.run), data, beta


def _diagnoses(
    config: ExplainConfig,
    model: Evaluated,
    numbers: dict[str, Any],
    beta: float,
    sigma: float | None,
) -> list[Diagnosis]:
    is_gaussian = isinstance(model.vae.likelihood, Gaussian)
    slips = known_slips(numbers, model.measured, beta, sigma if is_gaussian else None)
    return [
        diagnose(quantity, figure, slips, numbers[quantity])
        for quantity, figure in config.figures.items()
    ]
