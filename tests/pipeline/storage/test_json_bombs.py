"""JSON that is nested or large beyond reason is refused before it is parsed, by every reader."""

from pathlib import Path

import pytest

from pipeline import storage
from tests.support.hostile import DEEP, refused, refused_as_model
from tests.support.small_store import small_dataset


@pytest.mark.parametrize("name", ["manifest.json", "store.json", "bundle.json", "run.json"])
@pytest.mark.parametrize("kind", ["deep", "huge"])
def test_json_bombs_are_refused_wherever_a_job_begins_to_read(
    tmp_path: Path, name: str, kind: str
) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    if kind == "deep":
        (folder / name).write_bytes(DEEP)
    else:
        with (folder / name).open("wb") as file:
            file.truncate(storage._JSON_BYTES + 2)  # A hole, which takes no room on the disk.
    said = {
        "manifest.json": lambda: refused("verify", "--dataset", str(folder)),
        "store.json": lambda: refused("verify", "--store", str(folder)),
        "bundle.json": lambda: refused_as_model(folder, tmp_path),
        "run.json": lambda: refused(
            "train", "--data", small_dataset(tmp_path / "d", range(4)).url, "--run", "f",
            "--storage", str(tmp_path), "--workers", "0", "--image-size", "8", "--channels", "1",
            "--model.kind", "mlp",
        ),
    }[name]()  # fmt: skip
    assert name in said
    assert {"deep": "sane", "huge": "too many"}[kind] in said
