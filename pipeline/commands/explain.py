"""`jobs.explain`: a run or a model is measured, and its numbers are put into words."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice

import torch

from pipeline import storage
from pipeline.commands.evaluate import (
    Evaluated,
    Named,
    draw_all,
    judges_of,
    measure_model,
)
from pipeline.config import EvaluateConfig, ExplainConfig
from pipeline.data import Dataset
from pipeline.errors import ConfigError, DatasetError
from pipeline.evaluation.findings import mean_and_error, surgery
from pipeline.evaluation.numbers import Numbers, TrainingMeans
from pipeline.evaluation.reading import in_order
from pipeline.evaluation.rows import MeasureOptions, measure
from pipeline.explanation.health import warnings_of
from pipeline.explanation.mistakes import Diagnosis, diagnose, known_slips, right_value
from pipeline.explanation.objective import recorded
from pipeline.explanation.page import Known, explain, to_markdown, to_text
from pipeline.explanation.sentences import Part
from pipeline.figures.page import to_html
from pipeline.json_value import Json
from pipeline.progress import phase
from pipeline.registry.named_models import FinishedRun, finished_run, load_named, nothing_called
from pipeline.runs.history import check_history, read_validations
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

    training: the training set, its digest and what it may name; None where nobody knows.
    """

    named: Named
    data: str
    training: tuple[str, str, tuple[str, ...]] | None


@dataclass(frozen=True)
class Explanation:
    """The page in its parts, the health first; `text`: all of it for a terminal.

    page, figures: URLs of what was published; None and empty where nothing was to be.
    """

    model: str
    data: str
    numbers: Numbers
    text: str
    parts: Sequence[Part]
    diagnoses: Sequence[Diagnosis]
    page: str | None
    figures: Sequence[str]

    def to_json(self) -> Json:
        """Every answer with its numbers and the names of its checks."""
        told = {
            "model": self.model,
            "data": self.data,
            "images": self.numbers.images,
            "step": self.numbers.step,
            "answers": {part.name: part.numbers for part in self.parts},
            "checks": {
                part.name: [str(sentence.check) for sentence in part.sentences]
                for part in self.parts
            },
            "warnings": warnings_of(self.parts[0]),
            "slips": {d.quantity: [slip.name for slip in d.slips] for d in self.diagnoses},
            "page": self.page,
            "figures": list(self.figures),
        }
        return dict(plain_json(told))


def run_explanation(config: ExplainConfig) -> Explanation:
    """Measures, explains, and writes page and pictures where `output` says."""
    subject = _subject(config)
    evaluation = EvaluateConfig(
        model=subject.named.name,
        data=subject.data,
        output=config.output,
        storage=config.storage,
        importance_samples=config.importance_samples,
        seed=config.seed,
        allow_custom=config.allow_custom,
        shards_below=config.shards_below,
    )
    dataset = Dataset.open(subject.data, None, config.shards_below)
    model = measure_model(subject.named, evaluation, dataset, judges_of(evaluation))
    if model.findings.numbers.images < 2:
        raise DatasetError(
            f"{subject.data}: one image has no intervals to explain. Give `--data URL` with more."
        )
    with phase("measuring images of the training set"):
        numbers = _with_training_set(model, subject, config.seed)
    # The pictures tell the same numbers as the text.
    model = replace(model, findings=replace(model.findings, numbers=numbers))
    known = Known(
        optimised=recorded(model.vae.metadata),
        sigma=deviation(model.vae),
        has_way=model.run is not None and len(read_validations(model.run.run)) > 1,
    )
    parts = explain(numbers, known)
    diagnoses = _diagnoses(config, model, known)
    yours = "".join(f"{line}\n" for d in diagnoses for line in d.describe().splitlines())
    page, figures = None, []
    if config.output is not None:
        figures = draw_all(config.output, dataset, model, config.seed)
        page = _publish_page(config.output, numbers, parts, yours, figures)
    return Explanation(
        model=subject.named.name,
        data=subject.data,
        numbers=numbers,
        text=to_text(numbers, parts, [url.rsplit("/", 1)[-1] for url in figures])
        + (f"\nYour figures\n{yours}" if yours else ""),
        parts=parts,
        diagnoses=diagnoses,
        page=page,
        figures=figures,
    )


