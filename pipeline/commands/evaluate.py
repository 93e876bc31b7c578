"""`jobs.evaluate`: a model measured on a dataset, here or by Ray tasks, and its report."""

import math
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from pipeline import storage
from pipeline.cluster.evaluation_tasks import measure_on_ray
from pipeline.config import EvaluateConfig
from pipeline.data import Batch, Dataset
from pipeline.errors import DatasetError, ModelError
from pipeline.evaluation.comparison import Candidate, check_comparable, compare
from pipeline.evaluation.findings import FindingOptions, Findings, find
from pipeline.evaluation.reading import in_order, read_first
from pipeline.evaluation.rows import Measured, MeasureOptions, measure
from pipeline.figures.canvas import to_png
from pipeline.figures.curves import draw_comparison
from pipeline.figures.history import draw_way
from pipeline.figures.report import draw_report
from pipeline.progress import Progress
from pipeline.registry.named_models import FinishedRun, load_named
from pipeline.runs.history import check_history
from pipeline.vae import VAE

_FIRST = 256
"""Images for pictures, for the split of the gap and to find the one nearest to each sample."""
_LATENTS = 10_000
"""First images whose posteriors are kept, 2 Z h w numbers each, for statistics of the latents."""


@dataclass(frozen=True)
class Evaluated:
    """A model, the run it was named by, if it was, its rows per image and its findings."""

    vae: VAE
    run: FinishedRun | None
    measured: Measured
    findings: Findings


def run_evaluation(config: EvaluateConfig) -> dict[str, Any]:
    """Measures the model (and those it is compared with), draws, and writes `evaluation.json`."""
    dataset = Dataset.open(config.data, None, config.shards_below)
    if len(dataset) == 0:
        raise DatasetError(f"{config.data}: holds no images. Name a dataset that has some.")
    names = (config.model, *config.compare)
    loaded = {name: load_named(name, config.storage, config.allow_custom) for name in names}
    check_comparable({name: vae for name, (vae, _) in loaded.items()})
    models = {name: measure_model(name, *found, config, dataset) for name, found in loaded.items()}
    main = models[config.model]
    result = {
        "model": config.model,
        "model_digest": main.vae.digest,
        "step": (main.vae.metadata or {}).get("step"),
        "data": config.data,
        "dataset_digest": dataset.digest,
        "likelihood": main.vae.model_config.likelihood,
        "pixels": math.prod(main.vae.image_shape),
        **main.findings.numbers,
    }
    if config.compare:
        result["comparison"] = compare([_candidate(name, models[name]) for name in names])
    result["figures"] = []
    if config.output is not None:
        result["figures"] = draw_all(config.output, dataset, main, config.seed)
        if config.compare:
            table = result["comparison"]["table"]
            short = short_names(list(table))
            named = {short[name]: row for name, row in table.items()}
            picture = to_png(draw_comparison, named)
            result["figures"].append(_publish(config.output, "comparison.png", picture))
        result["kl_per_dimension"] = main.findings.kl_per_dimension.tolist()
        storage.publish(
            storage.join(config.output, "evaluation.json"), storage.canonical_json(result)
        )
        del result["kl_per_dimension"]
    return result


def draw_all(output: str, dataset: Dataset, model: Evaluated, seed: int) -> list[str]:
    """Publishes every picture of a model below `output`; returns their URLs."""
    first = read_first(dataset, model.vae, _FIRST)
    found = model.findings.numbers
    gap = (found["posterior_gap"], found["gap"]["how"])
    pictures = chain(
        draw_report(model.vae, model.measured, model.findings, first, seed),
        draw_way(model.run.run, gap) if model.run else (),
    )
    return [_publish(output, name, picture) for name, picture in pictures]


def measure_model(
    name: str, vae: VAE, run: FinishedRun | None, config: EvaluateConfig, dataset: Dataset
) -> Evaluated:
    """Measures a model on every image, here or on Ray, and finds all numbers."""
    if run is not None:
        check_history(run.run)
    options = MeasureOptions(config.importance_samples, config.seed, config.batch_size, _LATENTS)
    measured = (
        measure_on_ray(vae, config.workers, dataset, options)
        if config.workers
        else _measure_here(vae, dataset, options)
    )
    if len(measured.positions) == 0:
        raise DatasetError(f"{config.data}: none of its images can be read.")
    if not np.isfinite(measured.column("elbo")).any():
        raise ModelError(
            f"{name}: its ELBO is not finite on any image of {config.data}: its weights have "
            "diverged. Take an earlier checkpoint, or train with a lower "
            "`--optimizer.learning-rate RATE`."
        )
    first = read_first(dataset, vae, _FIRST)
    finding = FindingOptions(
        config.seed, config.importance_samples, config.bound_images, config.features
    )
    return Evaluated(vae, run, measured, find(vae, measured, first, finding))


def _measure_here(vae: VAE, dataset: Dataset, options: MeasureOptions) -> Measured:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with (
        closing(in_order(dataset, vae.preprocess, options.global_batch_size)) as loader,
        Progress("evaluate", len(dataset), "images") as progress,
    ):
        measured = measure(vae.to(device), _counted(loader, progress), options, device)
    vae.to("cpu")
    return measured


def _counted(batches: Iterable[Batch], progress: Progress) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        progress.advance(int(batch.valid.sum()))


def _candidate(name: str, model: Evaluated) -> Candidate:
    return Candidate(name, model.measured, model.findings.numbers, model.vae.digest)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each name without the folders that all of them share."""
    shared = posixpath.commonprefix(names).rpartition("/")
    start = len(shared[0] + shared[1])
    return {name: name[start:] or name for name in names}


def _publish(output: str, name: str, picture: bytes) -> str:
    url = storage.join(output, name)
    storage.publish(url, picture)
    return url
