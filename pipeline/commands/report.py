"""`jobs.report`: one page of a run or a latent store, in a file that needs nothing else."""

import time
from dataclasses import asdict, dataclass

from pipeline import storage
from pipeline.commands.decode import model_of
from pipeline.config import DecodeConfig, ReportConfig
from pipeline.data import Dataset
from pipeline.json_value import Json
from pipeline.latents import LatentStore
from pipeline.latents.snapshot import read_pointer
from pipeline.registry.named_models import finished_run, nothing_called
from pipeline.report.content import Page
from pipeline.report.markup import to_html
from pipeline.report.run_page import ReportedRun, run_page
from pipeline.report.store_page import ReportedStore, store_page
from pipeline.runs.history import check_history
from pipeline.vae import load_bundle


@dataclass(frozen=True)
class Report:
    """A page: where it is, how large, and how long it took."""

    page: str
    bytes: int
    seconds: float

    def to_json(self) -> Json:
        """Plain data."""
        return asdict(self)


def run_report(config: ReportConfig) -> Report:
    """Writes the page; everything is looked up before anything is computed."""
    started = time.perf_counter()
    page, name = _of_run(config) if config.run is not None else _of_store(config)
    made = to_html(page)
    url = storage.absolute(config.output or f"report-{name}.html")
    storage.publish(url, made)
    return Report(url, len(made), round(time.perf_counter() - started, 3))


def _of_run(config: ReportConfig) -> tuple[Page, str]:
    run = _reported_run(str(config.run), config, "--run")
    other = _reported_run(config.compare, config, "--compare") if config.compare else None
    return run_page(run, other), run.config.run


def _reported_run(name: str, config: ReportConfig, flag: str) -> ReportedRun:
    found = finished_run(name, config.storage)
    if found is None:
        raise nothing_called(name, config.storage, flag)
    check_history(found.run)
    result, pins, asked = found.run.result(), found.run.pins(), found.config
    assert result is not None, "it is finished"
    assert pins is not None, "and was opened"
    below, url, of = config.shards_below, asked.data, "images that were trained on"
    digest = pins.dataset
    if asked.holdout and pins.holdout:
        url, digest, of = asked.holdout, pins.holdout, "held-out images"
    storage.check_place(url, below, found.run.path("run.json"), "--shards-below")
    dataset = Dataset.open(url, digest, below)
    vae = load_bundle(found.bundle, config.allow_custom, digest=found.digest).eval()
    return ReportedRun(
        name=asked.run,
        run=found.run,
        config=asked,
        result=result,
        pins=pins,
        vae=vae,
        dataset=dataset,
        of=of,
    )


def _of_store(config: ReportConfig) -> tuple[Page, str]:
    store = _reported_store(str(config.store), config, flag="--store", draws=True)
    other = (
        _reported_store(config.compare, config, flag="--compare", draws=False)
        if config.compare
        else None
    )
    return store_page(store, other), store.name


def _reported_store(url: str, config: ReportConfig, *, flag: str, draws: bool) -> ReportedStore:
    store = LatentStore.open_all(url, flag=flag)
    pointer = read_pointer(store.url)
    assert pointer is not None, "the store was opened by it"
    asked = DecodeConfig(
        store=url, output=".", model=config.model, allow_custom=config.allow_custom
    )
    return ReportedStore(store, pointer, model_of(store, asked) if draws else None)
