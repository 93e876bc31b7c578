"""The latent store: one Arrow file per source shard, receipts, snapshots, and their reader."""

from pipeline.latents.store import Latent, LatentStore
from pipeline.latents.verify import verify_store

__all__ = ["Latent", "LatentStore", "verify_store"]
