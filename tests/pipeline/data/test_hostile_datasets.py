"""A dataset made to do harm: no file outside it is read, and nothing in it is run."""

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.data.manifest import CURRENT
from tests.support.hostile import Poison, folder_of_one_image, forged_dataset, refused


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return folder_of_one_image(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"path": "../0.tar"}, {"path": "/etc/passwd"}, {"index_path": "a/../../index.arrow"},
     {"index_path": "http://127.0.0.1:9/index.arrow"}, {"index_path": "file:///etc/passwd"}],
)  # fmt: skip
def test_a_manifest_that_leads_out_of_its_dataset_is_refused(
    image: Path, changes: dict[str, Any]
) -> None:
    assert "leads out" in refused("verify", "--dataset", forged_dataset(image, **changes))


@pytest.mark.parametrize("digest", ["../../secret", "http://127.0.0.1:9/x", None, ["a"], "../" * 9])
def test_a_pointer_that_names_no_manifest_of_its_dataset_is_refused(
    image: Path, digest: str | list[str] | None
) -> None:
    url = forged_dataset(image)
    pointer = CURRENT.parse((image / "manifest.json").read_bytes(), "manifest.json")
    (image / "manifest.json").write_bytes(CURRENT.encode({**pointer, "digest": digest}))
    assert "makes no sense (digest" in refused("verify", "--dataset", url)


def poisoned_arrow(marker: Path) -> bytes:
    """As pyarrow before 14 unpickled it: a column whose type is a Python object."""
    metadata: dict[str, str | bytes] = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Poison(marker), 0),
    }
    schema = pa.schema([pa.field("keys", pa.int64(), metadata=metadata)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array([1])], schema=schema))
    return sink.getvalue().to_pybytes()


def test_an_index_with_a_pickled_type_and_one_that_is_garbage_are_refused(
    image: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    for n, index in enumerate((poisoned_arrow(marker), b"ARROW1\0\0" + bytes(200), b"")):
        data = forged_dataset(image, index=index)
        said = refused(
            "train", "--data", data, "--run", f"r{n}", "--storage", str(image / "runs"),
            "--workers", "0", "--image-size", "8",
            "--channels", "1", "--model.kind", "mlp", "--steps", "1",
        )  # fmt: skip
        assert "is no index" in said
    assert not marker.exists()
