import io
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from pipeline.config import IndexConfig
from pipeline.data.adopt import adopt, adopt_tar, expand_braces
from pipeline.data.dataset import Dataset
from pipeline.data.verify import verify_dataset
from pipeline.errors import DatasetError


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (value, value, value)).save(buffer, "JPEG")
    return buffer.getvalue()


def stock_tar(path, numbers, bad=()) -> str:
    """A tar by webdataset's own writer."""
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for n in numbers:
            image = b"no image" if n in bad else jpeg(n)
            writer.write({"__key__": f"{n:04d}", "jpg": image, "cls": b"1", "json": b"{}"})
    return str(path)


def test_stock_tars_are_adopted_where_they_lie(tmp_path):
    for n in range(3):
        stock_tar(tmp_path / f"{n}.tar", range(n * 10, n * 10 + 10))
    output = str(tmp_path / "adopted")
    result = adopt(IndexConfig(source=(str(tmp_path / "{0..2}.tar"),), output=output))
    dataset = Dataset.open(output)
    assert len(dataset) == result.samples == 30
    index = dataset.read_index(1)
    assert index.keys[0] == "0010"
    assert (index.widths[0], index.heights[0]) == (12, 10)
    data = (tmp_path / "1.tar").read_bytes()
    assert data[index.offsets[0] :][: index.sizes[0]] == jpeg(10)
    assert verify_dataset(output) == []


def test_a_cut_at_any_place_is_found(tmp_path):
    data = Path(stock_tar(tmp_path / "whole.tar", range(4))).read_bytes()
    index_end = len(data.rstrip(b"\0"))
    end = -(-index_end // 512) * 512
    for cut in range(256, end + 1024, 256):
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        with pytest.raises(DatasetError):
            adopt_tar(str(tmp_path / "cut.tar"), "none")
    (tmp_path / "cut.tar").write_bytes(data[: end + 1024])
    assert adopt_tar(str(tmp_path / "cut.tar"), "none").record.samples == 4


def test_a_sample_that_is_no_image_does_not_count_and_is_listed(tmp_path):
    stock_tar(tmp_path / "a.tar", range(5), bad=(2,))
    output = str(tmp_path / "adopted")
    result = adopt(IndexConfig(source=(str(tmp_path / "a.tar"),), output=output, verify="full"))
    assert (result.samples, result.rejected) == (4, 1)
    assert Dataset.open(output).shards[0].removed == (2,)


def test_a_key_in_two_tars_is_refused(tmp_path):
    stock_tar(tmp_path / "a.tar", range(5))
    stock_tar(tmp_path / "b.tar", range(4, 9))
    with pytest.raises(DatasetError, match="0004"):
        adopt(IndexConfig(source=(str(tmp_path),), output=str(tmp_path / "adopted")))


def test_braces_expand_with_their_zeros():
    assert expand_braces("s3://b/{08..10}.tar") == [f"s3://b/{n}.tar" for n in ("08", "09", "10")]
