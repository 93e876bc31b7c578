"""`jobs.encode`: a dataset and a model become a latent store, by Ray actors or in this process."""

import logging
import math
import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial

import torch

from pipeline import storage
from pipeline.cluster.ray_cluster import cluster_resources, ray_cluster
from pipeline.commands.encode_cost import EncodingCost, probe
from pipeline.commands.encode_identity import allow_another, identity_of
from pipeline.config import EncodeConfig
from pipeline.data import Dataset
from pipeline.encoding.also import load_again
from pipeline.encoding.driver import (
    DriveReport,
    EncodePlan,
    ShardDone,
    ThreadCrew,
    current_of,
    drive,
    drop_orphans,
    finish,
    is_finished,
    plan_encoding,
    publish,
)
from pipeline.encoding.precision import Rounding, Unmeasured, try_bf16
from pipeline.encoding.report import reconstruct, report_folder, report_of, to_markdown
from pipeline.encoding.schedule import ShardSchedule
from pipeline.encoding.shard_encoder import on_device, shard_encoder
from pipeline.encoding.tiles import tiling_cost
from pipeline.encoding.under_way import Counted, UnderWay
from pipeline.errors import PipelineError, StorageError, StoreError
from pipeline.figures.canvas import to_png
from pipeline.figures.store import draw_channels, draw_decoded
from pipeline.latents.identity import EncodeOptions, Identity
from pipeline.latents.marks import begin, end, withdraw
from pipeline.latents.receipt import ATTEMPTS
from pipeline.latents.snapshot import Pointer, Snapshot, read_pointer
from pipeline.latents.store import LatentStore
from pipeline.latents.stored_shard import StoredShard
from pipeline.machine import Need, free_memory_bytes, refuse_beyond_memory
from pipeline.masking import printable
from pipeline.packing.leftovers import refuse_inside_sources
from pipeline.progress import Progress
from pipeline.registry.catalogue import note_store
from pipeline.registry.models import SCHEME, RegisteredModel, resolve
from pipeline.registry.named_models import DEFAULT_RUNS, load_named
from pipeline.tracking.encoding_metrics import EncodingEnd, EncodingMetrics, tell_outcome
from pipeline.vae import VAE

logger = logging.getLogger(__name__)

_REPORT_IMAGES = 16
"""Images that the report decodes again: a sheet that one sees at a glance."""

_TILED_IMAGES = 4
"""Of those, as many are encoded whole and in tiles."""


@dataclass(frozen=True)
class Encoded:
    """What a store holds after an encoding, and under `now` what this one did."""

    store: str
    samples: int
    failed: int
    filtered: int
    shards: int
    encoded: int
    now: "Now"
    report: str
    """Where the snapshot's report lies, which lists the failed images."""
    images_per_second: float
    retries: int
    identity: str
    snapshot: str
    complete: bool
    lost: tuple[tuple[str, str], ...] = ()
    """Shards that are not in it, each with the reason."""
    lost_samples: int = 0

    def __repr__(self) -> str:
        whole = "whole" if self.complete else f"without {self.lost_samples:,} images"
        return printable(
            f"Store {storage.shown(self.store)}: {self.samples:,} latents in {self.shards:,} "
            f"shards, {self.failed:,} images failed, {self.filtered:,} left out; {whole}\n"
            f"{self.now.read:,} images read now, {self.now.encoded:,} of them encoded\n"
            f"identity {self.identity}"
        )

    def as_place(self) -> str:
        """Where the store is."""
        return self.store


@dataclass(frozen=True)
class Now:
    """read = encoded + failed + filtered + superseded: the images of the shards read this time."""

    read: int
    encoded: int
    failed: int
    filtered: int
    superseded: int
    """Removed from the dataset, or replaced: they count nowhere."""


@dataclass(frozen=True)
class _Asked:
    """What an encoding begins with."""

    dataset: Dataset
    registered: RegisteredModel | None
    model: str
    vae: VAE
    identity: Identity
    pointer: Pointer | None
    """The store's, before."""


