"""`make install` with the programs of this machine replaced by ones that note what is asked."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.warm import ROOT

# As `python3`, and as the Python of the environment that it makes. UV: may uv be installed?
PYTHON = """#!/bin/sh
echo "$0 $*" >> "$NOTES"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-m pip install "*" uv") test "$UV" = yes && cp "$0" "${0%python}uv" ;;
  *--editable*) test "$PACKAGES" = yes ;;
esac
"""
TOOLS = ("cp", "make", "mkdir", "sh", "touch")
INSTALLED = "pip install --quiet --constraint constraints.txt --editable .[dev]"


def installed(folder: Path, uv: str, packages: str = "yes") -> tuple[int, list[str]]:
    """The exit code of `make install` in a fresh copy, and what was asked of python and uv."""
    (folder / "bin").mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (folder / "bin" / tool).symlink_to(found)
    (folder / "bin/python3").write_text(PYTHON)
    (folder / "bin/python3").chmod(0o755)
    environment = {
        "PATH": str(folder / "bin"), "NOTES": str(folder / "notes"), "UV": uv, "PACKAGES": packages,
    }  # fmt: skip
    done = subprocess.run(
        [folder / "bin/make", "install"], cwd=folder, env=environment, capture_output=True
    )
    notes = (folder / "notes").read_text().replace(f"{folder}/", "")
    return done.returncode, notes.splitlines()


@pytest.mark.parametrize(("uv", "by"), [("yes", "uv"), ("no", "python -m")])
def test_without_uv_pip_installs_the_same_under_the_same_constraints(
    tmp_path: Path, uv: str, by: str
) -> None:
    code, asked = installed(tmp_path, uv)
    assert (code, asked[-1]) == (0, f".venv/bin/{by} {INSTALLED}")
    assert (tmp_path / ".venv/installed").exists()


def test_packages_that_cannot_be_installed_are_not_taken_for_installed(tmp_path: Path) -> None:
    code, _ = installed(tmp_path, "no", packages="no")
    assert code != 0
    assert not (tmp_path / ".venv/installed").exists()
