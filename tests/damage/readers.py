"""Everything that reads a world: what each gives, to compare a damaged world's with the whole's.

A reader returns a dictionary of parts. A part that says that it is bad (a masked sample, say) is
`None`; a reader that refuses raises `PipelineError`.
"""

import hashlib
import io
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from pipeline.config import TrainConfig
from pipeline.data import Dataset, Loader
from pipeline.encoding.driver import is_finished, plan_encoding
from pipeline.errors import PipelineError, RunError
from pipeline.latents import LatentStore, verify_store
from pipeline.latents.loader import LatentLoader
from pipeline.latents.snapshot import read_pointer
from pipeline.packing.ledger import read_ledger, read_state
from pipeline.packing.plan import find_plan
from pipeline.packing.unit import read_receipt, receipt_url
from pipeline.packing.verify_dataset import verify_dataset
from pipeline.registry.named_models import finished_run
from pipeline.runs.checkpoint import newest_checkpoint
from pipeline.runs.goodput import _newest
from pipeline.runs.history import read_kl_per_dimension, read_moments, read_validations
from pipeline.runs.lost_files import refuse_lost_work
from pipeline.runs.run import Run, Start
from pipeline.vae import load_bundle
from tests.damage.damaged_world import World
from tests.support.worlds import train_config

Reader = Callable[[World], dict[str, Any]]


def digest(value: Any) -> str:
    """Of anything that is made of tensors and plain data."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(
            value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()
    if isinstance(value, dict):
        return digest("|".join(f"{key}={digest(item)}" for key, item in value.items()))
    if isinstance(value, list | tuple):
        return digest("|".join(digest(item) for item in value))
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _loaded(dataset: Dataset) -> dict[str, Any]:
    with closing(
        Loader(
            dataset, global_batch_size=16, image_size=8, shuffle=False, channels=1, threads=1,
            columns=("label",),
        )
    ) as loader:  # fmt: skip
        found: dict[str, Any] = {"samples": len(dataset)}
        for batch in loader:
            for slot, key in enumerate(batch.keys):
                if key:
                    good = bool(batch.valid[slot])
                    found[key] = digest([batch.images[slot], batch.columns["label"][slot]])
                    found[key] = found[key] if good else None
        return found


def read_train(world: World) -> dict[str, Any]:
    return _loaded(Dataset.open(str(world.path("dataset/train"))))


def read_holdout(world: World) -> dict[str, Any]:
    return _loaded(Dataset.open(str(world.path("dataset/holdout"))))


def read_pinned(world: World) -> dict[str, Any]:
    """The generation that the run began with."""
    pins = Run(str(world.path("run"))).pins()
    if pins is None:  # As whoever continues it says.
        raise RunError("no run.json")
    return _loaded(Dataset.open(str(world.path("dataset/train")), pins.dataset))


def read_pack_state(world: World) -> dict[str, Any]:
    output = str(world.path("dataset"))
    state = read_state(output)
    rows = read_ledger(output, state)
    return {"state": digest(repr(state)), "rows": digest(repr(sorted(rows.items())))}


def read_plan(world: World) -> dict[str, Any]:
    """What a killed pack left: lost, it is made again."""
    output = str(world.path("dataset"))
    with tempfile.TemporaryDirectory() as folder:
        plan = find_plan(output, 4, Path(folder))
        if plan is None:
            return {"plan": None, "receipt": None}
        found = {**vars(plan), "path": None, "digest": None}
        units = [plan.unit(number) for number in range(plan.units)]
    try:
        receipt = digest(repr(read_receipt(receipt_url(output, 4, plan.digest, 0))))
    except PipelineError:
        receipt = None
    return {"plan": digest(repr([sorted(found.items()), units])), "receipt": receipt}


def verified_dataset(world: World) -> dict[str, Any]:
    for split in ("train", "holdout"):
        _whole(verify_dataset(str(world.path(f"dataset/{split}")), threads=1))
    return {}


def _whole(problems: list[str]) -> None:
    if problems:
        raise PipelineError("; ".join(problems))


def _config(world: World) -> TrainConfig:
    return train_config(
        world.path("dataset/train"), world.folder, "run", steps=16, checkpoint_every=4,
        evaluate_every=4, holdout=str(world.path("dataset/holdout")),
    )  # fmt: skip


def continue_run(world: World) -> dict[str, Any]:
    """What the same command would go on with: checked as it does, in its order."""
    config = _config(world)
    run = Run.at(config)
    every = config.checkpoint_every
    refuse_lost_work(run, steps=1, checkpoint_every=every, keeps_best=True, begin_anew=False)
    pins = run.pins()
    assert pins is not None, "refuse_lost_work has seen it"
    run.open(config, pins)
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    best, ended = load_bundle(run.path("best")), run.result()
    points = run.kept_points(ended.unsent if ended else None)
    return {
        "pins": pins, "checkpoint": digest(vars(checkpoint)), "points": digest(points),
        "best": digest([dict(best.state_dict()), best.metadata]),
    }  # fmt: skip


def read_run(world: World) -> dict[str, Any]:
    """What pictures, reports and evaluation read of a run."""
    url = str(world.path("run"))
    run = Run(url)
    found = finished_run(url, "/nowhere")
    if found is None:
        raise RunError(f"{url}: is no finished run")  # As `load_named` says.
    vae = load_bundle(found.bundle, digest=found.digest)
    validations = read_validations(run)
    moments = read_moments(run, validations, 9)
    return {
        "config": digest(repr(found.config)), "result": digest(repr(run.result())),
        "bundle": digest([dict(vae.state_dict()), vae.metadata]),
        "validations": digest(repr(validations)),
        "moments": digest([[m.originals, m.reconstructions] for m in moments]),
        "kl": digest([read_kl_per_dimension(run, v) for v in validations]),
    }  # fmt: skip


def read_time(world: World) -> dict[str, Any]:
    """Where its seconds went: a tally that can't be read is a warning, and counts as lost."""
    run = Run(str(world.path("run")))
    return {
        "tally": repr(_newest(run, Start(9))), "claimed": run.claimed_at(Start(1)),
        "newest": run.newest_start(),
    }  # fmt: skip


