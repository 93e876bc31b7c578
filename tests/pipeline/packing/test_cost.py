from pathlib import Path

from pipeline.packing.cost import probe
from pipeline.packing.pack import pack
from tests.pipeline.packing.test_pack import config, png, write


def test_only_what_is_not_packed_yet_counts(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(5)})
    pack(config(source, tmp_path / "out"))
    before = sorted(tmp_path.rglob("*"))
    write(tmp_path / "in", {"new.png": png(50), "bad.jpg": b"nothing", "x.txt": b""})
    estimate = probe(config(source, tmp_path / "out", append=True))
    assert (estimate.images, estimate.probed) == (2, 2)
    assert estimate.bytes == len(png(50)) + len(b"nothing")
    assert estimate.reasons == {"not-an-image": 1}
    assert estimate.others == {".txt": 1}
    assert "2 inputs" in estimate.summary
    assert len(sorted(tmp_path.rglob("*"))) == len(before) + 3, "nothing but our own three files"


def test_the_probe_ends_when_its_time_is_over_and_scales_to_all(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(30)})
    estimate = probe(config(source, tmp_path / "out"), probe_seconds=1e-9)
    assert (estimate.images, estimate.probed) == (30, 1)
    assert estimate.seconds > 0


def test_a_limit_bounds_what_is_counted_and_what_is_packed(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(9)})
    limited = config(source, tmp_path / "out", limit=4)
    assert probe(limited).images == 4
    assert pack(limited).samples == 4
    rest = pack(config(source, tmp_path / "out", append=True))
    assert (rest.added, rest.samples) == (5, 9)
