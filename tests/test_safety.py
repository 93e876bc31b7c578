"""Hostile files meet the jobs that would read them: one clear error each, and nothing is run."""

import dataclasses
import gzip
import hashlib
import importlib
import io
import json
import pickle
import struct
import tarfile
import typing
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import safetensors.torch
import torch

from jobs.command import run_job
from pipeline import storage
from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.data.manifest import CURRENT, Manifest, ShardRecord, commit, read_current
from pipeline.latents.snapshot import STORE
from pipeline.packing.shard_writer import Sample, ShardWriter
from pipeline.runs.checkpoint import RECEIPT, newest_checkpoint
from pipeline.runs.run import Run
from pipeline.submission.ray_jobs import RayJobs
from pipeline.vae import build_vae, bundle, save_bundle
from tests.support.small_store import encode, small_dataset, small_vae

DEEP = b"[" * 100_000 + b"]" * 100_000


class Poison:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    """What a poison would make; nothing ever does."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists(), "code that came with a file was run"


@pytest.fixture
def job(capsys) -> Callable[..., tuple[int, str]]:
    """Runs `python -m jobs.NAME FLAGS` here: its exit code, and what it said on stderr."""

    def run(name: str, *flags: str) -> tuple[int, str]:
        main = importlib.import_module(f"jobs.{name}").main
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_job(typing.get_type_hints(main)["config"], main, flags)
        return ended.value.code, capsys.readouterr().err

    return run


@pytest.fixture
def refused(job) -> Callable[..., str]:
    """Runs a job that must end with one error of ours, and returns it."""

    def run(name: str, *flags: str) -> str:
        code, said = job(name, *flags)
        assert code in (1, 2), said
        errors = [line for line in said.splitlines() if "Error: " in line]
        assert len(errors) == 1, said
        assert "Traceback" not in said
        assert len(said) < 3000, "a clear error is short"
        return said

    return run


@pytest.fixture
def forge(tmp_path) -> Callable[..., Path]:
    """A bundle in which files were replaced, with the checksums and the digest to match."""

    def make(**files: bytes) -> Path:
        folder = tmp_path / "bundle"
        torch.manual_seed(0)
        vae = build_vae(
            ModelConfig(kind="mlp", width=8), PreprocessConfig(image_size=8, channels=1)
        )
        save_bundle(vae, folder, {})
        receipt = bundle.BUNDLE.parse((folder / "bundle.json").read_bytes(), "bundle.json")
        for stem, data in files.items():
            (name,) = [name for name in receipt["files"] if name.startswith(f"{stem}.")]
            (folder / name).write_bytes(data)
            receipt["files"][name] = hashlib.sha256(data).hexdigest()
        configs = [(folder / name).read_bytes() for name in ("config.json", "preprocess.json")]
        receipt["digest"] = bundle._digest(bundle._weights(vae), *configs)
        (folder / "bundle.json").write_bytes(bundle.BUNDLE.encode(receipt))
        return folder

    return make


def evaluate(refused: Callable[..., str], folder: Path, tmp_path: Path) -> str:
    data = small_dataset(tmp_path / "d", range(4)).url
    return refused(
        "encode", "--model", str(folder), "--data", data, "--output", str(tmp_path / "s"),
        "--actors", "0",
    )  # fmt: skip


def pickled(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": Poison(marker)}, buffer)
    return buffer.getvalue()


def model_json(**changes: object) -> bytes:
    return json.dumps({**ModelConfig(kind="mlp", width=8).model_dump(), **changes}).encode()


def test_a_bundle_whose_weights_are_a_pickle_is_refused(forge, refused, marker, tmp_path):
    assert "ModelError" in evaluate(refused, forge(model=pickled(marker)), tmp_path)


@pytest.mark.parametrize("length", [2**62, 2**33, 10**9])
def test_a_bundle_whose_weights_claim_an_oversized_header_is_refused(
    forge, refused, tmp_path, length
):
    said = evaluate(refused, forge(model=struct.pack("<Q", length) + b"{}"), tmp_path)
    assert "ModelError" in said


def test_weights_whose_header_points_out_of_the_file_are_refused(forge, refused, tmp_path):
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ).encode()
    data = struct.pack("<Q", len(header)) + header
    assert "ModelError" in evaluate(refused, forge(model=data), tmp_path)


@pytest.mark.parametrize(
    "changes", [{"width": 10**9}, {"width": 10**5}, {"latent_channels": 10**8}]
)
def test_a_bundle_that_claims_a_network_larger_than_memory_is_refused(
    forge, refused, tmp_path, changes
):
    said = evaluate(refused, forge(config=model_json(**changes)), tmp_path)
    assert "don't fit" in said or "impossible" in said


@pytest.mark.parametrize("path", ["subprocess:Popen", "os:system", "builtins:exec"])
def test_a_bundle_that_names_a_program_as_its_network_is_refused(forge, refused, tmp_path, path):
    config = model_json(kind="custom", custom=path)
    assert "is no part of this program" in evaluate(refused, forge(config=config), tmp_path)


@pytest.mark.parametrize("stem", ["config", "preprocess"])
def test_a_bundle_with_a_json_bomb_is_refused(forge, refused, tmp_path, stem):
    assert "ModelError" in evaluate(refused, forge(**{stem: DEEP}), tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "store.json", "bundle.json", "run.json"])
@pytest.mark.parametrize("kind", ["deep", "huge"])
def test_json_bombs_are_refused_wherever_a_job_begins_to_read(tmp_path, refused, name, kind):
    folder = tmp_path / "f"
    folder.mkdir()
    if kind == "deep":
        (folder / name).write_bytes(DEEP)
    else:
        with (folder / name).open("wb") as file:
            file.truncate(storage._JSON_BYTES + 2)  # A hole, which takes no room on the disk.
    said = {
        "manifest.json": lambda: refused("verify", "--dataset", str(folder)),
        "store.json": lambda: refused("verify", "--store", str(folder)),
        "bundle.json": lambda: evaluate(refused, folder, tmp_path),
        "run.json": lambda: refused(
            "train", "--data", small_dataset(tmp_path / "d", range(4)).url, "--run", "f",
            "--storage", str(tmp_path), "--workers", "0", "--image-size", "8", "--channels", "1",
            "--model.kind", "mlp",
        ),
    }[name]()  # fmt: skip
    assert name in said
    assert {"deep": "sane", "huge": "too many"}[kind] in said


def forged_dataset(folder: Path, *, key: str = "a", **changes: object) -> str:
    """A dataset of one image made by another hand: the checksums fit, whatever was changed."""
    with ShardWriter(folder / "0.tar") as writer:
        image = (folder / "image.png").read_bytes()
        writer.write(Sample(key, "png", image, 8, 8, {}))
    index = changes.pop("index", writer.index.to_bytes())
    (folder / "index.arrow").write_bytes(index)
    record = ShardRecord(
        "0.tar", writer.bytes, writer.sha256, 1, "index.arrow", hashlib.sha256(index).hexdigest()
    )
    commit(str(folder), Manifest(1, None, (dataclasses.replace(record, **changes),)))
    return str(folder)


@pytest.fixture
def image(tmp_path) -> Path:
    """The folder of a forged dataset, with the one image it holds."""
    small_dataset(tmp_path / "real", range(1))
    (made,) = (tmp_path / "real/images").rglob("*.png")
    (tmp_path / "forged").mkdir()
    return made.rename(tmp_path / "forged/image.png").parent


@pytest.mark.parametrize(
    "changes",
    [{"path": "../0.tar"}, {"path": "/etc/passwd"}, {"index_path": "a/../../index.arrow"},
     {"index_path": "http://127.0.0.1:9/index.arrow"}, {"index_path": "file:///etc/passwd"}],
)  # fmt: skip
def test_a_manifest_that_leads_out_of_its_dataset_is_refused(image, refused, changes):
    assert "leads out" in refused("verify", "--dataset", forged_dataset(image, **changes))


@pytest.mark.parametrize("digest", ["../../secret", "http://127.0.0.1:9/x", None, ["a"], "../" * 9])
def test_a_pointer_that_names_no_manifest_of_its_dataset_is_refused(image, refused, digest):
    url = forged_dataset(image)
    pointer = CURRENT.parse((image / "manifest.json").read_bytes(), "manifest.json")
    (image / "manifest.json").write_bytes(CURRENT.encode({**pointer, "digest": digest}))
    assert "makes no sense (digest" in refused("verify", "--dataset", url)


def poisoned_arrow(marker: Path) -> bytes:
    """As pyarrow before 14 unpickled it: a column whose type is a Python object."""
    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Poison(marker), 0),
    }
    schema = pa.schema([pa.field("keys", pa.int64(), metadata=metadata)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array([1])], schema=schema))
    return sink.getvalue().to_pybytes()


def test_an_index_with_a_pickled_type_and_one_that_is_garbage_are_refused(image, refused, marker):
    for n, index in enumerate((poisoned_arrow(marker), b"ARROW1\0\0" + bytes(200), b"")):
        data = forged_dataset(image, index=index)
        said = refused(
            "train", "--data", data, "--run", f"r{n}", "--storage", str(image / "runs"),
            "--workers", "0", "--image-size", "8",
            "--channels", "1", "--model.kind", "mlp", "--steps", "1",
        )  # fmt: skip
        assert "is no index" in said


@pytest.mark.parametrize("name", ["../../up.png", "/etc/up.png", "a/../../up.png"])
def test_a_tar_whose_members_lead_out_is_not_adopted(image, refused, name):
    with tarfile.open(image / "x.tar", "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data := (image / "image.png").read_bytes())
        tar.addfile(info, io.BytesIO(data))
    flags = ("--source", str(image / "x.tar"), "--output", str(image / "out"))
    assert "leads out" in refused("index", *flags)


@pytest.mark.parametrize("key", ["../../up", "/tmp/up", "a/../../../up"])
def test_a_key_that_leads_out_is_never_a_file_name(image, refused, key, tmp_path):
    url = forged_dataset(image, key=key)
    vae = small_vae()
    vae.digest = save_bundle(vae, tmp_path / "b", {})
    store = tmp_path / "s"
    from pipeline.data import Dataset

    encode(vae, Dataset.open(url), store)
    flags = ("--store", str(store), "--output", str(tmp_path / "out" / "deep" / "er"))
    assert "leads out" in refused("decode", *flags, "--model", str(tmp_path / "b"))
    assert "leads out" in refused("export", *flags[:2], "--output", str(tmp_path / "tars"))
    assert not list(tmp_path.rglob("up*"))


def test_a_store_that_leads_out_is_refused(image, refused, tmp_path):
    vae = small_vae()
    store = tmp_path / "s"
    encode(vae, small_dataset(tmp_path / "d", range(4)), store)
    pointer = STORE.parse((store / "store.json").read_bytes(), "store.json")
    for path in ("../x.json", "/etc/passwd", "http://127.0.0.1:9/x"):
        (store / "store.json").write_bytes(STORE.encode({**pointer, "snapshot": path}))
        assert "leads out" in refused("verify", "--store", str(store))


def test_a_poisoned_checkpoint_and_one_that_leads_out_are_skipped(tmp_path, marker, caplog):
    run = Run(str(tmp_path / "r"))
    data = pickled(marker)
    digest = hashlib.sha256(data).hexdigest()
    folder = tmp_path / "r/checkpoints"
    folder.mkdir(parents=True)
    for step, name in ((1, "step-00000001.pt"), (2, "../../outside.pt")):
        receipt = {"step": step, "file": name, "bytes": len(data), "sha256": digest}
        (folder / name).resolve().write_bytes(data)
        (folder / f"step-{step:08d}.json").write_bytes(RECEIPT.encode(receipt))
    with pytest.raises(Exception, match="none of its 2 checkpoints is whole"):
        newest_checkpoint(run)
    assert "holds more than tensors" in caplog.text
    assert "leads out" in caplog.text


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, more: bytes = b"") -> bytes:
    """A black 1-bit PNG, whatever its size: 900 million pixels in 110 kB."""
    rows = zlib.compress(bytes((1 + -(-width // 8)) * height), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), more, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_decompression_bombs_are_rejected_each_with_its_reason(job, tmp_path):
    text = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(200_000_000)))
    hidden = bytearray(png(8, 8))
    hidden[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    source = tmp_path / "in"
    source.mkdir()
    images = {
        "large.png": png(30_000, 30_000), "text.png": png(8, 8, text), "lies.png": bytes(hidden),
        "good.png": png(8, 8),
    }  # fmt: skip
    for name, data in images.items():
        (source / name).write_bytes(data)
    code, said = job("pack", "--source", str(source), "--output", str(tmp_path / "out"))
    assert code == 3, said
    rejects = (tmp_path / "out/rejects.jsonl").read_text().splitlines()
    found = {Path(r["path"]).name: r["reason"] for r in map(json.loads, rejects)}
    assert found.keys() == {"large.png", "text.png", "lies.png"}
    assert found["large.png"] == "bomb"
    assert read_current(str(tmp_path / "out")).samples == 1


def test_an_archive_that_unpacks_to_more_than_there_is_room_for_is_refused(
    refused, tmp_path, monkeypatch
):
    (tmp_path / "in").mkdir()
    with gzip.open(tmp_path / "in/x.tar.gz", "wb", 1) as file:
        file.write(bytes(50_000_000))
    # As if the disk had 10 MB left.
    import shutil

    from pipeline.sources import archives

    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(archives, "_SPARE_BYTES", free - 10_000_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = refused("pack", "--source", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert "x.tar.gz" in said


def test_a_yaml_that_names_a_python_object_is_refused(refused, marker, tmp_path):
    (tmp_path / "c.yaml").write_text(f"data: !!python/object/apply:pathlib.Path.touch [{marker}]\n")
    assert "not YAML" in refused("train", "--config", str(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    "flags",
    [("train", "--data", "s3://AKIA:planted@b/d", "--run", "r"),
     ("train", "--data", "d", "--run", "r", "--storage", "https://me:planted@host"),
     ("pack", "--source", "https://me:planted@host/x.tar", "--output", "o"),
     ("submit", "--", "python", "-m", "jobs.train", "--data", "s3://a:planted@b", "--run", "r")],
)  # fmt: skip
def test_a_password_on_a_command_line_is_refused_and_not_repeated(refused, flags):
    said = refused(*flags)
    assert "holds a password" in said
    assert "planted" not in said


def test_weights_are_read_by_safetensors_and_nothing_else(forge):
    # The healthy bundle of the tests above is one that loads.
    folder = forge()
    assert bundle.load_bundle(folder).digest
    assert safetensors.torch.load_file(folder / "model.safetensors")


def test_what_holds_a_token_does_not_show_it(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "planted")
    jobs = RayJobs("http://127.0.0.1:9")
    assert "planted" not in f"{jobs!r} {jobs}"
