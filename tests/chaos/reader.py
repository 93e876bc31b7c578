"""Reads one epoch as all ranks of a world, in step; tests kill it and start it again, elsewhere.

`python tests/chaos/reader.py DATASET LOG WORLD PAUSE_SECONDS`: each line of LOG is one global batch
with the state after it, so that the last whole line is where to go on.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

from pipeline.config import LoaderConfig
from pipeline.data import Dataset, Loader
from pipeline.storage import RetryPolicy, retry_counts, set_retry_policy


def main(url: str, log: str, world: int, pause_seconds: float) -> None:
    set_retry_policy(RetryPolicy(deadline_seconds=120, base_seconds=0.02, cap_seconds=0.5))
    dataset = Dataset.open(url)
    ranks = [
        Loader(
            dataset, global_batch_size=32, image_size=32, seed=7, rank=rank, world_size=world,
            threads=2, settings=LoaderConfig(memory_bytes=2**22),
        )
        for rank in range(world)
    ]  # fmt: skip
    path = Path(log)
    done = list(path.read_bytes().split(b"\n")[:-1]) if path.exists() else []
    if done:
        for loader in ranks:
            loader.load_state_dict(json.loads(done[-1])["state"])
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(sum(len(line) + 1 for line in done))
        file.seek(0, 2)
        for batches in zip(*ranks, strict=True):  # strict: all ranks have as many steps
            samples = [
                [key, hashlib.sha256(image.numpy().tobytes()).hexdigest() if valid else None]
                for batch in batches
                for key, image, valid in zip(
                    batch.keys, batch.images, batch.valid.tolist(), strict=True
                )
                if key
            ]
            errors = {key: reason for batch in batches for key, reason in batch.errors.items()}
            line = {"world": world, "samples": samples, "errors": errors,
                    "state": ranks[-1].state_dict(), "retries": retry_counts()}  # fmt: skip
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            time.sleep(pause_seconds)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
