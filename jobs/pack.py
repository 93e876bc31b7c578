"""Pack folders, archives and prefixes of images into a sharded dataset; append what is new."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from jobs.command import REFUSED_EXIT, Outcome, run_job
from pipeline import storage
from pipeline.config import PackConfig
from pipeline.counted import counted
from pipeline.masking import shell_word

if TYPE_CHECKING:
    from pipeline.packing.commit import PackResult


def main(config: PackConfig) -> Outcome:
    """Packs, and says what became of every input."""
    if config.dry_run:
        from dataclasses import asdict

        from pipeline.packing.cost import probe

        estimate = probe(config)
        return Outcome(asdict(estimate), summary=[estimate.summary])
    result = _pack(config)
    budget, lines = (config.bad_fraction, config.ignore), _summary(config, result)
    over = result.counts.is_over(*budget)
    data = storage.join(config.output, "train") if result.holdout else config.output
    train = f"`vae train --data {shell_word(data)} --run NAME`"
    if over:
        lines += result.counts.over_lines(*budget)
        if result.samples:
            lines.append(
                f"What was packed is a dataset all the same: {train}. What is mended comes in by "
                "the same command with `--append`."
            )
    elif result.samples:
        lines.append(f"Train on it: {train}")
    return Outcome(result.to_json(), REFUSED_EXIT if over else 0, lines)


def _summary(config: PackConfig, result: "PackResult") -> list[str]:
    images, shards = counted(result.samples, "image"), counted(result.shards, "shard")
    lines = [f"{result.dataset}: {images} in {shards}."]
    if result.holdout is not None and result.holdout_samples:
        lines.append(f"{result.holdout}: {counted(result.holdout_samples, 'image')}, held out.")
    lines += result.counts.summary()
    if result.samples and not (result.added or result.removed or config.repack):
        lines.append("No sample is new.")
    if result.removed:
        lines.append(
            f"{result.removed:,} input{'s' * (result.removed != 1)} removed now, as `--remove` "
            "asked: no sample of theirs counts."
        )
    number, example = result.replaced
    if number:
        lines.append(
            f"{counted(number, 'sample')} replaced: other bytes have the same path now (e.g. "
            f"{example!r}). Were these other pictures, give each lot a folder of its own below the "
            "source: a key is made of the path."
        )
    if result.rejects_url:
        lines.append(f"Inputs that are no samples, with reasons: {result.rejects_url}")
    lines += _of_samples(config, result)
    table = result.table
    if table.folders:
        inputs = counted(table.folders, "input")
        lines.append(f"Without a label in a table: {inputs}, labelled by the first folder's name.")
    if table.kept:
        verb = "keeps" if table.kept == 1 else "keep"
        lines.append(
            f"{counted(table.kept, 'sample')} {verb} what an earlier table said, though none says "
            "anything of it now: `--annotations FILE` says it anew, or nothing."
        )
    if table.rows:
        lines += _of_table(result)
    elif config.annotations is None:
        lines += _beside(result.counts.others, config.source)
    lines += _stays(result)
    if result.holdout is not None and not result.holdout_samples:
        lines.append(
            f"The hold-out is EMPTY: {config.holdout:g} of {result.samples:,} images came to none. "
            "Training will have no held-out measure; pack anew with a larger `--holdout SHARE`."
        )
    if not result.samples and result.holdout_samples:
        lines.append(
            f"The part to train on is EMPTY: `--holdout {config.holdout:g}` holds all images out. "
            "Pack anew with a smaller one into another `--output URL`."
        )
    return lines


def _of_samples(config: PackConfig, result: "PackResult") -> list[str]:
    """Sides, modes, pages and labels."""
    from pipeline.packing.inspect_image import SEVERAL

    found = result.found
    if found is None:
        return []
    lines = []
    if result.samples:
        lines.append(
            f"Sides of {found.smallest_side} to {found.largest_side} pixels; modes "
            + ", ".join(f"{mode} {number:,}" for mode, number in found.modes.items())
            + "."
        )
        several = sum(n for mode, n in found.modes.items() if mode.endswith(SEVERAL))
        if several:
            files = counted(several, "file")
            lines.append(f"Of {files} with several pages or frames each the first one counts.")
    if found.num_labels:
        shown = [f"{label} {number:,}" for label, number in list(found.labels.items())[:5]]
        left = found.num_labels - len(shown)
        more = f" and {left:,} more" if left else ""
        bare = f"; {found.unlabelled:,} without a label" if found.unlabelled else ""
        lines.append(f"{counted(found.num_labels, 'label')}: {', '.join(shown)}{more}{bare}.")
        blank = [label for label in found.labels if label != label.strip()]
        if blank:
            lines.append(
                f"Labels with white space around them are others than those without: {blank[:5]}."
            )
        if _PARTS.issuperset(found.labels):
            lines.append(
                "These are the parts of a dataset that is split already, and no classes: pack each "
                "by itself, with its folder as `--source`, into an `--output URL` of its own."
            )
        elif (found.num_labels, found.unlabelled) == (1, 0) and result.samples > 1:
            told = shown[0].rpartition(" ")[0]
            lines += [] if result.table.labelled else [_alike(told, config.source)]
    return lines


_PARTS = frozenset(("dev", "test", "testing", "train", "training", "val", "valid", "validation"))


def _alike(label: str, sources: Sequence[str]) -> str:
    """That all images have one label, and how to have others."""
    from pipeline.sources.archives import is_archive
    from pipeline.sources.table_rows import is_list

    if any(map(is_list, sources)):
        return (
            f"All have the label {label!r}. A column `label` of the list tells others; or give the "
            "folder of the images as `--source` and the table as `--annotations`."
        )
    archives = (url for url in sources if is_archive(url) or storage.exists(storage.absolute(url)))
    unpack = "unpack the archive, and " if any(archives) else ""
    return (
        f"All have the label {label!r}, the first part of their path below the source: to take "
        f"what lies in it for labels, {unpack}name that as `--source`."
    )


def _stays(result: "PackResult") -> list[str]:
    """Samples that may be too many, and what takes them out."""
    lines = []
    if result.copies:
        told = "is an exact copy of another" if result.copies == 1 else "are exact copies of others"
        lines.append(
            f"{counted(result.copies, 'sample')} {told}. `--deduplicate` leaves out only what it "
            "packs itself: `--append --remove PATH ...` takes these out, or pack anew with it into "
            "another `--output URL`."
        )
    behind, example = result.left_behind
    if behind:
        verb, it = ("is", "it") if behind == 1 else ("are", "them")
        lines.append(
            f"{counted(behind, 'sample')} {verb} of files that these sources hold no more (e.g. "
            f"{example!r}), and stay{'s' * (behind == 1)}. `--append --remove KEY ...` takes {it} "
            f"out; all keys, one a line: {result.left_behind_url}"
        )
    return lines


def _of_table(result: "PackResult") -> list[str]:
    """What a table beside the inputs said of them, and what it did not."""
    table = result.table
    lines = [
        f"{table.images:,} of {result.seen:,} inputs found their row; "
        f"{table.unmatched:,} of {table.rows:,} rows name no input"
        + (f" (e.g. {table.example!r})." if table.example else ".")
    ]
    if table.hushed:
        lines.append(
            f"Of {table.hushed:,} samples an earlier table said something, and this one says "
            "nothing: it is gone."
        )
    if table.relabelled:
        lines.append(
            f"Of {counted(table.relabelled, 'input')} the list or table that brought them in says "
            "another label: that of `--annotations` counts."
        )
    return lines


def _beside(others: Mapping[str, int], sources: Sequence[str]) -> list[str]:
    """Labels and captions that lie there, but were not asked for."""
    from pipeline.packing.shard_writer import SIDECARS
    from pipeline.sources.table_rows import is_list

    def shown(suffixes: list[str]) -> str:
        return ", ".join(f"{others[suffix]:,} {suffix}" for suffix in suffixes)

    # A list that is a source, and lies in another one, was read.
    urls = [storage.absolute(source).rstrip("/") for source in sources]
    read = Counter(
        PurePosixPath(url).suffix.lower()
        for url in urls
        if any(url.startswith(f"{other}/") for other in urls)
    )
    tables = [suffix for suffix in others if is_list(suffix) and others[suffix] > read[suffix]]
    sidecars = [suffix for suffix in others if suffix.lstrip(".") in SIDECARS]
    lines = []
    if tables:
        lines.append(
            f"Tables that were not read: {shown(tables)}. `--annotations FILE` takes labels from "
            "one that lies in no archive."
        )
    if sidecars:
        lines.append(
            f"Files beside the images that were not read: {shown(sidecars)}. Captions and labels "
            "go in by a table (`--annotations FILE`); jobs.index takes WebDataset tars with theirs."
        )
    return lines


def _pack(config: PackConfig) -> "PackResult":
    """On the Ray cluster at RAY_ADDRESS, if that is set, else with this machine's cores."""
    if os.environ.get("RAY_ADDRESS"):
        from pipeline.cluster.packing_pool import pack_on_ray

        return pack_on_ray(config)
    from pipeline.packing.pack import pack

    return pack(config)


if __name__ == "__main__":
    run_job(PackConfig, main)
