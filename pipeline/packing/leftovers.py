"""What killed packs left half written: seen when the next one begins, removed when that ends.

A generation begins when the one before is committed. So what lies there when a pack begins, and is
as it was when that pack has committed, belongs to no pack that could still commit anything.
"""

from collections.abc import Iterable

from pipeline import storage
from pipeline.errors import DatasetError, ObjectNotFoundError
from pipeline.packing.ledger import read_state
from pipeline.sources.listing import is_matching
from pipeline.storage.marks import removals

_FOLDERS = ("shards", "index", "manifests", "ledger", "plans")


def find_leftovers(output: str) -> list[storage.ObjectInfo]:
    """Unfinished files of this dataset and its splits; to be called before its state is read.

    Of the folders themselves, and of those below that packing makes: another dataset may lie in
    one of its own. Raises `StorageError` for links to folders there: packing writes, replaces and
    removes below them.
    """
    splits = ("", "train", "holdout")
    storage.refuse_links(
        output, *(f"{split}/{name}".lstrip("/") for split in splits for name in _FOLDERS)
    )
    found: list[storage.ObjectInfo] = []
    for split in splits:
        place = storage.join(output, split) if split else output
        found += storage.unfinished(place, below=False)
        for folder in _FOLDERS:
            found += storage.unfinished(storage.join(place, folder))
    return found


def remove_leftovers(found: Iterable[storage.ObjectInfo]) -> None:
    """Removes those that nobody has written to since they were found."""
    for info in found:
        try:
            if storage.stat(info.url) == info:
                storage.delete(info.url)
        except ObjectNotFoundError:
            continue


def root_of(url: str) -> tuple[str, str]:
    """The folder that was packed into, and which split of it this is."""
    root, _, split = url.rstrip("/").rpartition("/")
    return (root, split) if split in ("train", "holdout") else (url.rstrip("/"), "")


def refuse_inside(output: str, sources: Iterable[str]) -> None:
    """Raises `DatasetError` for an output that lies inside one of these sources.

    The next pack would take it for images: a dataset's shards, the pictures of a store's report.
    """
    for source in sources:
        root = storage.absolute(source).rstrip("/")
        if f"{output}/".startswith(f"{root}/") or is_matching(root, f"{output}/shards/0.tar"):
            raise DatasetError(
                f"{output}: lies inside the source {source}, and the next jobs.pack would take its "
                "files for images. Give another `--output URL`."
            )


def refuse_inside_sources(output: str, dataset: str) -> None:
    """The same for the sources that `dataset` was packed from, as far as it knows them."""
    try:
        state = read_state(root_of(dataset)[0])
    except DatasetError:
        return  # What ails the state of packing is told by jobs.pack and jobs.verify.
    refuse_inside(output, state.sources if state else ())


def refuse_beside_removal(root: str) -> None:
    """Raises `DatasetError` while something is removed below a dataset, for a pack that begins."""
    for url in removals(root):
        raise DatasetError(
            f"{root}: something is being removed here (jobs.stores --delete). Run this again when "
            "that has ended. If it was killed, run it again; or, if no such job runs any more, "
            f"delete {storage.shown(url)}."
        )
