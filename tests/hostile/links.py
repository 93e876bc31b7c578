"""Places of a stranger, or of a folder that all users share, which lead to the user's own."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.hostile.cases import ENCODE, Case

LINK = "is a link to another folder"
APPEND = "pack --source photos --output data --append"


def _moved(name: str) -> Callable[[Path], None]:
    """A folder's files lie in the user's own, and the folder is a link to that."""

    def plant(home: Path) -> None:
        place = home / name
        for path in place.iterdir() if place.exists() else ():
            path.rename(home / "secret" / path.name)
        if place.exists():
            place.rmdir()
        place.symlink_to(home / "secret")

    return plant


def _shared_folder(home: Path) -> None:
    """Another user's link where what is unpacked would lie."""
    (home / f"tmp/vae-pipeline-unpacked-{os.getuid()}").symlink_to(home / "secret")
    with tarfile.open(home / "photos.tar.gz", "w:gz") as tar:
        tar.add(home / "photos", "photos")


LINKS = (
    *(Case(f"a dataset's garbage behind {name}", "stores --dataset data --gc --delete", LINK,
           _moved(f"data/{name}"))
      for name in ("shards", "index", "manifests", "plans", "removing", "shards/deep")),
    *(Case(f"a store's garbage behind {name}", "stores --store store --gc --delete", LINK,
           _moved(f"store/{name}"))
      for name in ("latents", "receipts", "snapshots", "reports", "latents/deep")),
    Case("garbage that is only looked for", "stores --store store --gc", LINK,
         _moved("store/latents/deep")),
    *(Case(f"a pack into {name} that is a link", APPEND, LINK, _moved(f"data/{name}"))
      for name in ("shards", "plans", "ledger")),
    Case("an encoding into a store with a link", ENCODE.replace("output out", "output store"), LINK,
         _moved("store/receipts/deep")),
    Case("an archive unpacked into another user's link", "pack --source photos.tar.gz --output out",
         "not this user's alone", _shared_folder),
)  # fmt: skip
