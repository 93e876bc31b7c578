"""From image archives to exact batches: pack, manifest, order, fetch, decode, load."""

from pipeline.data.batch import Batch
from pipeline.data.dataset import Dataset
from pipeline.data.loader import Loader, LoaderStats
from pipeline.data.manifest import Manifest, ShardRecord
from pipeline.data.preprocess import preprocess_digest, preprocess_image
from pipeline.data.shard_index import ShardIndex
from pipeline.data.shard_reader import load_images, read_shard

__all__ = [
    "Batch",
    "Dataset",
    "Loader",
    "LoaderStats",
    "Manifest",
    "ShardIndex",
    "ShardRecord",
    "load_images",
    "preprocess_digest",
    "preprocess_image",
    "read_shard",
]
