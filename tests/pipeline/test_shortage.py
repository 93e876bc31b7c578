"""A shortage is no verdict: what memory, handles or storage lack marks nothing as bad for good."""

import errno
import importlib
import io
import os
import resource
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import storage
from pipeline.config import TrainConfig
from pipeline.data.decode import decode_image
from pipeline.errors import (
    SampleError,
    ShortageError,
    StorageError,
    StorageShortageError,
    is_shortage,
)
from pipeline.latents import LatentStore, part_rows, verify_store
from pipeline.packing import pack as packing
from pipeline.packing.ledger import read_ledger, read_state
from pipeline.packing.verify_dataset import verify_dataset
from pipeline.runs.checkpoint import newest_checkpoint
from pipeline.runs.lost_files import refuse_lost_work
from pipeline.runs.run import Run
from pipeline.storage import RetryPolicy, retry_policy
from pipeline.storage.local import explain
from tests.pipeline.packing.test_pack import config, png, write
from tests.pipeline.runs import test_checkpoint as checkpoints
from tests.support.small_store import encode, small_dataset, small_vae


@contextmanager
def no_handles_left() -> Iterator[None]:
    """The kernel opens no further file for this process: a shortage as real as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open(os.devnull, os.O_RDONLY)
    os.close(spare)  # the lowest number that is free
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (ShortageError("full"), True),
        (OSError("broken data stream when reading image file"), False),
        (OSError(errno.ENOENT, "No such file or directory"), False),
        (ValueError("cannot identify image file"), False),
        (StorageError("damaged"), False),
    ],
)
def test_what_is_a_shortage(error: BaseException, short: bool) -> None:
    assert is_shortage(error) is short
    if isinstance(error, OSError) and error.errno:
        assert isinstance(explain(error, Path("x"), "reading"), ShortageError) is short


def test_a_pack_without_handles_rejects_nothing_and_goes_on_later(tmp_path: Path) -> None:
    images = {f"{n}.png": png(n) for n in range(5)}
    zipped = tmp_path / "in/more.zip"
    write(tmp_path / "in", images)
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("z.png", png(9))
    source = [str(tmp_path / "in"), str(zipped)]
    make_plan = packing.make_plan

    def then_short(*arguments: Any) -> Any:
        plan = make_plan(*arguments)
        stack.enter_context(no_handles_left())
        return plan

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "make_plan", then_short)
        with pytest.raises(StorageError, match="Too many open files") as short:
            packing.pack(config(source[0], tmp_path / "out"))
    assert is_shortage(short.value)
    assert not (tmp_path / "out/pack.json").exists()
    result = packing.pack(config(source[0], tmp_path / "out"))
    assert (result.samples, result.rejected) == (6, 0)


@pytest.mark.parametrize("comes_back", ["the same", "grown"])
def test_what_was_not_there_for_a_moment_is_read_by_the_next_append(
    tmp_path: Path, comes_back: str
) -> None:
    """As if a share was unmounted while packing: each of its files is missing, and none is bad."""
    source = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(4)})
    write(tmp_path / "other", {"x.png": png(9)})
    make_plan = packing.make_plan

    def then_gone(*arguments: Any) -> Any:
        plan = make_plan(*arguments)
        shutil.move(source, tmp_path / "away")
        return plan

    both = [source, str(tmp_path / "other")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "make_plan", then_gone)
        first = packing.pack(config(both, tmp_path / "out"))
    assert (first.samples, dict(first.reasons)) == (1, {"missing": 4})
    shutil.move(tmp_path / "away", source)
    if comes_back == "grown":
        write(tmp_path / "in", {"0.png": png(10)})
    second = packing.pack(config(both, tmp_path / "out", append=True))
    assert (second.samples, second.rejected) == (5, 0)
    output = str(tmp_path / "out")
    rows = read_ledger(output, read_state(output)).values()
    assert {row.status for row in rows} == {"packed"}


def test_an_image_that_finds_no_memory_is_no_bad_image() -> None:
    """In a process of its own that may have 16 MiB more than it has."""
    large = io.BytesIO()
    Image.fromarray(np.zeros((6000, 6000, 3), np.uint8)).save(large, "PNG")
    decode_image(png(1))  # plugins are loaded
    child = os.fork()
    if child == 0:
        found = 1
        try:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (size + 2**24, hard))
            found = 0
            try:
                decode_image(large.getvalue())
                found = 2
            except ShortageError:
                pass
            except SampleError:
                found = 3
        finally:
            os._exit(found)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert decode_image(large.getvalue()).shape == (6000, 6000, 3)


def test_a_checkpoint_that_cannot_be_read_now_is_neither_skipped_nor_removed(
    tmp_path: Path,
) -> None:
    run = Run.at(TrainConfig(data="d", run="r", storage=str(tmp_path)))
    checkpoints.write(run, 1, 2, 3)
    before = checkpoints.files(run)
    with no_handles_left(), pytest.raises(ShortageError, match="Too many open files"):
        newest_checkpoint(run)
    with no_handles_left(), pytest.raises(ShortageError, match="Too many open files"):
        refuse_lost_work(run, steps=1, checkpoint_every=1, keeps_best=False, begin_anew=True)
    assert checkpoints.files(run) == before
    found = newest_checkpoint(run)
    assert found is not None
    assert found.step == 3


def test_verify_calls_nothing_damaged_that_it_cannot_read_now(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(4)})
    dataset = packing.pack(config(source, tmp_path / "out")).dataset
    assert verify_dataset(dataset) == []
    with no_handles_left(), pytest.raises(ShortageError, match="Too many open files"):
        verify_dataset(dataset)


def test_nothing_of_a_store_is_called_damaged_that_cannot_be_read_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = encode(small_vae(), small_dataset(tmp_path, range(20)), tmp_path / "s")
    assert verify_store(store.url) == []
    again = LatentStore.open_all(store.url)
    with no_handles_left(), pytest.raises(ShortageError, match="Too many open files"):
        again[0]
    assert again[0].key == store[0].key

    def full(*_: object) -> object:
        raise StorageShortageError("memory for it ran out.")

    monkeypatch.setattr(part_rows, "parse_batch", full)
    with pytest.raises(ShortageError, match="ran out"):
        LatentStore.open_all(store.url)[0]
    verify = importlib.import_module("pipeline.latents.verify_store")  # the name is a function's
    monkeypatch.setattr(verify, "read_receipt", full)
    with pytest.raises(ShortageError, match="ran out"):
        verify_store(store.url)


def test_storage_that_does_not_answer_is_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with retry_policy(RetryPolicy(deadline_seconds=0.2)), pytest.raises(ShortageError):
        storage.read("s3://bucket/key")