NOT_ASKED = "not asked for (`--limit`)"
"""Why a shard that nothing is wrong with is not in the snapshot."""


def run_encoding(config: EncodeConfig) -> Encoded:
    """Encodes what has no receipt yet and publishes the snapshot."""
    store, started = storage.absolute(config.output), time.time()
    storage.refuse_file_above(store, "--output")
    refuse_inside_sources(store, storage.absolute(config.data))
    try:
        with ExitStack() as held:
            result = _run_encoding(config, store, held)
    except PipelineError:
        tell_outcome(store, config.tracking, started, None)
        raise
    end = EncodingEnd(result.complete, result.now.read, result.failed, len(result.lost))
    tell_outcome(store, config.tracking, started, end)
    return result


def cost_of_encoding(config: EncodeConfig) -> EncodingCost:
    """What `run_encoding` would cost; nothing is written."""
    store = storage.absolute(config.output)
    storage.refuse_file_above(store, "--output")
    refuse_inside_sources(store, storage.absolute(config.data))
    asked = _asked(config, store, None)
    _check_store(config, store, asked)
    plan = plan_encoding(store, asked.dataset, asked.identity, config.limit)
    lanes = _window(config)
    also = load_again(asked.identity.options.also, asked.vae.device)
    return probe(
        config, asked.vae, asked.dataset, identity=asked.identity, plan=plan, lanes=lanes, also=also
    )


def _asked(config: EncodeConfig, store: str, held: ExitStack | None) -> _Asked:
    """What is asked for; `held` keeps what trying it opens, None: it is tried in this process."""
    dataset = Dataset.open(config.data, None, config.shards_below)
    # An alias is asked for once: what it means may change while the encoding runs.
    registered = resolve(config.model) if config.model.startswith(SCHEME) else None
    asked = registered.uri if registered else config.model
    vae, run = load_named(asked, DEFAULT_RUNS, config.allow_custom)
    vae, model = on_device(vae.eval()), storage.absolute(run.bundle) if run else asked
    pointer = read_pointer(store)

    def tried(options: EncodeOptions) -> Rounding | Unmeasured:
        if held is None or config.actors == 0:
            return try_bf16(vae, dataset, options, vae.device)
        return _try_on_ray(config, vae.to("cpu"), dataset, options, held)

    identity = identity_of(vae, config, dataset, pointer, tried)
    return _Asked(dataset, registered, model, vae, identity=identity, pointer=pointer)


def _try_on_ray(
    config: EncodeConfig, vae: VAE, dataset: Dataset, options: EncodeOptions, held: ExitStack
) -> Rounding | Unmeasured:
    """Where the actors will be; the cluster stays joined for them."""
    held.enter_context(ray_cluster(config.actors))
    from pipeline.cluster.encoding_crew import ActorResources
    from pipeline.cluster.precision_task import try_bf16_on_ray

    resources = ActorResources(config.cores, _gpus(config))
    return try_bf16_on_ray(vae, dataset, options, resources)


def _gpus(config: EncodeConfig) -> float:
    """Of one actor, on the joined cluster."""
    if config.gpus is not None:
        return config.gpus
    return 1.0 if cluster_resources().get("GPU", 0) else 0.0


