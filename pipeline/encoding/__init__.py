"""One shard of images becomes one file of latents: schedule, batches, receipts, report."""
