import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import warm
from tests.support.warm import ROOT


@pytest.mark.parametrize("form", ["folder", "tar", "parquet"])
def test_the_packing_benchmark_prints_its_ratios_as_one_json_line(
    tmp_path: Path, form: str
) -> None:
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{seed}.jpg")
    command = ["tests.benchmarks.packing", "--photos", str(tmp_path), "--copies", "2"]
    found = warm.run(ROOT, *command, "--form", form, "--rounds", "1")
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    assert result["images"] == 6
    assert result["pack_full_of_bare_decode"] > 0
    assert result["pack_header_of_shard_writer"] > 0
