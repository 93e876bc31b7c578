"""An archive that changes after it was listed gives no image under another one's key."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import storage
from pipeline.config import PackConfig
from pipeline.data import Dataset
from pipeline.packing.inventory import open_inventory
from pipeline.packing.pack import make_plan, pack
from pipeline.packing.plan import claim
from pipeline.sources.archives import forget_unpacked
from tests.pipeline.packing.test_pack import png
from tests.servers import rgw

NAMES = [f"{label}/{n}.png" for n in range(6) for label in ("even", "odd")]
PAD = 900
"""Of each image: a change of the order then moves none of the places."""


def padded(seed: int) -> bytes:
    data = png(seed)
    return data + bytes(PAD - len(data))


def tar(names: list[str], images: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(images[name])
            archive.addfile(info, io.BytesIO(images[name]))
    return buffer.getvalue()


def nested(names: list[str], images: dict[str, bytes]) -> bytes:
    return tar(["inner.tar"], {"inner.tar": tar(names, images)})


def gzipped(names: list[str], images: dict[str, bytes]) -> bytes:
    return tar(names, images, "w:gz")


def zipped(names: list[str], images: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, images[name])
    return buffer.getvalue()


def parquet(names: list[str], images: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    rows = {
        "image": [images[name] for name in names],
        "file_name": names,
        "label": [name.partition("/")[0] for name in names],
    }
    pq.write_table(pa.table(rows), buffer)
    return buffer.getvalue()


WRITERS: dict[str, Callable[[list[str], dict[str, bytes]], bytes]] = {
    "x.tar": tar, "x.tar.gz": gzipped, "out.tar": nested, "x.zip": zipped, "x.parquet": parquet,
}  # fmt: skip


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    server: rgw.S3Server = request.getfixturevalue("s3_server")
    return server.bucket()


def pixels(data: bytes) -> bytes:
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def read(output: str) -> dict[bytes, tuple[str, str]]:
    """Each sample's path and label, by its pixels."""
    dataset = Dataset.open(output)
    samples = [dataset[n] for n in range(len(dataset))]
    assert len({each.key for each in samples}) == len(samples)
    return {each.image.tobytes(): (str(each.columns["path"]), each.label) for each in samples}


@pytest.mark.parametrize("name", WRITERS)
def test_what_was_listed_before_its_archive_changed_is_read_by_the_next_append(
    place: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    write, url = WRITERS[name], f"{place}/in/{name}"
    images = {each: padded(n) for n, each in enumerate(NAMES)}
    others = {each: padded(100 + n) for n, each in enumerate(NAMES)}
    storage.publish(url, write(NAMES, images))
    storage.publish(f"{place}/in/other/one.png", png(99))
    config = PackConfig(source=(f"{place}/in",), output=f"{place}/out")
    # As one that was killed before its first unit has left it.
    with open_inventory() as inventory:
        claim(config.output, make_plan(config, None, inventory, 1))
    forget_unpacked()
    storage.publish(url, write(NAMES[::-1], others))
    counts = pack(config).counts
    assert "goes on with what an earlier start" in caplog.text
    # A row says its own label and a zip's member its own name, but may be another image by now.
    assert (counts.packed, dict(counts.reasons)) == (1, {"changed": len(NAMES)})
    assert read(config.output) == {pixels(png(99)): ("other/one.png", "other")}
    counts = pack(config.model_copy(update={"append": True})).counts
    assert (counts.packed, counts.rejected) == (len(NAMES) + 1, 0)
    found = read(config.output)
    for each in NAMES:
        path, label = found[pixels(others[each])]
        # A row is called by its number, and says its own label.
        assert path.endswith(f"/{each}") or (label, name) == (each.partition("/")[0], "x.parquet")
