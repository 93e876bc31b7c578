"""`jobs.evaluate`: a model measured on a dataset, here or by Ray tasks, and its report."""

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice

import numpy as np
import torch

from pipeline import storage
from pipeline.cluster.evaluation_tasks import measure_on_ray
from pipeline.config import EvaluateConfig
from pipeline.data import Batch, Dataset
from pipeline.errors import DatasetError, ModelError
from pipeline.evaluation.comparison import Candidate, Comparison, check_comparable, compare
from pipeline.evaluation.distances import NamedFeatures, named_features
from pipeline.evaluation.fidelity import load_perception
from pipeline.evaluation.findings import FindingOptions, Findings, distances_over, find
from pipeline.evaluation.numbers import Numbers
from pipeline.evaluation.reading import in_order, read_first
from pipeline.evaluation.rows import Measured, MeasureOptions, measure
from pipeline.figures.canvas import to_png
from pipeline.figures.comparison import draw_comparison
from pipeline.figures.evaluation import draw_evaluation
from pipeline.figures.history import draw_way
from pipeline.json_value import Json
from pipeline.progress import Progress, phase
from pipeline.registry.named_models import FinishedRun, load_named
from pipeline.runs.history import check_history
from pipeline.vae import VAE

_FIRST = 256
"""Images for pictures, for the split of the gap and to find the one nearest to each sample."""
_FEATURES_OF, _FEATURES_AT_ONCE = 50_000, 50
"""Images for distances over a user's features: as many as papers take."""
WITHOUT_BOUNDS = (
    "`--bound-images 0` (from Python `bound_images=0`) leaves this out, and the posterior gap's "
    "bound is that of importance sampling alone"
)
_LATENTS = 10_000
"""First images whose posteriors are kept, 2 Z h w numbers each, for statistics of the latents."""


@dataclass(frozen=True)
class Evaluated:
    """A model, the run it was named by, if it was, its rows per image and its findings."""

    vae: VAE
    run: FinishedRun | None
    measured: Measured
    findings: Findings


@dataclass(frozen=True)
class Evaluation:
    """What the job found of a model, on which data; `figures`: URLs of its pictures."""

    model: str
    model_digest: str | None
    data: str
    dataset_digest: str
    numbers: Numbers
    comparison: Comparison | None
    figures: Sequence[str]

    def __repr__(self) -> str:
        found = self.numbers
        lines = [
            f"Evaluation of {self.model} on {found.images:,} images",
            f"ELBO {found.elbo:,.3f} ± {found.elbo_error:,.3f} nats per image",
            f"log p(x) >= {found.gap.evidence:,.3f}, mean of {found.gap.images:,} of them",
        ]
        if self.comparison is not None:
            lines += [
                f"{name} minus {self.comparison.reference}: ELBO {terms['elbo'].mean:+,.3f} nats "
                f"per image, 95% from {terms['elbo'].low:+,.3f} to {terms['elbo'].high:+,.3f}"
                for name, terms in self.comparison.differences.items()
            ]
        return "\n".join(lines)

    def to_json(self) -> Json:
        """As `evaluation.json` has it."""
        told = {
            "model": self.model,
            "model_digest": self.model_digest,
            "data": self.data,
            "dataset_digest": self.dataset_digest,
            **self.numbers.to_json(),
            "figures": list(self.figures),
        }
        if self.comparison is not None:
            told["comparison"] = self.comparison.to_json()
        return told


def run_evaluation(config: EvaluateConfig) -> Evaluation:
    """Measures the model (and those it is compared with), draws, and writes `evaluation.json`."""
    dataset = Dataset.open(config.data, None, config.shards_below)
    if len(dataset) == 0:
        raise DatasetError(f"{config.data}: holds no images. Name a dataset that has some.")
    names = (config.model, *config.compare)
    loaded = {name: load_named(name, config.storage, config.allow_custom) for name in names}
    for name, (vae, _) in loaded.items():
        vae.refuse_without_posterior(name)
    check_comparable({name: vae for name, (vae, _) in loaded.items()})
    judges = judges_of(config, WITHOUT_BOUNDS)
    models = {
        name: measure_model(Named(name, *found), config, dataset, judges)
        for name, found in loaded.items()
    }
    main = models[config.model]
    comparison, figures = None, []
    if config.compare:
        comparison = compare([_candidate(name, models[name]) for name in names])
    if config.output is not None:
        figures = draw_all(config.output, dataset, main, config.seed)
        if comparison is not None:
            short = short_names(list(comparison.table))
            named = {short[name]: asdict(row) for name, row in comparison.table.items()}
            apart = {short[name]: each for name, each in comparison.differences.items()}
            picture = to_png(draw_comparison, named, differences=apart)
            figures.append(_publish(config.output, "comparison.png", picture))
    found = Evaluation(
        model=config.model,
        model_digest=main.vae.digest,
        data=config.data,
        dataset_digest=dataset.digest,
        numbers=main.findings.numbers,
        comparison=comparison,
        figures=figures,
    )
    if config.output is not None:
        report = {**found.to_json(), "kl_per_dimension": main.findings.kl_per_dimension.tolist()}
        url = storage.join(config.output, "evaluation.json")
        storage.publish(url, storage.canonical_json(report))
    return found


def draw_all(output: str, dataset: Dataset, model: Evaluated, seed: int) -> list[str]:
    """Publishes every picture of a model below `output`; returns their URLs."""
    first = read_first(dataset, model.vae, _FIRST)
    found = model.findings.numbers
    gap = (found.posterior_gap, found.gap.how)
    pictures = chain(
        draw_evaluation(model.vae, model.measured, model.findings, first, seed),
        draw_way(model.run.run, gap) if model.run else (),
    )
    with phase("drawing the pictures"):
        return [_publish(output, name, picture) for name, picture in pictures]


@dataclass(frozen=True)
class Named:
    """A model under the name it was asked for, and the run that it was named by, if it was."""

    name: str
    vae: VAE
    run: FinishedRun | None


@dataclass(frozen=True)
class Judges:
    """What to find, and the user's network for distances of sets, if there is one."""

    finding: FindingOptions
    features: NamedFeatures | None


def judges_of(config: EvaluateConfig, without_bounds: str = "") -> Judges:
    """A network or weights that are not there are refused before anything is measured.

    `without_bounds`: as of `FindingOptions`.
    """
    finding = FindingOptions(
        config.seed,
        config.importance_samples,
        config.bound_images,
        load_perception(config.lpips) if config.lpips else None,
        without_bounds,
    )
    return Judges(finding, named_features(config.features) if config.features else None)


def measure_model(
    named: Named, config: EvaluateConfig, dataset: Dataset, judges: Judges
) -> Evaluated:
    """Measures a model on every image, here or on Ray, and finds all numbers."""
    vae, run = named.vae, named.run
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
            f"{named.name}: its ELBO is not finite on any image of {config.data}: its weights have "
            "diverged. Take an earlier checkpoint, or train with a lower "
            "`--optimizer.learning-rate RATE`."
        )
    first = read_first(dataset, vae, _FIRST)
    with phase(f"finding the numbers of {named.name}"):
        found = find(vae, measured, first, judges.finding)
    if judges.features is not None:
        with closing(in_order(dataset, vae.preprocess, _FEATURES_AT_ONCE)) as loader:
            batches = islice(loader, _FEATURES_OF // _FEATURES_AT_ONCE)
            distances = distances_over(
                vae, batches, judges.features, config.seed, _FEATURES_AT_ONCE
            )
        found = replace(found, numbers=replace(found.numbers, distances=distances))
    return Evaluated(vae, run, measured, found)


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
