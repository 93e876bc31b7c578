"""With what a run was made: each start keeps the versions, and the next one compares."""

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("vae-pipeline", "torch", "ray", "numpy", "pillow", "simplejpeg", "mlflow")
"""What decides a run's bits, or keeps its workers alive; and whoever gets its points."""


@cache
def versions_here() -> Mapping[str, str]:
    """Of Python and of each package that is installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs, as "torch 2.9.0, was 2.8.0"; nothing where nothing is known of before."""
    names = sorted({*before, *now}) if before else []
    return [
        f"{name} {now.get(name, 'gone')}, was {before.get(name, 'not there')}"
        for name in names
        if before.get(name) != now.get(name)
    ]
