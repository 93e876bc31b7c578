"""The lines that find similar pictures, on a store whose pictures are known to be alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import PackConfig
from pipeline.data import Dataset
from pipeline.packing.pack import pack
from tests.docs.blocks import ROOT, blocks
from tests.support.small_store import encode, small_vae


def test_the_pages_lines_find_the_pictures_that_look_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    for label, level in (("cats", 20), ("dogs", 220)):
        (tmp_path / "in" / label).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(level - 20, level + 20, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"in/{label}/{number:03d}.png")
    monkeypatch.chdir(tmp_path)
    pack(PackConfig(source=("in",), output="runs/photos/train", workers=1))
    data = Dataset.open("runs/photos/train")
    names: dict[str, Any] = {"store": encode(small_vae(), data, "runs/latents")}
    (lines,) = [text for text in blocks(ROOT / "docs/latents.md", "python") if "similar" in text]
    exec(lines, names)
    assert names["similar"][0].startswith("cats/001")
    assert {key.split("/")[0] for key in names["similar"]} == {"cats"}
    assert max(np.asarray(picture).max() for picture in names["pictures"]) < 45