def _latents(store: LatentStore) -> dict[str, Any]:
    found: dict[str, Any] = {"samples": len(store), "mean": store.mean, "std": store.std}
    for batch in store.batches():
        tensors = {name: torch.tensor(value) for name, value in batch.tensors.items()}
        for row, key in enumerate(batch.keys):
            values = [tensors[name][row] for name in sorted(tensors)]
            found[key] = digest([*values, batch.columns["label"][row]])
    return found


def read_store(world: World) -> dict[str, Any]:
    return _latents(LatentStore.open(str(world.path("store"))))


def read_in_order(world: World) -> dict[str, Any]:
    """As a trainer reads it: the image loader's order."""
    store = LatentStore.open(str(world.path("store")))
    loader = LatentLoader(store, global_batch_size=8, sample=True)
    return {
        str(batch.index): digest([batch.latents, batch.keys, batch.valid, batch.columns])
        for batch in loader
    }


def encode_again(world: World) -> dict[str, Any]:
    """What the same jobs.encode would find to do: more is fine, less is not."""
    store, dataset = str(world.path("store")), Dataset.open(str(world.path("dataset/train")))
    snapshot = LatentStore.open(store).snapshot
    plan = plan_encoding(store, dataset, snapshot.identity)
    pointer = read_pointer(store)
    assert pointer is not None
    finished = is_finished(store, pointer, dataset.digest, snapshot.identity.digest)
    left = {shard.sha256 for n, shard in enumerate(dataset.shards) if n in plan.todo}
    known = {s.receipt.source_sha256: repr(s.receipt) for s in snapshot.shards}
    return {
        "finished": finished or None,
        **{sha: None if sha in left else repr(plan.known[sha]) for sha in known},
    }


def verified_store(world: World) -> dict[str, Any]:
    _whole(verify_store(str(world.path("store"))))
    return {}


READERS: dict[str, tuple[Reader, ...]] = {
    "dataset": (read_train, read_holdout, read_pinned, read_pack_state, read_plan),
    "run": (continue_run, read_run, read_time, read_pinned),
    "store": (read_store, read_in_order, encode_again),
}
VERIFIERS: dict[str, Reader] = {"dataset": verified_dataset, "store": verified_store}


def outcome(reader: Reader, world: World) -> tuple[str, dict[str, Any]]:
    """`read`, `refused` or `crashed`, with the parts or what was said."""
    try:
        return "read", reader(world)
    except PipelineError as error:
        return "refused", {"said": str(error)[:300]}
    except Exception as error:  # noqa: BLE001 - it is what is looked for
        import traceback

        told = io.StringIO()
        traceback.print_exception(error, file=told)
        return "crashed", {"said": f"{type(error).__name__}: {error}", "trace": told.getvalue()}
