"""Which code runs: for the registry's tags and for `vae_build_info`."""

import shutil
import subprocess
from importlib import metadata
from pathlib import Path


def git_revision() -> str:
    """The commit of the code that runs, `unknown` outside a checkout (as in an image)."""
    if shutil.which("git") is None:
        return "unknown"
    folder = Path(__file__).parent
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


def version() -> str:
    """The package's version and the commit."""
    try:
        released = metadata.version("vae-pipeline")
    except metadata.PackageNotFoundError:
        released = "0"
    return f"{released}+{git_revision()}"