def _run_encoding(config: EncodeConfig, store: str, held: ExitStack) -> Encoded:
    asked = _asked(config, store, held)
    dataset, identity, vae = asked.dataset, asked.identity, asked.vae
    pointer = asked.pointer
    if pointer is not None and is_finished(store, pointer, dataset.digest, identity.digest):
        logger.info("%s holds all of %s already", store, dataset.url)
        return _result(store, pointer, DriveReport(), None)
    _check_store(config, store, asked)
    mark = begin(store, identity.digest, dataset.digest)
    try:
        plan = plan_encoding(store, dataset, identity, config.limit)
        drop_orphans(store, identity.digest, plan)
        report = (
            _encode(config, vae, dataset, identity=identity, store=store, plan=plan)
            if plan.todo
            else DriveReport()
        )
    except PipelineError:
        withdraw(mark)
        raise
    lost = {number: reasons[-1] for number, reasons in report.quarantined.items()}
    lost |= dict.fromkeys(plan.skipped, NOT_ASKED)
    known = {**plan.known, **{d.receipt.source_sha256: d.receipt for d in report.done}}
    before, snapshot = read_pointer(store), finish(store, dataset, identity, known, lost)
    if snapshot.filtered and not (snapshot.samples or snapshot.failed or snapshot.lost):
        withdraw(mark)
        raise StoreError(
            f"none of the {snapshot.filtered:,} images meets --where {identity.options.where}. "
            "Nothing was published: the store is as it was. Give another `--where EXPRESSION`."
        )
    _report(vae, dataset, LatentStore(store, snapshot))
    since = before.number if before else 0
    pointer = publish(store, snapshot, data=dataset.url, model=asked.model, since=since)
    end(mark, whole=snapshot.complete)
    if asked.registered:
        note_store(asked.registered, store)
    if plan.todo:
        _keep_attempt(store, identity, report)
    return _result(store, pointer, report, snapshot)


def _check_store(config: EncodeConfig, store: str, asked: _Asked) -> None:
    """Refuses a place that is not this encoding's, before anything is written there."""
    present = current_of(store, asked.pointer, asked.dataset)
    if present is not None and asked.pointer is not None:
        allow_another(store, asked.pointer, present.identity, asked.identity, config)


def _encode(
    config: EncodeConfig,
    vae: VAE,
    dataset: Dataset,
    identity: Identity,
    store: str,
    plan: EncodePlan,
) -> DriveReport:
    # Actors get it from the CPU: they may have a GPU where this process has none, or the reverse.
    shipped = vae if config.actors == 0 else vae.to("cpu")
    make = partial(
        shard_encoder,
        shipped,
        dataset,
        identity,
        store=store,
        threads=max(1, int(config.cores)),
    )
    window = _window(config)
    # A worker that dies has more often met a lost node than a bad shard: 10 deaths for 3 tries.
    deaths = 3 * config.attempts + 1
    if config.actors == 0 or not os.environ.get("RAY_ADDRESS"):
        _refuse_beyond_memory(config, vae, len(plan.todo))
    schedule = ShardSchedule(plan.todo, config.attempts, deaths, window)
    images = sum(dataset.shards[number].samples for number in plan.todo)
    with (
        Progress("encode", images, "images") as progress,
        closing(EncodingMetrics(store, config.tracking, images)) as metrics,
    ):
        counted = Counted(progress)

        def on_done(event: ShardDone) -> None:
            counted.finished += event.receipt.samples
            metrics.done(event, schedule)

        if config.actors == 0:
            under_way = UnderWay()
            with closing(ThreadCrew(make(under_way), window, under_way)) as threads:
                return drive(schedule, threads, on_done, counted.look)
        with ray_cluster(config.actors):
            from pipeline.cluster.encoding_crew import ActorResources, RayCrew

            actors = min(config.actors, len(plan.todo))
            resources = ActorResources(config.cores, _gpus(config), window)
            with closing(RayCrew(make, actors, resources)) as crew:
                return drive(schedule, crew, on_done, counted.look)


def _refuse_beyond_memory(config: EncodeConfig, vae: VAE, shards: int) -> None:
    """Raises `ConfigError` where the batches that are in work on this machine surely don't fit.

    Actors on a cluster's nodes end with what torch says of their own memory.
    """
    actors = min(max(1, config.actors), shards)
    lanes = min(actors * _window(config), shards)
    shape = vae.image_shape
    weights = actors * 4 * sum(weight.numel() for weight in vae.parameters())
    needs = [
        Need(
            f"{lanes} batches of {config.batch_size:,} images of {' x '.join(map(str, shape))}",
            # As they are read, and as the network takes them.
            lanes * config.batch_size * math.prod(shape) * (1 + 4),
            "a smaller `--batch-size N` (another identity), or fewer `--actors N`",
        ),
        Need(f"the model of {actors} actors", weights, "fewer `--actors N`"),
    ]
    refuse_beyond_memory(needs, free_memory_bytes())


