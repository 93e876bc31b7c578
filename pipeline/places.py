"""A place holds one thing: what lies in another's would be taken for it, and removed with it."""

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Literal

from pipeline import storage
from pipeline.errors import ConfigError

Kind = Literal["an image dataset", "a latent store", "a run", "a model's bundle"]
_MARKS: dict[str, Kind] = {
    "manifest.json": "an image dataset",
    "pack.json": "an image dataset",
    "store.json": "a latent store",
    "run.json": "a run",
    "bundle.json": "a model's bundle",
}
"""The files by which each kind is known, as their rooms name them."""


def refuse_another_kind(url: str, own: Kind, flag: str) -> None:
    """Raises `ConfigError`, which names `flag`, where `url` holds something that is not `own`."""
    for name, kind in _MARKS.items():
        if kind != own and storage.exists(storage.join(url, name)):
            raise ConfigError(
                f"{storage.shown(url)}: holds {kind}. {own.capitalize()} needs a place of its own: "
                f"give another `{flag}`."
            )


def held_below(names: Iterable[str]) -> tuple[str, Kind] | None:
    """Of a run's files, by their names below it: a folder that holds another thing, and which.

    Its own bundles are its own.
    """
    for name in names:
        path = PurePosixPath(name)
        kind = _MARKS.get(path.name)
        if kind is not None and kind != "a model's bundle" and path.parent != PurePosixPath("."):
            return str(path.parent), kind
    return None
