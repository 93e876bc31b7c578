"""The latent store: one Arrow file per source shard, receipts, snapshots, and their reader."""
