"""What an enemy would plant, and the jobs that are made to read it, run in this process."""

import contextlib
import dataclasses
import hashlib
import importlib
import io
import typing
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.command import run_job
from pipeline.data.manifest import Manifest, ShardRecord, commit
from pipeline.packing.shard_writer import Sample, ShardWriter
from tests.support.small_store import small_dataset

DEEP = b"[" * 100_000 + b"]" * 100_000
"""JSON that a parser which calls itself can't read."""


class Poison:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def pickled(marker: Path) -> bytes:
    """Weights as `torch.save` writes them; read without `weights_only` they make the marker."""
    buffer = io.BytesIO()
    torch.save({"weight": Poison(marker)}, buffer)
    return buffer.getvalue()


def job(name: str, *flags: str) -> tuple[int, str]:
    """`python -m jobs.NAME FLAGS` here: its exit code, and what it said on stderr."""
    main = importlib.import_module(f"jobs.{name}").main
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
        run_job(typing.get_type_hints(main)["config"], main, flags)
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.getvalue()


def refused(name: str, *flags: str) -> str:
    """What a job said that must end with one error of ours."""
    code, said = job(name, *flags)
    assert code in (1, 2), said
    errors = [line for line in said.splitlines() if "Error: " in line]
    assert len(errors) == 1, said
    assert "Traceback" not in said
    assert len(said) < 3000, "a clear error is short"
    return said


def refused_as_model(bundle: Path, folder: Path) -> str:
    """What `jobs.encode` says of this bundle; its data and store lie below `folder`."""
    data = small_dataset(folder / "d", range(4)).url
    return refused(
        "encode", "--model", str(bundle), "--data", data, "--output", str(folder / "s"),
        "--actors", "0",
    )  # fmt: skip


def folder_of_one_image(folder: Path) -> Path:
    """Where a forged dataset can be made: it holds `image.png`."""
    small_dataset(folder / "real", range(1))
    (made,) = (folder / "real/images").rglob("*.png")
    (folder / "forged").mkdir()
    return made.rename(folder / "forged/image.png").parent


def forged_dataset(
    folder: Path, *, key: str = "a", index: bytes | None = None, **changes: Any
) -> str:
    """A dataset of `image.png` made by another hand: the checksums fit, whatever was changed."""
    with ShardWriter(folder / "0.tar") as writer:
        image = (folder / "image.png").read_bytes()
        writer.write(Sample(key, "png", image, 8, 8, {}))
    index = writer.index.to_bytes() if index is None else index
    (folder / "index.arrow").write_bytes(index)
    record = ShardRecord(
        "0.tar", writer.bytes, writer.sha256, 1, "index.arrow", hashlib.sha256(index).hexdigest()
    )
    commit(str(folder), Manifest(1, None, (dataclasses.replace(record, **changes),)))
    return str(folder)
