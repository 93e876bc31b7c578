"""Columns of images in every layout of Arrow, and columns that can't hold any."""

import base64
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from pipeline.errors import DatasetError
from pipeline.packing.pack import pack
from tests.pipeline.packing.test_odd_inputs import packed
from tests.pipeline.packing.test_pack import config, png

IMAGES = [png(1), png(2), png(1)]


def written(folder: Path, suffix: str, **columns: Any) -> str:
    path = folder / f"t{suffix}"
    write: Any = parquet.write_table if suffix == ".parquet" else feather.write_feather
    write(pa.table(columns), str(path))
    return str(path)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("kind", [pa.binary_view(), pa.large_binary(), "dictionary"])
def test_bytes_in_any_layout_are_images(tmp_path: Path, kind: Any, suffix: str) -> None:
    plain = pa.array(IMAGES, pa.binary())
    image = plain.dictionary_encode() if kind == "dictionary" else pa.array(IMAGES, kind)
    label = pa.array(["x", "y", "x"]).dictionary_encode()
    result = pack(config(written(tmp_path, suffix, image=image, label=label), tmp_path / "out"))
    assert (result.seen, result.samples) == (3, 3)
    found = [packed(result)[f"t/{row:08d}"] for row in range(3)]
    assert found == list(zip(IMAGES, "xyx", strict=True))


COLUMNS = [
    (pa.array([[1, 2], [3]], pa.list_(pa.uint8())), "'image' holds a list in row 1, and no path"),
    (pa.array([IMAGES, IMAGES[:1]], pa.list_(pa.binary())), "image holds lists of images"),
    (pa.array([[], IMAGES], pa.list_(pa.binary_view())), "image holds lists of images"),
    (pa.array([b"no", b"image"]), "'image' holds bytes that begin as no image's file in row 1"),
    (pa.array([base64.b64encode(each).decode() for each in IMAGES]), "as base64 text in row 1"),
    (
        pa.array([f"data:image/png;base64,{base64.b64encode(png(1)).decode()}"]),
        "as base64 text in row 1",
    ),
]


@pytest.mark.parametrize(("image", "said"), COLUMNS)
def test_a_column_that_holds_no_image_is_told_as_what_it_is(
    tmp_path: Path, image: Any, said: str
) -> None:
    with pytest.raises(DatasetError, match=said):
        pack(config(written(tmp_path, ".parquet", image=image), tmp_path / "out"))


def test_a_column_of_pixels_is_refused_by_its_name_too(tmp_path: Path) -> None:
    url = written(tmp_path, ".parquet", pixels=pa.array([[1, 2]], pa.list_(pa.uint8())))
    said = r"the column pixels holds list<element: uint8>, and no image's file"
    with pytest.raises(DatasetError, match=said):
        pack(config(url, tmp_path / "out", image_column="pixels"))