def _publish_page(
    output: str, numbers: Numbers, parts: Sequence[Part], yours: str, figures: Sequence[str]
) -> str:
    """Writes explanation.md and .html, the pictures in it; the URL of the latter."""
    names = [url.rsplit("/", 1)[-1] for url in figures]
    page = to_markdown(numbers, parts, names)
    page += f"\n## Your figures\n\n{yours}" if yours else ""
    pictures = {name: storage.read(storage.join(output, name)) for name in names}
    storage.publish(storage.join(output, "explanation.md"), page.encode())
    url = storage.join(output, "explanation.html")
    storage.publish(url, to_html(page, pictures).encode())
    return url


def deviation(vae: VAE) -> float | None:
    """The one scale of all pixels (1 is the whole range), where the likelihood has one."""
    scale = vae.likelihood.one_scale
    return None if scale is None else scale.item()


def _subject(config: ExplainConfig) -> Subject:
    """What is asked about, and the loaded model with the run that it was named by."""
    if config.model is not None:
        if config.data is None:
            raise ConfigError("--model needs `--data URL`: the images to measure it on.")
        found = load_named(config.model, config.storage, config.allow_custom)
        return Subject(Named(config.model, *found), config.data, None)
    name = str(config.run)
    run = finished_run(name, config.storage)
    if run is None:
        raise nothing_called(name, config.storage, "--run")
    check_history(run.run)
    found = load_named(name, config.storage, config.allow_custom)
    # The run's own config names the hold-out that lay beside its data when it began.
    data = config.data or run.config.holdout or run.config.data
    if config.data is None:
        storage.check_place(data, config.shards_below, run.run.path("run.json"), "--data")
    return Subject(Named(name, *found), data, _training_set(run, data, config.shards_below))


def _training_set(
    run: FinishedRun, data: str, below: tuple[str, ...]
) -> tuple[str, str, tuple[str, ...]] | None:
    """Where a run's training set lies and which generation it was, unless `data` is it."""
    pins = Run(run.run.url).pins()
    if pins is None or data == run.config.data:
        return None
    where = run.run.path("run.json")
    url = storage.check_place(run.config.data, below, where, "--shards-below")
    return url, pins.dataset, below


def _with_training_set(model: Evaluated, subject: Subject, seed: int) -> Numbers:
    """The numbers with the ELBO on images of the training set, and their surgery if these are more.

    What z knows about x is capped by the log of the number of images, so more of them tell more.
    """
    numbers, vae = model.findings.numbers, model.vae
    if subject.training is None:
        return numbers
    dataset = Dataset.open(*subject.training)
    options = MeasureOptions(1, seed, _TRAINING_BATCH, _TRAINING_IMAGES)
    with closing(in_order(dataset, vae.preprocess, _TRAINING_BATCH)) as loader:
        batches = islice(loader, _TRAINING_IMAGES // _TRAINING_BATCH)
        measured = measure(vae, batches, options)
    count = len(measured.positions)
    if count < 2:
        return numbers
    elbo, error = mean_and_error(measured.column("elbo"))
    numbers = replace(numbers, training=TrainingMeans(count, elbo, error))
    known = numbers.surgery
    if known is not None and len(measured.means) > known.images:
        means, spread = torch.from_numpy(measured.means), torch.from_numpy(measured.log_variances)
        numbers = replace(numbers, surgery=surgery(vae, means, spread, seed, "training"))
    return numbers


def _diagnoses(config: ExplainConfig, model: Evaluated, known: Known) -> list[Diagnosis]:
    numbers = model.findings.numbers
    asked = known.optimised.beta if known.optimised else None
    sigma = known.sigma if isinstance(model.vae.likelihood, Gaussian) else None
    slips = known_slips(numbers, model.measured, 1.0 if asked is None else asked, sigma)
    return [
        diagnose(quantity, figure, slips, right_value(numbers, quantity))
        for quantity, figure in config.figures.items()
    ]
