"""Stock webdataset reads any URL that `pipeline.storage` reads, with its retries."""

import io
from typing import Any, BinaryIO

import webdataset

from pipeline import storage
from pipeline.errors import DatasetError
from pipeline.storage import StorageFile


def register_openers(schemes: tuple[str, ...] = ("s3", "gs", "file")) -> None:
    """Lets `wds.WebDataset("s3://bucket/shards/001-000000.tar")` read through our storage.

    webdataset 1.0.2 has no `s3` of its own and pipes `gs` through a program that retries nothing.
    """
    for scheme in schemes:
        webdataset.gopen_schemes[scheme] = _open


def _open(url: str, mode: str = "rb", bufsize: int = 8192, **_: Any) -> BinaryIO:
    if mode not in ("r", "rb"):
        raise DatasetError(f"{storage.shown(url)}: is opened for reading only; found {mode!r}.")
    # 8 MiB a request: a shard of 256 MiB takes 32.
    return io.BufferedReader(StorageFile(url), max(bufsize, 8 * 2**20))
