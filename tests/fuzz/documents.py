"""Parsers of our own JSON: every document edited, spelled oddly and sealed again."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.data.manifest import Manifest, Places, ShardRecord, pointer_to, read_pointer
from pipeline.latent_scale import LatentScale
from pipeline.latents.receipt import RECEIPT, Receipt
from pipeline.latents.snapshot import Snapshot
from pipeline.latents.snapshot import read_pointer as read_store_pointer
from pipeline.packing.unit import UnitReceipt, UnitRow, read_receipt
from pipeline.vae import VAE, build_vae, bundle, load_bundle, save_bundle
from tests.fuzz.harness import Target
from tests.fuzz.mutations import FORGED, PATCHES, edited, patched, sealed, spelled
from tests.fuzz.seeds import SEEDS
from tests.support.small_store import encode, small_dataset, small_vae


def forged(document: bytes, forgery: Any) -> bytes:
    """A document after edits and patches, its checksum as it should be."""
    edits, patches = forgery
    value = json.loads(document)
    del value["checksum"]
    text = spelled(edited(value, edits)).encode(errors="surrogatepass")
    return sealed(patched(text, patches))


def document_targets(folder: Path) -> Iterator[Target]:
    """Of a dataset, a store and a bundle that are made in `folder`."""
    dataset = small_dataset(folder / "d", range(9))
    store = encode(small_vae(), dataset, folder / "store", columns=("label",))
    receipt = RECEIPT.encode(store.snapshot.shards[0].receipt.to_json())
    record = dataset.shards[0]
    manifest = Manifest(2, dataset.digest, (record, _removed(record)))

    def target(name: str, document: bytes, read: Callable[[bytes], object]) -> Target:
        return Target(name, FORGED, lambda f: read(forged(document, f)), SEEDS.get(name, ()))

    yield target("manifest", manifest.to_bytes(), _read_manifest)
    pointer = folder / "pointer/manifest.json"
    yield target(
        "pointer of a dataset", pointer_to(manifest).to_bytes(),
        lambda data: read_pointer(str(_put(pointer, data).parent)),
    )  # fmt: skip
    yield target(
        "receipt of latents", receipt, lambda data: Receipt.from_json(RECEIPT.parse(data, "x"), "x")
    )
    packed = folder / "packed.json"
    yield target(
        "receipt of a pack", _unit(record), lambda data: read_receipt(str(_put(packed, data)))
    )
    yield target("snapshot", store.snapshot.encode(), _read_snapshot)
    where = folder / "pointed"
    yield target(
        "pointer of a store", (folder / "store/store.json").read_bytes(),
        lambda data: read_store_pointer(str(_put(where / "store.json", data).parent)),
    )  # fmt: skip
    yield from _bundle_targets(folder / "bundle")


def _removed(record: ShardRecord) -> ShardRecord:
    return ShardRecord(**{**vars(record), "removed": (1, 3)})


def _put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def _read_manifest(data: bytes) -> None:
    manifest = Manifest.from_bytes(data, "x")
    if manifest.samples:
        places = Places(manifest.shards)
        assert places.find(0).shard < len(manifest.shards)
        assert places.find(manifest.samples - 1).shard < len(manifest.shards)


def _unit(record: ShardRecord) -> bytes:
    rows = [UnitRow("packed", "0" * 64, position=n, label="a") for n in range(record.samples)]
    rows.append(UnitRow("rejected", reason="corrupt", message="is no image"))
    return UnitReceipt({"": record}, tuple(rows)).to_bytes()


def _read_snapshot(data: bytes) -> None:
    """As a reader does: what it says of the whole, and of each part."""
    snapshot = Snapshot.from_bytes(data, "x")
    assert len(snapshot.statistics.std) == snapshot.identity.latent_shape[0]
    assert snapshot.path
    assert sum(part.rows for part in snapshot.parts) == snapshot.samples


def _bundle_targets(folder: Path) -> Iterator[Target]:
    torch.manual_seed(0)
    vae = build_vae(ModelConfig(kind="mlp", width=8), PreprocessConfig(image_size=8, channels=1))
    save_bundle(vae, folder, {"steps": 3, "elbo": -1.5})
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}

    def read_receipt_of(forgery: Any) -> None:
        _write(folder, whole)
        (folder / bundle.RECEIPT).write_bytes(forged(whole[bundle.RECEIPT], forgery))
        load_bundle(folder)
        bundle.bundle_scale(folder).per_channel(50)

    def read_section(name: str) -> Callable[[Any], object]:
        def read(forgery: Any) -> object:
            edits, patches = forgery
            text = spelled(edited(json.loads(whole[name]), edits)).encode(errors="surrogatepass")
            _write(folder, {**whole, name: patched(text, patches)}, vae)
            return load_bundle(folder)

        return read

    def read_weights(patches: Any) -> object:
        weights = patched(whole["model.safetensors"], patches)
        _write(folder, {**whole, "model.safetensors": weights}, vae)
        return load_bundle(folder)

    yield Target("bundle", FORGED, read_receipt_of, SEEDS.get("bundle", ()))
    yield Target("network of a bundle", FORGED, read_section("config.json"),
                 SEEDS.get("network of a bundle", ()))  # fmt: skip
    yield Target("preprocess", FORGED, read_section("preprocess.json"), SEEDS.get("preprocess", ()))
    yield Target("weights", PATCHES, read_weights, SEEDS.get("weights", ()))


def _write(folder: Path, files: dict[str, bytes], vae: VAE | None = None) -> None:
    """The files of a bundle; with `vae`, its receipt made to fit them."""
    if vae is not None:
        receipt: Any = bundle.BUNDLE.parse(files[bundle.RECEIPT], "x")
        receipt["files"] = {n: hashlib.sha256(files[n]).hexdigest() for n in bundle.FILES}
        configs = files["config.json"], files["preprocess.json"]
        receipt["digest"] = bundle._digest(bundle._weights(vae), *configs, LatentScale())
        files = {**files, bundle.RECEIPT: bundle.BUNDLE.encode(receipt)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
