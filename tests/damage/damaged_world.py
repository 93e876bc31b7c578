"""What is damaged: a dataset of three generations, its pack state, a run, a store and a bundle."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.config import PackConfig
from pipeline.data import Dataset
from pipeline.encoding.driver import finish, plan_encoding, publish
from pipeline.encoding.shard import encode_shard
from pipeline.packing.inventory import open_inventory
from pipeline.packing.ledger import ledger_rows, read_state
from pipeline.packing.pack import make_plan, pack
from pipeline.packing.plan import claim
from pipeline.packing.unit import pack_unit
from pipeline.packing.workers import Jobs
from pipeline.runs.outbox import Point
from pipeline.runs.result import TrainingResult
from pipeline.runs.run import Run
from pipeline.vae import load_bundle
from tests.support.small_store import identity_of, write_images
from tests.support.worlds import train, train_config

KINDS = ("dataset", "run", "store")
"""The folders of a world; a bundle lies in the run's."""


@dataclass
class World:
    """The folder of a world, and the files that were replaced on its way, as they were before."""

    folder: Path
    older: dict[str, bytes] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        return self.folder / name

    def keep_older(self) -> None:
        """Remembers every file as it is now: what is replaced later has an older version."""
        for kind in KINDS:
            for path in self.path(kind).rglob("*"):
                if path.is_file():
                    self._seen.setdefault(self.name_of(path), []).append(path.read_bytes())

    def finish(self) -> None:
        for name, versions in self._seen.items():
            path = self.folder / name
            if path.is_file() and versions[0] != path.read_bytes():
                self.older[name] = versions[0]

    def name_of(self, path: Path) -> str:
        return str(path.relative_to(self.folder))

    def __post_init__(self) -> None:
        self._seen: dict[str, list[bytes]] = {}


def pack_config(world: World, **changes: Any) -> PackConfig:
    given = {
        "source": (str(world.path("images")),), "output": str(world.path("dataset")),
        "holdout": 0.25, "shard_bytes": 60_000, "workers": 1, **changes,
    }  # fmt: skip
    return PackConfig(**given)


def make_world(folder: Path) -> World:
    """60 images in 8 x 8, packed, appended to and removed from; trained on, encoded twice."""
    torch.set_num_threads(1)
    world = World(folder)
    write_images(world.path("images"), range(40))
    (world.path("images") / "label0" / "broken.png").write_bytes(b"no image")
    pack(pack_config(world))
    _train(world, 4)
    _encode(world)
    world.keep_older()
    write_images(world.path("images"), range(60))
    pack(pack_config(world, append=True))
    world.keep_older()
    removed = Dataset.open(str(world.path("dataset/train"))).read_index(0).keys[1]
    pack(pack_config(world, source=(), append=True, remove=(removed,)))
    _train(world, 12)
    _encode(world)
    _leave_unfinished(world)
    world.finish()
    return world


def _train(world: World, steps: int) -> None:
    """A run of validations and checkpoints, its points unsent, ended by a result."""
    config = train_config(
        world.path("dataset/train"), world.folder, "run", steps=steps, checkpoint_every=4,
        evaluate_every=4, holdout=str(world.path("dataset/holdout")),
    )  # fmt: skip
    ended = train(config)[0]
    run = Run.at(config)
    unsent = run.keep_points([Point("elbo", steps, 1_700_000_000_000, {"elbo": -1.0})])
    terms = {"elbo": -1.5}
    run.finish(
        TrainingResult(
            run.url, None, "done", steps, 24 * steps, 0, False, {}, -1.0, steps, terms, terms, None,
            None, run.path("bundle"), ended["digest"], unsent,
        )
    )  # fmt: skip


def _encode(world: World) -> None:
    vae = load_bundle(world.path("run/bundle")).eval()
    dataset, url = Dataset.open(str(world.path("dataset/train"))), str(world.path("store"))
    identity = identity_of(vae, columns=("label",))
    plan = plan_encoding(url, dataset, identity)
    for number in plan.todo:
        encode_shard(vae, dataset, dataset.shards[number], identity, url, threads=1)
    snapshot = finish(url, dataset, identity, plan.known, {})
    publish(url, snapshot, data=dataset.url, model=str(world.path("run/bundle")))


def _leave_unfinished(world: World) -> None:
    """A pack that was killed after its first unit: a plan and a unit's receipt."""
    write_images(world.path("images"), range(80))
    config, output = pack_config(world, append=True), str(world.path("dataset"))
    state = read_state(output)
    assert state is not None
    with open_inventory() as inventory:
        inventory.ledger.put(ledger_rows(output, state))
        plan = claim(output, make_plan(config, state, inventory, state.generation + 1))
        pack_unit(Jobs(config, output, plan, None)[0])


def copy_world(world: World, folder: Path) -> World:
    """A copy to damage. A run and a store name their folder, so they are read where they were."""
    shutil.copytree(world.folder, folder)
    return World(folder, dict(world.older))
