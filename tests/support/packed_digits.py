"""A small real dataset for tests: scikit-learn's digits, packed by the real job."""

from pathlib import Path

from jobs.demo import write_digits as write_pngs
from pipeline.config import PackConfig
from pipeline.packing.pack import pack


def write_digits(folder: Path, count: int = 600, holdout: float = 0.1) -> Path:
    """Packs the first `count` digits below `folder`; returns the training split."""
    write_pngs(folder / "images", range(count))
    pack(
        PackConfig(
            source=(str(folder / "images"),), output=str(folder / "packed"), holdout=holdout,
            workers=1,
        )
    )  # fmt: skip
    return folder / "packed/train"
