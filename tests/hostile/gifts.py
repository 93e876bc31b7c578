"""What a stranger hands over: a dataset, a model, a store, a registry, and how each is made evil.

Checksums fit whatever was changed: whoever writes data writes checksums that fit.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline import storage
from pipeline.config import ModelConfig, PackConfig, PreprocessConfig
from pipeline.data import Dataset
from pipeline.encoding.driver import finish, plan_encoding, publish
from pipeline.encoding.shard import encode_shard
from pipeline.latent_scale import LatentScale
from pipeline.packing.pack import pack
from pipeline.tracking.mlflow_client import mlflow_client
from pipeline.vae import build_vae, bundle, load_bundle, save_bundle
from tests.fuzz.mutations import sealed
from tests.support.small_store import identity_of, write_images

EVIL = """from pathlib import Path
from torch import nn
(Path(__file__).parent / "RAN").touch()
class Net(nn.Module):
    def __init__(self, *given): (Path(__file__).parent / "BUILT").touch()
"""


@dataclasses.dataclass(frozen=True)
class World:
    """A folder `home`, filled anew for each case, and the kept one that addresses in files name."""

    kept: Path
    home: Path

    def fill(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.kept, self.home)


def make_world(place: Path) -> World:
    """`photos`, `data`, `model`, `store`, `secret` and a module `evil` in the current folder."""
    world = World(place / "kept", place / "home")
    kept = world.kept
    write_images(kept / "photos", range(8))
    pack(PackConfig(source=(str(kept / "photos"),), output=str(kept / "data"), workers=1))
    torch.manual_seed(0)
    read = PreprocessConfig(image_size=8, channels=1)
    save_bundle(build_vae(ModelConfig(kind="mlp", width=8), read), kept / "model", {})
    vae, dataset = load_bundle(kept / "model"), Dataset.open(str(kept / "data"))
    url, identity = str(kept / "store"), identity_of(vae)
    for number in plan_encoding(url, dataset, identity).todo:
        encode_shard(vae, dataset, dataset.shards[number], identity, url, threads=1)
    known = plan_encoding(url, dataset, identity).known
    snapshot = finish(url, dataset, identity, known, {})
    publish(url, snapshot, data=dataset.url, model=str(kept / "model"))
    (kept / "secret").mkdir()
    (kept / "secret/id_rsa").write_text("SECRET-OF-THE-USER\n" * 99)
    (kept / "evil.py").write_text(EVIL)
    (kept / "tmp").mkdir()
    _register(kept)
    world.fill()
    return world


def _register(kept: Path) -> None:
    """Versions of `gift` whose sources a stranger chose; the last one leads out by links."""
    client = mlflow_client(f"sqlite:///{kept}/mlflow.db")
    experiment = client.create_experiment("gifts", artifact_location=f"file://{kept}/artifacts")
    run = client.create_run(experiment)
    client.create_registered_model("gift")
    for source in SOURCES:
        client.create_model_version("gift", source, run.info.run_id)
    place = Path(run.info.artifact_uri.removeprefix("file://")) / "linked"
    (place / "data/bundle").mkdir(parents=True)
    for path in (kept / "model").iterdir():
        shutil.copy(path, place / "data/bundle" / path.name)
    (place / "data/bundle/config.json").unlink()
    os.symlink(kept / "secret/id_rsa", place / "data/bundle/config.json")
    client.create_model_version("gift", f"{run.info.artifact_uri}/linked", run.info.run_id)
    for name, root in ELSEWHERE.items():
        made = client.create_run(client.create_experiment(name, artifact_location=root)).info
        client.create_model_version("gift", f"{made.artifact_uri}/m", made.run_id)


SOURCES = (
    "/etc", "file:///dev/zero", "ftp://127.0.0.1:9/x", "http://127.0.0.1:9/x",
    "file:///tmp/../etc", "s3://other/models", "reference::file:///etc/passwd",
)  # fmt: skip
LINKED = len(SOURCES) + 1
ELSEWHERE = {
    "elsewhere": "mlflow-artifacts://127.0.0.1:9/art", "user": "mlflow-artifacts://u@127.0.0.1/art",
}  # fmt: skip
"""Experiments, and the servers to which MLflow's client would send its token for artifacts."""


