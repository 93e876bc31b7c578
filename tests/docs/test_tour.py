"""docs/tour.ipynb, cell by cell in a real kernel: what its prose says comes out."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import ROOT

nbformat = pytest.importorskip("nbformat", reason="`make install` brings the notebook's kernel")
nbclient = pytest.importorskip("nbclient", reason="`make install` brings the notebook's kernel")
pytestmark = [pytest.mark.slow, pytest.mark.process]


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder in which it ran, and the notebook with its outputs."""
    folder: Path = tmp_path_factory.mktemp("tour")
    shutil.copy(ROOT / "docs/tour.ipynb", folder)
    notebook = nbformat.read(folder / "tour.ipynb", as_version=4)
    beside = str(Path(sys.executable).parent)
    with pytest.MonkeyPatch.context() as patch:
        # As in a shell of the environment, in which `vae` is a command.
        patch.setenv("PATH", f"{beside}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", str(ROOT))
        client = nbclient.NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        client.execute()
    return folder, notebook


def outputs(notebook: Any) -> str:
    """All that its cells printed, or show as text."""
    found = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    texts = [out.get("text", "") + out.get("data", {}).get("text/plain", "") for out in found]
    return "\n".join(texts)


def test_the_tour_does_its_five_things(tour: tuple[Path, Any]) -> None:
    folder, notebook = tour
    said = outputs(notebook)
    assert "Dataset" in said  # 1: it is opened, and looked at
    assert "Run first: done after 200 steps" in said.replace(str(folder / "runs/first"), "first")
    assert "LatentStore" in said
    assert "looked for a" in said
    assert "second minus first: ELBO -" in said  # a KL that weighs more costs ELBO
    assert "champion" in said
    assert (folder / "runs/report.html").exists(), said
    pictures = [
        out
        for cell in notebook.cells
        for out in cell.get("outputs", ())
        if "image/png" in out.get("data", {})
    ]
    assert len(pictures) == 4


def test_what_is_found_by_its_latent_looks_alike(tour: tuple[Path, Any]) -> None:
    line = next(line for line in outputs(tour[1]).splitlines() if line.startswith("looked for"))
    wanted, _, found = line.removeprefix("looked for a ").partition(" and found ")
    # By chance one of ten: of eight, fewer than one.
    assert found.count(f"'{wanted}'") >= 3


def test_the_notebook_is_kept_without_what_it_printed() -> None:
    kept = nbformat.read(ROOT / "docs/tour.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in kept.cells)
    nbformat.validate(kept)
