"""`jobs.bench`: why training is slow here, and the one knob that would help most."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from pipeline import storage
from pipeline.commands.encode_cost import pace_of_encoding
from pipeline.config import BenchConfig, TrainConfig
from pipeline.data import Dataset
from pipeline.errors import ConfigError
from pipeline.figures.canvas import to_png
from pipeline.json_value import Json
from pipeline.pace.chart import Bar, draw_bars
from pipeline.pace.probes import (
    Subject,
    ceiling_pace,
    loader_pace,
    step_pace,
    training_pace,
)
from pipeline.pace.stock import stock_pace
from pipeline.pace.trials import trials
from pipeline.progress import Progress
from pipeline.registry.named_models import load_named
from pipeline.vae import build_vae

SECONDS = 4.0
"""For each look: dozens of steps of a small model, and who asks why waits no five minutes."""
_WORTH = 1.05
"""A gain below this is within what two looks at the same thing differ by."""


@dataclass(frozen=True)
class Tried:
    """A knob's other value, as a flag: images per second with it, and times what it is now."""

    flag: str
    note: str
    pace: float
    gain: float


@dataclass(frozen=True)
class Bench:
    """Images per second. `training` is the mean of two looks, one before all others, one after.

    `drift`: by which share these differed: no gain below it is sure. `tried`: the largest gain
    first. `stock`: of stock webdataset's loader, where it was asked for.
    """

    training: float
    drift: float
    ceiling: float
    loader: float
    step: float
    encode: float
    stock: float | None
    tried: Sequence[Tried]
    chart: str | None

    @property
    def best(self) -> Tried | None:
        """The knob that brings most; None where none is worth turning."""
        best = self.tried[0] if self.tried else None
        return best if best is not None and best.gain >= _WORTH else None

    @property
    def limit(self) -> str:
        """What holds training up, in words."""
        if self.loader < self.ceiling:
            return "reading and decoding"
        return "the network's steps"

    def bars(self) -> list[Bar]:
        """All paces, in the order of a picture."""
        plain = [
            Bar("training, as asked", self.training),
            Bar("ceiling: batches in memory", self.ceiling),
            Bar("loader alone", self.loader),
            Bar("step alone", self.step),
            Bar("encode", self.encode),
        ]
        if self.stock is not None:
            plain.append(Bar("stock webdataset, loader alone", self.stock))
        return [*plain, *(Bar(tried.flag, tried.pace, is_trial=True) for tried in self.tried)]

    def to_json(self) -> Json:
        """Plain data."""
        best = self.best
        return {**asdict(self), "best": None if best is None else best.flag, "limit": self.limit}


def run_bench(config: BenchConfig, seconds: float = SECONDS) -> Bench:
    """Times training, its parts, and training with each knob's other value; writes a chart."""
    dataset = Dataset.open(config.data, None, config.shards_below)
    asked = training_of(config)
    if not len(dataset):
        raise ConfigError(f"{config.data}: holds no images. Name a dataset that has some.")
    subject = Subject(dataset, asked, seconds)
    with (
        tempfile.TemporaryDirectory(prefix="vae-bench-") as cache,
        Progress("bench", None, "looks") as progress,
    ):
        before = training_pace(subject)
        ceiling, loader, step = (
            measure(subject) for measure in (ceiling_pace, loader_pace, step_pace)
        )
        encode = pace_of_encoding(build_vae(asked.model, asked.preprocess), dataset, seconds)
        progress.advance(5)
        found = list(_tried(subject, cache, progress))
        after = training_pace(subject)
        stock = stock_pace(subject) if config.compare else None
    now = (before + after) / 2
    tried = [Tried(flag, note, pace, pace / now) for flag, note, pace in found]
    bench = Bench(
        training=now,
        drift=abs(before - after) / now,
        ceiling=ceiling,
        loader=loader,
        step=step,
        encode=encode,
        stock=stock,
        tried=sorted(tried, key=lambda each: -each.gain),
        chart=storage.join(config.output, "bench.png") if config.output is not None else None,
    )
    if bench.chart is not None:
        headline = f"Training: {now:,.0f} images/s, held up by {bench.limit}"
        storage.publish(bench.chart, to_png(draw_bars, bench.bars(), headline=headline))
    return bench


def _tried(subject: Subject, cache: str, progress: Progress) -> Iterator[tuple[str, str, float]]:
    """Flag, note and pace of each knob; a cache begins empty for each."""
    for number, trial in enumerate(trials(subject, cache)):
        folder = trial.subject.config.loader.cache_folder
        asked = trial.subject
        if folder == cache:
            own = os.path.join(cache, str(number))
            loader = asked.config.loader.model_copy(update={"cache_folder": own})
            asked = asked.having(loader=loader)
        yield trial.flag, trial.note, training_pace(asked)
        progress.advance(1)


def training_of(config: BenchConfig) -> TrainConfig:
    """The training that is timed: in this process, of a run that nobody starts."""
    network, preprocess = config.network, config.preprocess
    if config.model is not None:
        vae, _ = load_named(config.model, config.storage, config.allow_custom)
        network, preprocess = vae.model_config, vae.preprocess
    return TrainConfig.model_validate(
        {
            **preprocess.model_dump(),
            "data": config.data,
            "run": "bench",
            "storage": config.storage,
            "workers": 0,
            "global_batch_size": config.global_batch_size,
            "flip": config.flip,
            "transform": config.transform,
            "precision": config.precision,
            "micro_batch_size": config.micro_batch_size,
            "exact": config.exact,
            "deterministic": config.deterministic,
            "model": network,
            "objective": config.objective,
            "loader": config.loader,
            "shards_below": config.shards_below,
        }
    )
