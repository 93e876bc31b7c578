"""The latent store: one Arrow file per source shard, receipts, snapshots, and their readers."""

from pipeline.latents.assembly import LatentBatch
from pipeline.latents.latent_file import Latent
from pipeline.latents.loader import LatentLoader
from pipeline.latents.store import LatentStore
from pipeline.latents.verify_store import verify_store

__all__ = ["Latent", "LatentBatch", "LatentLoader", "LatentStore", "verify_store"]
