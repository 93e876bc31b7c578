import io
from pathlib import Path

import webdataset
from PIL import Image

from pipeline.config import PackConfig
from pipeline.data.dataset import Dataset
from pipeline.data.stock_reader import register_openers
from pipeline.packing.pack import pack


def test_stock_webdataset_reads_a_shard_through_our_storage(tmp_path: Path) -> None:
    for n in range(5):
        Image.new("RGB", (8, 8), (n, n, n)).save(tmp_path / f"{n}.png")
    result = pack(PackConfig(source=(str(tmp_path / "*.png"),), output=str(tmp_path / "out")))
    dataset = Dataset.open(result.dataset)
    register_openers()
    url = f"file://{dataset.shard_url(dataset.shards[0])}"
    found = {s["__key__"]: s["png"] for s in webdataset.WebDataset(url, shardshuffle=False)}
    pixels = {key: Image.open(io.BytesIO(data)).getpixel((0, 0)) for key, data in found.items()}
    assert pixels == {f"{n}%2Epng": (n, n, n) for n in range(5)}
