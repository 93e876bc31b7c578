"""Whatever the bytes are, each parser reads them or refuses them by an error of ours."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.data import Dataset
from tests.fuzz.binaries import binary_targets
from tests.fuzz.documents import document_targets
from tests.fuzz.harness import Target, hunt
from tests.fuzz.seeds import SEEDS

NAMES = (
    "shard index", "manifest", "pointer of a dataset", "receipt of latents", "receipt of a pack",
    "snapshot", "pointer of a store", "bundle", "network of a bundle", "preprocess", "weights",
    "tar", "zip", "annotations", "tables of images", "URLs", "image headers",
)  # fmt: skip
INPUTS = int(os.environ.get("FUZZ_INPUTS", "40"))
"""Of each parser in `make test`, the same each time."""
SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
"""Of each parser in `make chaos`, other inputs each time."""


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder, before = Path(name), tempfile.tempdir
        tempfile.tempdir = name  # where compressed tars are unpacked
        made = {target.name: target for target in document_targets(folder)}
        dataset = Dataset.open(str(folder / "d/data"))
        index = (folder / "d/data" / dataset.shards[0].index_path).read_bytes()
        made |= {target.name: target for target in binary_targets(folder, index)}
        assert tuple(sorted(made)) == tuple(sorted(NAMES))
        assert set(SEEDS) <= set(NAMES)
        yield made
        tempfile.tempdir = before


def check(target: Target, *, seconds: float = 0) -> None:
    found = hunt(target, inputs=INPUTS, seconds=seconds)
    print(f"\n{target.name}: {found.tried:,} inputs, {len(found.findings)} findings")
    told = [f"{one.kind}\n  input {one.shown}\n{one.said}" for one in found.findings]
    assert not told, "\n\n".join(told)


@pytest.mark.parametrize("name", NAMES)
def test_odd_inputs_are_read_or_refused(name: str, targets: dict[str, Target]) -> None:
    check(targets[name])


@pytest.mark.chaos
@pytest.mark.parametrize("name", NAMES)
def test_other_odd_inputs_each_time_are_read_or_refused(
    name: str, targets: dict[str, Target]
) -> None:
    check(targets[name], seconds=SECONDS)
