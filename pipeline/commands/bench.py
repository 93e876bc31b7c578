"""`jobs.bench`: why training is slow here, and the knobs that would help most."""

from dataclasses import asdict, dataclass
from statistics import fmean

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
    fill_cache,
    loader_pace,
    step_pace,
    training_pace,
)
from pipeline.pace.ranking import Ranking, Tried, rank
from pipeline.pace.stock import stock_pace
from pipeline.pace.trials import trials
from pipeline.progress import Progress
from pipeline.registry.named_models import load_named
from pipeline.vae import build_vae

SECONDS = 4.0
"""For each look: dozens of steps of a small model, and who asks why waits no five minutes."""


@dataclass(frozen=True)
class Bench:
    """Images per second, but for `ranking`. `stock`: of stock webdataset's, where it was asked for.

    `chart`: where the picture lies.
    """

    ranking: Ranking
    ceiling: float
    loader: float
    step: float
    encode: float
    stock: float | None
    chart: str | None

    @property
    def training(self) -> float:
        """As asked: the mean of all looks at it."""
        return fmean(self.ranking.looks)

    @property
    def best(self) -> Tried | None:
        """The knob that brings most and changes no number of the training."""
        return self.ranking.best(changes_training=False)

    @property
    def best_changing(self) -> Tried | None:
        """The knob that brings most of those with which it is another training."""
        return self.ranking.best(changes_training=True)

    @property
    def limit(self) -> str:
        """What holds training up, in words."""
        if self.loader < self.ceiling:
            return "reading and decoding"
        return "the network's steps"

    def bars(self) -> list[Bar]:
        """All paces, in the order of a picture: a knob's is its gain times that of training."""
        plain = [
            Bar("training, as asked", self.training),
            Bar("ceiling: batches in memory", self.ceiling),
            Bar("loader alone", self.loader),
            Bar("step alone", self.step),
            Bar("encode", self.encode),
        ]
        if self.stock is not None:
            plain.append(Bar("stock webdataset, loader alone", self.stock))
        now, tried = self.training, self.ranking.tried
        return [*plain, *(Bar(each.flag, each.gain * now, is_trial=True) for each in tried)]

    def to_json(self) -> Json:
        """Plain data."""
        told = asdict(self)
        return {
            **told.pop("ranking"),
            **told,
            "training": self.training,
            "drift": self.ranking.drift,
            "best": self.best and self.best.flag,
            "best_changing": self.best_changing and self.best_changing.flag,
            "limit": self.limit,
        }


def run_bench(config: BenchConfig, seconds: float = SECONDS) -> Bench:
    """Times training, its parts, and training with each knob's other value; writes a chart."""
    dataset = Dataset.open(config.data, None, config.shards_below)
    asked = training_of(config)
    if not len(dataset):
        raise ConfigError(f"{config.data}: holds no images. Name a dataset that has some.")
    if config.output is not None:  # Not found out after a minute.
        storage.refuse_file_above(storage.absolute(config.output), "--output")
    subject = Subject(dataset, asked, seconds)
    with (
        storage.temporary_folder("vae-bench-") as cache,
        Progress("bench", None, "looks") as progress,
    ):

        def look(at: Subject) -> float:
            if at.config.loader != asked.loader:
                fill_cache(at)
            pace = training_pace(at)
            progress.advance(1)
            return pace

        fill_cache(subject)
        ceiling, loader, step = (
            measure(subject) for measure in (ceiling_pace, loader_pace, step_pace)
        )
        encode = pace_of_encoding(build_vae(asked.model, asked.preprocess), dataset, seconds)
        progress.advance(4)
        ranking = rank(subject, trials(subject, str(cache)), look)
        stock = stock_pace(subject) if config.compare else None
    bench = Bench(
        ranking=ranking,
        ceiling=ceiling,
        loader=loader,
        step=step,
        encode=encode,
        stock=stock,
        chart=None if config.output is None else storage.join(config.output, "bench.png"),
    )
    if bench.chart is not None:
        headline = f"Training: {bench.training:,.0f} images/s, held up by {bench.limit}"
        storage.publish(bench.chart, to_png(draw_bars, bench.bars(), headline=headline))
    return bench


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
