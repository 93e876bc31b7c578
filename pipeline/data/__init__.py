"""From image archives to exact batches: pack, manifest, order, fetch, decode, load."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.data.batch import Batch
    from pipeline.data.dataset import Dataset
    from pipeline.data.loader import Loader, LoaderStats, LoaderTotals
    from pipeline.data.manifest import Manifest, ShardRecord
    from pipeline.data.preprocess import preprocess_digest, preprocess_image
    from pipeline.data.shard_index import ShardIndex
    from pipeline.data.shard_reader import load_images, read_shard

__all__ = [
    "Batch",
    "Dataset",
    "Loader",
    "LoaderStats",
    "LoaderTotals",
    "Manifest",
    "ShardIndex",
    "ShardRecord",
    "load_images",
    "preprocess_digest",
    "preprocess_image",
    "read_shard",
]

# Imported when first asked for: packing needs no torch, which takes more than a second to import
# in each of its processes.
_HOMES = {
    "Batch": "batch",
    "Dataset": "dataset",
    "Loader": "loader",
    "LoaderStats": "loader",
    "LoaderTotals": "loader",
    "Manifest": "manifest",
    "ShardIndex": "shard_index",
    "ShardRecord": "manifest",
    "load_images": "shard_reader",
    "preprocess_digest": "preprocess",
    "preprocess_image": "preprocess",
    "read_shard": "shard_reader",
}


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
