"""The page of a run: what it came to, its way, what its model makes of images, what it is of."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

import torch

from pipeline import storage
from pipeline.config import TrainConfig
from pipeline.data import Batch, Dataset
from pipeline.data.keys import path_of
from pipeline.figures.canvas import label_names, to_png
from pipeline.figures.history import draw_way
from pipeline.figures.latents import draw_kl_per_dimension
from pipeline.figures.overview import draw_glance, glanced_at
from pipeline.json_value import flat
from pipeline.masking import shell_word
from pipeline.report.changes import named, numbers_table, paired_words, settings_table, told
from pipeline.report.content import Cell, Page, Picture, Section, Table
from pipeline.report.latent_map import Encoded, draw_map
from pipeline.runs.history import Validation, read_kl_per_dimension, read_validations
from pipeline.runs.result import TrainingResult
from pipeline.runs.run import Pins, Run, Start
from pipeline.vae import VAE

_TITLES = {
    "training_curves.png": "Curves of training and hold-out",
    "progress.png": "The same images through training",
    "reconstructions.png": "Images and what the model rebuilds of them",
    "samples.png": "Images drawn from the prior",
}
_MOST_LOOKS = 40
"""Validations that the table lists, evenly spread."""
_AT_ONCE = 20


@dataclass(frozen=True)
class ReportedRun:
    """A finished run, its model, and the images that its pictures are made of.

    `of`: what these images are, in words.
    """

    name: str
    run: Run
    config: TrainConfig
    result: TrainingResult
    pins: Pins
    vae: VAE
    dataset: Dataset
    of: str


def run_page(run: ReportedRun, other: ReportedRun | None) -> Page:
    """The page; `other` is what it is compared with."""
    result, batch = run.result, glanced_at(run.dataset, run.vae.preprocess)
    sections = [_numbers(run), _way(run), _model(run, batch)]
    if other is not None:
        sections.insert(0, _changes(run, other))
    sections += [_settings(run), _provenance(run)]
    after = (result.holdout_after or {}).get("elbo")
    lead = [
        f"{result.reason} after {result.steps:,} steps and {result.samples:,} images; "
        f"{result.bad_samples:,} bad ones. The model has the weights of step "
        f"{result.chosen_step:,}.",
        f"Held-out ELBO {after:,.3f} nats per image."
        if after is not None
        else "Nothing was held out: every number is of images that were trained on.",
    ]
    encoded = encode_batch(run.vae, batch, run.of)
    return Page(f"Run {run.name}", lead, sections, draw_map(run.vae, encoded) if encoded else None)


def encode_batch(vae: VAE, batch: Batch, of: str) -> Encoded | None:
    """The good images of a batch with what the model makes of them; None where there is none."""
    rows = batch.valid.nonzero().flatten().tolist()
    if not rows:
        return None
    images = batch.images[batch.valid]
    with torch.inference_mode():
        means = torch.cat(
            [vae.encode(part.to(vae.device)).mean.cpu() for part in torch.split(images, _AT_ONCE)]
        )
    labels = [batch.columns["label"][row] for row in rows] if "label" in batch.columns else [None]
    keys = [path_of(batch.keys[row]) for row in rows]
    return Encoded(of, images, means, keys, label_names(labels))


def _numbers(run: ReportedRun) -> Section:
    before, after = run.result.holdout_before or {}, run.result.holdout_after or {}
    rows = [(named(name), before.get(name), value) for name, value in after.items()]
    table = Table("Held out, nats per image", ("quantity", "before", "now"), rows)
    words = [f"`vae explain --run {shell_word(run.name)}` says what each of them means."]
    return Section("Numbers", words, [table] if rows else [])


def _way(run: ReportedRun) -> Section:
    looks = read_validations(run.run)
    pictures = [*_pictures(draw_way(run.run))]
    if looks:
        nats = read_kl_per_dimension(run.run, looks[-1])
        pictures.append(Picture("KL of each latent dimension", to_png(draw_kl_per_dimension, nats)))
    return Section("How it came about", (), [_looks(looks)] if looks else [], pictures)


def _looks(looks: Sequence[Validation]) -> Table:
    every = max(1, -(-len(looks) // _MOST_LOOKS))
    shown = [*looks[:-1:every], looks[-1]]
    names = [name for name in ("elbo", "log_likelihood", "kl", "active_units") if name in
             {term for look in shown for term in look.terms}]  # fmt: skip
    rows: list[Sequence[Cell]] = [
        (f"{look.step:,}", *(look.terms.get(name) for name in names)) for look in shown
    ]
    caption = f"{len(looks):,} validations on {looks[-1].images:,} held-out images"
    if len(shown) < len(looks):
        caption += f", {len(shown)} of them"
    return Table(caption, ("step", *map(named, names)), rows)


def _model(run: ReportedRun, batch: Batch) -> Section:
    found = draw_glance(run.vae, batch, run.of)
    return Section("What the model makes of images", (), (), [*_pictures(found)])


def _pictures(found: Iterator[tuple[str, bytes]]) -> Iterator[Picture]:
    """Those that the page has a title for; the map is another picture of the means."""
    for name, png in found:
        if name in _TITLES:
            yield Picture(_TITLES[name], png)


def _changes(run: ReportedRun, other: ReportedRun) -> Section:
    names = (run.name, other.name)
    tables = [
        settings_table(
            run.config.model_dump(mode="json"), other.config.model_dump(mode="json"), names
        )
    ]
    words = [*_same_or_not(run, other)]
    ours, theirs = run.result.holdout_after, other.result.holdout_after
    if ours and theirs:
        tables.append(numbers_table(ours, theirs, names))
    pictures = [*islice(_pictures(draw_way(other.run)), 1)]
    batch = glanced_at(other.dataset, other.vae.preprocess)
    pictures += _pictures(draw_glance(other.vae, batch, other.of))
    shown = [Picture(f"{other.name}: {each.title}", each.png) for each in pictures]
    kept = [table for table in tables if table.rows]
    if not tables[0].rows:
        words.append("No setting differs.")
    return Section(f"What changed against {other.name}", words, kept, shown)


def _same_or_not(run: ReportedRun, other: ReportedRun) -> Iterator[str]:
    """Whether the numbers are of the same thing, and how sure the difference is."""
    if run.pins.dataset != other.pins.dataset:
        yield "They were trained on different images."
    if run.pins.holdout != other.pins.holdout:
        yield "Their hold-outs differ, so their numbers are not of the same images."
    elif run.config.preprocess.held_out() != other.config.preprocess.held_out():
        yield "They read images in different ways, so their numbers are not of the same pixels."
    elif run.vae.likelihood.measure != other.vae.likelihood.measure:
        yield (
            f"One scores the {run.vae.likelihood.measure}, the other the "
            f"{other.vae.likelihood.measure}: their ELBOs can't be compared."
        )
    elif run.pins.holdout is not None and (words := paired_words(run.run, other.run)):
        yield words


def _settings(run: ReportedRun) -> Section:
    """What was asked for where it is not as by default."""
    config = run.config
    plain = type(config)(data=config.data, run=config.run).model_dump(mode="json")
    default, given = flat(plain), flat(config.model_dump(mode="json"))
    rows = [
        (key, told(default.get(key)), told(value))
        for key, value in given.items()
        if value != default.get(key)
    ]
    words = [] if rows else ["Every setting is as by default."]
    table = Table("Settings that are not the defaults", ("setting", "default", "here"), rows)
    return Section("Settings", words, [table] if rows else [])


def _provenance(run: ReportedRun) -> Section:
    result = run.result
    began = run.run.claimed_at(Start(1))
    facts: Mapping[str, Cell] = {
        "run": storage.shown(run.run.url),
        "started": f"{datetime.fromtimestamp(began, UTC):%Y-%m-%d %H:%M} UTC" if began else None,
        "trained on": storage.shown(run.config.data),
        "its generation": run.pins.dataset,
        "held out": storage.shown(run.config.holdout) if run.config.holdout else None,
        "the hold-out's generation": run.pins.holdout,
        "model's digest": result.digest,
        "registered as": result.model,
        "version": None if result.model_version is None else str(result.model_version),
        "MLflow's run": result.run_id,
        "seed": str(run.config.seed),
        "seconds of training": dict(result.run_seconds).get("productive"),
    }
    rows = [(name, value) for name, value in facts.items() if value is not None]
    return Section("Where it comes from", (), [Table("Provenance", ("what", "which"), rows)])