def _window(config: EncodeConfig) -> int:
    """Shards that one actor works on at a time."""
    # One more than there are cores, while one waits for storage; past 8 only memory grows.
    return min(8, int(config.cores) + 1)


def _report(vae: VAE, dataset: Dataset, store: LatentStore) -> None:
    """The snapshot's report, as JSON, Markdown and pictures; made before the pointer names it."""
    shown = tiling = None
    if len(store):
        shown = reconstruct(on_device(vae), dataset, store, _REPORT_IMAGES)
    if shown is not None:
        tile = store.snapshot.identity.options.tile
        tiling = tiling_cost(vae, shown.originals[:_TILED_IMAGES], tile)
    report = report_of(store.snapshot, shown, tiling)
    files = {
        "report.json": storage.canonical_json(asdict(report)),
        "report.md": to_markdown(report).encode(),
    }
    if shown is not None:
        files["reconstructions.png"] = to_png(draw_decoded, shown)
        files["channels.png"] = to_png(draw_channels, store.snapshot.statistics)
    try:
        for name, data in files.items():
            storage.publish(storage.join(store.url, report_folder(store.snapshot.path), name), data)
    except StorageError as error:
        # A full disk has room for the snapshot, which says what is lost, sooner than for pictures.
        logger.warning("the snapshot has no whole report: %s", error)


def _keep_attempt(store: str, identity: Identity, report: DriveReport) -> None:
    """What differs between two honest runs: who, when, how fast."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    record = {
        "identity": identity.digest,
        "host": socket.gethostname(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "images": report.images,
        "seconds": round(report.seconds, 3),
        "retries": report.retries,
        "quarantined": {str(n): reasons for n, reasons in report.quarantined.items()},
    }
    url = storage.join(store, ATTEMPTS, f"{stamp}-{os.getpid()}.json")
    storage.publish(url, storage.canonical_json(record))


def _now(report: DriveReport, shards: Sequence[StoredShard]) -> Now:
    done = {event.receipt.source_sha256 for event in report.done}
    fresh = [shard for shard in shards if shard.receipt.source_sha256 in done]
    read = sum(shard.receipt.samples for shard in fresh)
    # An image that failed in several sizes is one.
    failed = sum(len({sample.position for sample in shard.failed}) for shard in fresh)
    filtered = sum(shard.filtered for shard in fresh)
    superseded = sum(len(shard.removed) for shard in fresh)
    return Now(read, read - failed - filtered - superseded, failed, filtered, superseded)


def _result(
    store: str, pointer: Pointer, report: DriveReport, snapshot: Snapshot | None
) -> Encoded:
    """Without `snapshot` of an encoding that had nothing to do."""
    lost = snapshot.lost if snapshot and not pointer.complete else ()
    lost_samples = sum(shard.samples for shard in lost)
    now = _now(report, snapshot.shards if snapshot else ())
    return Encoded(
        store=store,
        samples=pointer.samples,
        failed=pointer.failed - lost_samples,
        filtered=pointer.filtered,
        shards=pointer.shards,
        encoded=now.encoded,
        now=now,
        report=storage.join(store, report_folder(pointer.snapshot), "report.md"),
        images_per_second=round(report.images / report.seconds, 1) if report.seconds else 0.0,
        retries=report.retries,
        identity=pointer.identity,
        snapshot=pointer.snapshot,
        complete=pointer.complete,
        lost=tuple((shard.shard, shard.reason) for shard in lost),
        lost_samples=lost_samples,
    )
