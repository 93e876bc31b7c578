import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline import storage
from pipeline.data.dataset import Dataset
from pipeline.packing import commit as pack_commit
from pipeline.packing.ledger import read_ledger, read_state
from pipeline.packing.pack import pack
from tests.pipeline.packing.test_pack import config, contents, png, write

STEPS = (
    "_write_split",
    "write_ledger",
    "create_state",
    "write_rejects",
    "_replace",
    "remove_plans",
)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True])
def test_a_commit_that_dies_at_any_step_is_finished_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    source = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(6)})
    pack(config(source, tmp_path / "out"))
    write(tmp_path / "in", {"0.png": png(60), "7.png": png(7), "bad.png": b"x"})
    change = config(source, tmp_path / "out", append=True, remove=("5",))
    real = getattr(pack_commit, step)

    def dies(*arguments: Any) -> None:
        if after:
            real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pack_commit, step, dies)
        with pytest.raises(KeyboardInterrupt):
            pack(change)
    (tmp_path / "in/5.png").unlink()
    result = pack(config(source, tmp_path / "out", append=True) if _is_done(tmp_path) else change)
    found = contents(result.dataset)
    assert {key: image for key, (image, *_) in found.items()} == {
        f"{n}%2Epng": png(seed) for n, seed in ((0, 60), (1, 1), (2, 2), (3, 3), (4, 4), (7, 7))
    }  # fmt: skip
    assert result.rejects_url
    lines = [json.loads(line) for line in storage.read(result.rejects_url).splitlines()]
    assert [(line["path"], line["reason"]) for line in lines] == [("bad.png", "not-an-image")]


def _is_done(folder: Any) -> bool:
    """Whether the second generation's state was created: then its request is no longer due."""
    state = read_state(str(folder / "out"))
    return state is not None and state.generation == 2


def test_the_ledger_says_where_each_key_is_or_why_it_is_not(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"a.png": png(0), "b.png": b"x", "c.png": png(2)})
    pack(config(source, tmp_path / "out"))
    output = str(tmp_path / "out")
    pack(config(source, output, append=True, remove=("c",)))
    rows = read_ledger(output, read_state(output))
    assert {row.path: (row.status, row.reason) for row in rows.values()} == {
        "a.png": ("packed", ""), "b.png": ("rejected", "not-an-image"), "c.png": ("removed", ""),
    }  # fmt: skip
    dataset = Dataset.open(output)
    record = dataset.shards[0]
    assert rows["a%2Epng"].shard == record.path
    assert dataset.read_index(0).keys[rows["a%2Epng"].position] == "a%2Epng"
    assert len(dataset) == 1


def test_a_file_that_is_mended_leaves_the_list_of_rejects(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"a.png": png(0), "b.png": b"x"})
    assert pack(config(source, tmp_path / "out")).rejected == 1
    write(tmp_path / "in", {"b.png": png(1)})
    result = pack(config(source, tmp_path / "out", append=True))
    assert (result.samples, result.rejects_url) == (2, None)
    assert not (tmp_path / "out/rejects.jsonl").exists()


def test_checksum_finds_a_change_that_size_and_time_hide(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"a.bmp": b"", "b.png": png(1)})
    path = tmp_path / "in/a.bmp"
    before, now = _bmp(10), _bmp(20)
    path.write_bytes(before)
    pack(config(source, tmp_path / "out"))
    times = path.stat()
    path.write_bytes(now)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert pack(config(source, tmp_path / "out", append=True)).added == 0
    result = pack(config(source, tmp_path / "out", append=True, checksum=True))
    assert (result.added, result.seen) == (1, 2)


def _bmp(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(buffer, "BMP")
    return buffer.getvalue()
