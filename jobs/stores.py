"""List a latent store's snapshots; find and remove what none of them names."""

from dataclasses import asdict

from jobs.command import Outcome, run_job
from pipeline.config import StoresConfig
from pipeline.json_value import Json


def main(config: StoresConfig) -> Outcome:
    """`--gc` alone is the dry run of `--gc --delete`."""
    from pipeline import storage
    from pipeline.latents.garbage import describe, find_garbage, remove_garbage

    url = storage.absolute(config.store)
    rows = describe(url)
    result: Json = {"stores": [asdict(row) for row in rows]}
    lines = [
        f"{'*' if row.current else ' '} {row.snapshot}: {row.samples} latents, "
        f"{row.failed} failed, {row.bytes / 2**20:.1f} MiB"
        for row in rows
    ]
    if config.keys:
        from pipeline.data.keys import path_of
        from pipeline.latents import LatentStore

        keys = list(dict.fromkeys(LatentStore.open_all(url).keys()))
        result = {**result, "keys": keys}
        lines += [f"  {key}  {path_of(key)}" for key in keys]
    if config.gc:
        collect = remove_garbage if config.delete else find_garbage
        garbage = collect(url, unfinished=config.unfinished)
        done = "removed" if config.delete else "would go (`--gc --delete` removes it)"
        lines += [f"  {path}: {size} bytes {done}" for path, size in garbage.files.items()]
        lines += [
            f"identity {identity}: left alone, an encoding of it has begun and not ended"
            for identity in garbage.busy
        ]
        result = {
            **result,
            "garbage": list(garbage.files),
            "garbage_bytes": garbage.bytes,
            "busy": list(garbage.busy),
            "deleted": config.delete,
        }
    return Outcome(result, summary=lines)


if __name__ == "__main__":
    run_job(StoresConfig, main)
