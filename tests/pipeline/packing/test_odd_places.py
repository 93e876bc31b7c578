"""Links in rings, what is no file, and tables where nothing opens them: each is counted once."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from pipeline.packing.pack import pack
from tests.pipeline.packing.test_odd_inputs import file, link, pack_file, packed, tar, zipped
from tests.pipeline.packing.test_pack import config, png, write


def test_links_in_rings_are_left_out_of_a_folder_as_of_a_tar(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"x/a.png": png(1)})
    rings = {"self.png": "self.png", "one": "two", "two": "one", "x/up": "..", "x/b.png": "a.png"}
    for name, target in rings.items():
        os.symlink(target, f"{folder}/{name}")
    data = tar(file("x/a.png", png(1)), *(link(*ring) for ring in rings.items()))
    for source, output in ((folder, "folder"), (str(tmp_path / "t.tar"), "tar")):
        (tmp_path / "t.tar").write_bytes(data)
        result = pack(config(source, tmp_path / output))
        assert set(packed(result)) == {"x/a.png", "x/b.png"}
        assert (result.seen, result.ignored) == (3, {"dangling": 1})
        assert result.counts.others == {"dangling links": 3}, "what is seen is not beside"


def test_a_fifo_a_socket_and_a_device_are_counted_in_a_folder_as_in_a_tar(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"x/a.png": png(1)})
    os.mkfifo(f"{folder}/x/fifo.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(f"{folder}/x/sock.png"))
        os.symlink("/dev/null", f"{folder}/x/null.png")
        result = pack(config(folder, tmp_path / "out"))
    assert (result.seen, result.samples, result.counts.others) == (1, 1, {"devices": 3})


@pytest.mark.parametrize(
    "make", [zipped, lambda found: tar(*(file(*one) for one in found.items()))]
)
def test_a_table_in_an_archive_is_counted_with_what_to_do(tmp_path: Path, make: Any) -> None:
    data = make({"a.png": png(1), "t.parquet": b"PAR1", "d/u.arrow": b"ARROW1"})
    result = pack_file(tmp_path, "t.archive", data)
    assert (result.seen, result.samples) == (3, 1)
    assert result.ignored == {"table in an archive": 2}
    assert not result.counts.others
    assert "2 table in an archive: unpack the archives" in "\n".join(result.counts.summary())
    assert result.counts.lost() == 2
    assert result.counts.lost(["table in an archive"]) == 0
