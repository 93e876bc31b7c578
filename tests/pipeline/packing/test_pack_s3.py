"""Packing from and to the real S3 server, in good weather and bad."""

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.config import PackConfig
from pipeline.data.dataset import Dataset
from pipeline.errors import AccessDeniedError, DatasetError
from pipeline.packing.cost import probe
from pipeline.packing.pack import pack
from pipeline.packing.verify_dataset import verify_dataset
from pipeline.storage import RetryPolicy, retry_policy
from tests.pipeline.packing.test_pack import png
from tests.servers import rgw
from tests.servers.fault_proxy import FaultProxy, Rule


def tar(images: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in images.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def source(s3_server: rgw.S3Server) -> str:
    """A prefix with twelve images, one of them in a tar.gz, one in a zip, and a text file."""
    bucket = s3_server.bucket()
    for n in range(10):
        storage.publish(f"{bucket}/in/{n % 2}/{n}.png", png(n))
    storage.publish(f"{bucket}/in/more.tar.gz", tar({"10.png": png(10)}))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("11.png", png(11))
    storage.publish(f"{bucket}/in/z.zip", buffer.getvalue())
    storage.publish(f"{bucket}/in/notes.txt", b"no image")
    storage.publish(f"{bucket}/inner/other.png", png(99))
    return f"{bucket}/in"


def config(source: str, **options: Any) -> PackConfig:
    output = source.replace("/in", "/out")
    return PackConfig(source=(source,), output=output, **{"shard_bytes": 10_000, **options})


def packed_images(url: str) -> set[bytes]:
    dataset = Dataset.open(url)
    return {
        storage.read(dataset.shard_url(record), int(start), int(start + size))
        for number, record in enumerate(dataset.shards)
        for index in [dataset.read_index(number)]
        for start, size in zip(index.offsets, index.sizes, strict=True)
    }


def test_a_prefix_with_archives_is_packed_as_the_same_files_from_a_folder(
    source: str, tmp_path: Path
) -> None:
    result = pack(config(source))
    assert result.samples == 12
    assert result.counts.others == {".txt": 1}
    assert result.shards > 2
    assert packed_images(result.dataset) == {png(n) for n in range(12)}
    assert verify_dataset(result.dataset) == []
    folder = tmp_path / "in"
    for info in storage.list_objects(source):
        path = folder / info.url.removeprefix(f"{source}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(storage.read(info.url))
    local = PackConfig(source=(str(folder),), output=str(tmp_path / "o"), shard_bytes=10_000)
    assert pack(local).digest == result.digest


def test_the_bytes_do_not_depend_on_what_failed_on_the_way(
    source: str, s3_server: rgw.S3Server, fault_proxy: FaultProxy
) -> None:
    calm = pack(config(source))
    for info in list(storage.list_objects(calm.dataset)):
        storage.delete(info.url)
    fault_proxy.seed = 3
    fault_proxy.rules = [
        Rule("^GET .*(png|tar|zip)", "reset", count=2, after_bytes=100),
        Rule("^(GET|PUT|HEAD)", "status", probability=0.3),
        Rule("^PUT .*/shards/", "lose_answer", count=1),
    ]
    with retry_policy(RetryPolicy(base_seconds=0.01, cap_seconds=0.1)):
        storm = pack(config(source))
    assert storm.digest == calm.digest
    faults: Any = fault_proxy.counters()["faults"]
    assert faults["reset"] == 2
    assert faults["status"] > 2


def test_credentials_that_are_refused_end_a_pack_and_reject_no_image(
    source: str, fault_proxy: FaultProxy
) -> None:
    fault_proxy.rules = [Rule("^GET .*png", "status", status=403, code="AccessDenied")]
    with pytest.raises(AccessDeniedError, match=r"\.png: reading was refused"):
        pack(config(source))
    fault_proxy.rules = []
    assert pack(config(source)).rejected == 0


def test_an_object_replaced_by_other_bytes_supersedes_its_sample(source: str) -> None:
    first = pack(config(source))
    storage.publish(f"{source}/1/3.png", png(33))
    second = pack(config(source, append=True))
    assert (second.added, second.samples, second.seen) == (1, first.samples, 12)
    assert png(33) in packed_images(second.dataset)


def test_a_dry_run_on_a_prefix_counts_and_writes_nothing(source: str) -> None:
    estimate = probe(config(source))
    assert estimate.images == 12
    assert not storage.exists(config(source).output + "/manifest.json")
    assert json.dumps(estimate.others) == '{".txt": 1}'


def test_a_glob_takes_what_matches(source: str) -> None:
    result = pack(config(f"{source}/0/*.png").model_copy(update={"output": f"{source}put"}))
    assert result.samples == 5


def test_a_prefix_that_is_not_there_is_told(s3_server: rgw.S3Server) -> None:
    with pytest.raises(DatasetError, match=r"--source .*does not exist, or holds nothing"):
        pack(config(f"{s3_server.bucket()}/in"))
