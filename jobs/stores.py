"""List what a store or a dataset holds; remove what nothing needs; take images out for good."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.command import Outcome, run_job
from pipeline.config import StoresConfig
from pipeline.counted import counted
from pipeline.json_value import Json

if TYPE_CHECKING:
    from pipeline.retention.images import ErasedImages
    from pipeline.retention.latents import ErasedLatents

BEYOND_REACH = (
    "Beyond our reach: the archive that was packed, copies and backups, a bucket's older versions "
    "of objects, caches of nodes (--loader.cache-folder), other stores, exports and decoded "
    "images; of runs that read it their history and pictures, in MLflow too; and weights that "
    "learnt from it (jobs.models --lineage tells which): train those again."
)
KEPT = (
    "The key, its path and its checksum stay in the dataset's ledger, so that no pack brings it "
    "back, and in indexes of older generations."
)


def main(config: StoresConfig) -> Outcome:
    """`--gc` and `--erase` alone are the dry runs of the same with `--delete`."""
    if config.delete:
        _look(config)
    if config.erase:
        return _erase(config)
    result: Json = {}
    lines: list[str] = []
    for found in (_dataset(config), _store(config), _pushed(config)):
        result, lines = {**result, **found.result}, [*lines, *found.summary]
    return Outcome({**result, "deleted": config.delete} if config.gc else result, summary=lines)


def _look(config: StoresConfig) -> None:
    """What will refuse does so before anything is removed: an error tells of nothing else."""
    from pipeline import storage
    from pipeline.retention.generations import refuse_links, splits_at
    from pipeline.retention.latents import refuse_beside_encoding
    from pipeline.retention.pushed import pushed_groups

    if config.dataset is not None and config.gc:
        for split in splits_at(config.dataset).values():
            refuse_links(split)
    if config.store is not None:
        url = storage.absolute(config.store)
        # Garbage beside an encoding is left alone, and that is no error.
        refuse_beside_encoding(url, unfinished=config.unfinished or config.gc)
    if config.pushgateway is not None:
        pushed_groups(config.pushgateway)


def _store(config: StoresConfig) -> Outcome:
    from pipeline import storage
    from pipeline.latents.garbage import describe, find_garbage, remove_garbage
    from pipeline.latents.marks import refuse_links

    if config.store is None:
        return Outcome({})
    url = storage.absolute(config.store)
    if config.gc:
        refuse_links(url)
    rows = describe(url)
    result: Json = {"stores": [asdict(row) for row in rows]}
    lines = [
        f"{'*' if row.current else ' '} {row.snapshot}: {counted(row.samples, 'latent')}, "
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
        lines += _gone(garbage.files, config)
        lines += [
            f"identity {identity}: left alone, an encoding of it has begun and not ended"
            for identity in garbage.busy
        ]
        result = {
            **result,
            "garbage": list(garbage.files),
            "garbage_bytes": garbage.bytes,
            "busy": list(garbage.busy),
        }
    return Outcome(result, summary=lines)


def _dataset(config: StoresConfig) -> Outcome:
    from pipeline import storage
    from pipeline.retention.generations import describe, find_unnamed, remove_unnamed, splits_at

    if config.dataset is None:
        return Outcome({})
    places = splits_at(config.dataset).values()
    rows = [row for url in places for row in describe(url)]
    result: Json = {"generations": [asdict(row) for row in rows]}
    lines = [
        f"{'*' if row.current else ' '} {row.dataset} generation {row.generation}, "
        f"{row.digest[:12]}: {counted(row.samples, 'image')} in {counted(row.shards, 'shard')}, "
        f"{row.bytes / 2**20:.1f} MiB"
        for row in rows
    ]
    if config.gc:
        collect = remove_unnamed if config.delete else find_unnamed
        files = {
            storage.join(url, path): size
            for url in places
            for path, size in collect(url, config.keep_last).items()
        }
        lines += _gone(files, config)
        if any("/manifests/" in path for path in files):
            lines.append("  A run that began with a generation that goes can't be continued.")
        result = {**result, "unnamed": list(files), "unnamed_bytes": sum(files.values())}
    return Outcome(result, summary=lines)


def _pushed(config: StoresConfig) -> Outcome:
    """Groups of stores that are gone; nothing else ever removes them."""
    from pipeline.retention.pushed import pushed_groups, remove_pushed

    if config.pushgateway is None:
        return Outcome({})
    groups = pushed_groups(config.pushgateway)
    lines = [f"{config.pushgateway}: {counted(len(groups), 'group')} of encodings"]
    for group in groups:
        goes = group.gone and config.gc
        if goes and config.delete:
            remove_pushed(config.pushgateway, group)
        done = _done(config) if goes else "gone" if group.gone else "kept"
        lines.append(f"  {group.store}: {done}")
    return Outcome({"pushed": [asdict(group) for group in groups]}, summary=lines)


def _gone(files: dict[str, int], config: StoresConfig) -> list[str]:
    if not files:
        return ["  nothing to remove"]
    return [f"  {path}: {counted(size, 'byte')} {_done(config)}" for path, size in files.items()]


def _done(config: StoresConfig) -> str:
    return "removed" if config.delete else "would go (`--gc --delete` removes it)"


def _erase(config: StoresConfig) -> Outcome:
    """The dataset first: an encoding that began in between makes no new latents of it."""
    from pipeline import storage
    from pipeline.retention.images import erase_images
    from pipeline.retention.latents import erase_latents

    result: Json = {"deleted": config.delete}
    lines: list[str] = []
    keys = config.erase
    if config.dataset is not None:
        images = erase_images(config.dataset, keys, delete=config.delete)
        keys, result = images.keys, {**result, "dataset": asdict(images)}
        lines += _of_images(images, delete=config.delete)
    if config.store is not None:
        url = storage.absolute(config.store)
        latents = erase_latents(url, keys, delete=config.delete, unfinished=config.unfinished)
        result = {**result, "store": asdict(latents)}
        lines += _of_latents(latents, delete=config.delete)
    if not config.delete:
        lines += ["Nothing has been changed; the same command with `--delete` does it."]
    return Outcome({**result, "beyond_reach": BEYOND_REACH}, summary=[*lines, BEYOND_REACH, KEPT])


def _of_images(found: "ErasedImages", *, delete: bool) -> list[str]:
    what = f"{counted(len(found.keys), 'image')}, {counted(found.bytes, 'byte')}"
    return [
        f"{found.dataset}: {what} {_taken_out(delete)} {_listed(found.shards, 'shard')}.",
        *(f"  {key}: has the same bytes, and stays: erase it too" for key in found.copies),
        *(f"  {path}: no generation names it; it goes" for path in found.strays),
    ]


def _of_latents(found: "ErasedLatents", *, delete: bool) -> list[str]:
    what = counted(found.rows, "latent")
    return [
        f"{found.store}: {what} {_taken_out(delete)} {_listed(found.files, 'file')}.",
        *(f"  {key}: no latents of it are here" for key in found.missing),
        *(f"  {path}: no snapshot names it; it goes" for path in found.garbage),
    ]


def _taken_out(delete: bool) -> str:
    return "are taken out of" if delete else "would be taken out of"


def _listed(names: Sequence[str], kind: str) -> str:
    return f"{counted(len(names), kind)}: {', '.join(names) or 'none'}"


if __name__ == "__main__":
    run_job(StoresConfig, main)
