"""What tests of erasing erase, and where they look for its bytes: in all files of a place."""

from pathlib import Path

from pipeline import storage
from pipeline.config import PackConfig
from pipeline.data import Dataset
from pipeline.packing.pack import pack
from tests.support.small_store import small_dataset, write_images

GONE = "label1/0007.png"
KEY = "label1/0007%2Epng"


def files_below(place: str) -> dict[str, bytes]:
    """The bytes of all files, by their path in the place."""
    return {
        info.url.removeprefix(place): storage.read(info.url) for info in storage.list_objects(place)
    }


def holding(place: str, needle: bytes) -> list[str]:
    """The files below a place that hold these bytes."""
    return [name for name, data in files_below(place).items() if needle in data]


def grown_dataset(folder: Path, output: str) -> Dataset:
    """40 images in two generations, of which GONE is in both; one was removed before."""
    small_dataset(folder, range(30), output=output)
    write_images(folder / "images", range(40))
    append = PackConfig(
        source=(str(folder / "images"),), output=output, append=True, shard_bytes=60_000, workers=1,
        remove=("label0/0003.png",),
    )  # fmt: skip
    pack(append)
    return Dataset.open(output)