def rewrite(path: Path, change: Callable[[Any], object]) -> bytes:
    """A document with something changed, sealed again; its bytes."""
    value = json.loads(path.read_bytes())
    change(value)
    del value["checksum"]
    data = sealed(storage.canonical_json(value))
    path.write_bytes(data)
    return data


def in_shard(**changes: Any) -> Callable[[Path], None]:
    """Changes of the record of the dataset's first shard, by a manifest and a pointer that fit."""

    def plant(home: Path) -> None:
        def change(value: Any) -> None:
            value["shards"][0].update(changes)
            value["samples"] = sum(shard["samples"] for shard in value["shards"])

        (manifest,) = (home / "data/manifests").iterdir()
        data = rewrite(manifest, change)
        digest = storage.checksum_of(data)
        manifest.rename(manifest.with_name(f"{digest}.json"))
        total = json.loads(data)["samples"]
        rewrite(home / "data/manifest.json", lambda v: v.update(digest=digest, samples=total))

    return plant


def in_index(data: bytes) -> Callable[[Path], None]:
    """Other bytes as the first shard's index, whose checksum the manifest has."""

    def plant(home: Path) -> None:
        (index,) = (home / "data/index").iterdir()
        index.write_bytes(data)
        in_shard(index_sha256=hashlib.sha256(data).hexdigest())(home)

    return plant


def in_pointer(**changes: Any) -> Callable[[Path], None]:
    return lambda home: _ignore(rewrite(home / "data/manifest.json", lambda v: v.update(changes)))


def in_pack_state(**changes: Any) -> Callable[[Path], None]:
    """Of what packing keeps: pack.json and the newest generation of the ledger."""

    def plant(home: Path) -> None:
        for name in ("pack.json", "ledger/000001.json"):
            rewrite(home / "data" / name, lambda value: value.update(changes))

    return plant


def in_store_pointer(**changes: Any) -> Callable[[Path], None]:
    def plant(home: Path) -> None:
        for name in ("store.json", "published/000001.json"):
            rewrite(home / "store" / name, lambda value: value.update(changes))

    return plant


def in_snapshot(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """A change of the store's snapshot, which its pointers then name by its checksum."""

    def plant(home: Path) -> None:
        (path,) = (home / "store/snapshots").rglob("*.json")
        data = rewrite(path, change)
        in_store_pointer(sha256=hashlib.sha256(data).hexdigest())(home)

    return plant


def in_part(**changes: Any) -> Callable[[Path], None]:
    """Of the first part of the store's first shard."""
    return in_snapshot(lambda v: v["shards"][0]["receipt"]["parts"][0].update(changes))


def in_bundle(**files: bytes | dict[str, Any]) -> Callable[[Path], None]:
    """Files of `model` by their stems: other bytes, or other values; checksums and digest fit."""

    def plant(home: Path) -> None:
        folder = home / "model"
        vae = load_bundle(folder)
        receipt = json.loads((folder / "bundle.json").read_bytes())
        for stem, said in files.items():
            name = next(name for name in bundle.FILES if name.startswith(f"{stem}."))
            if isinstance(said, dict):
                said = json.dumps({**json.loads((folder / name).read_bytes()), **said}).encode()
            (folder / name).write_bytes(said)
            receipt["files"][name] = hashlib.sha256(said).hexdigest()
        config, read = (
            (folder / "config.json").read_bytes(),
            (folder / "preprocess.json").read_bytes(),
        )
        receipt["digest"] = bundle._digest(bundle._weights(vae), config, read, LatentScale())
        rewrite(folder / "bundle.json", lambda value: value.update(receipt))

    return plant


def instead(name: str, put: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else in place of a file of the world."""

    def plant(home: Path) -> None:
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        put(path)

    return plant


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    """A file with this content."""
    data = content.encode() if isinstance(content, str) else content
    return instead(name, lambda path: path.write_bytes(data))


def _ignore(_: object) -> None:
    return None
