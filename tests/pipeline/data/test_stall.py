import threading
from pathlib import Path

import pytest

from pipeline.background import describe_threads
from pipeline.config import PackConfig
from pipeline.data import Dataset, Loader
from pipeline.errors import DatasetError
from pipeline.packing.pack import pack
from tests.servers import rgw
from tests.servers.fault_proxy import FaultProxy, Rule
from tests.support.digit_models import pack_digits


def test_a_thread_is_named_with_the_calls_it_waits_in() -> None:
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait, name="decode-of-test")
    thread.start()
    said = describe_threads("decode-of")
    gate.set()
    thread.join()
    (line,) = said
    assert line.startswith("decode-of-test: ")
    assert "wait (threading.py:" in line
    assert describe_threads("decode-of") == ["none of its threads runs"]


def test_a_black_hole_is_an_error_that_names_the_object_and_not_a_hang(
    tmp_path: Path, s3_server: rgw.S3Server, fault_proxy: FaultProxy
) -> None:
    pack_digits(tmp_path)
    bucket = s3_server.bucket()
    pack(PackConfig(source=(str(tmp_path / "images"),), output=f"{bucket}/d", workers=1))
    dataset = Dataset.open(f"{bucket}/d")
    loader = Loader(dataset, global_batch_size=16, image_size=8, channels=1, stall_seconds=1.5)
    fault_proxy.rules = [Rule("^GET .*[.]tar", "black_hole")]
    try:
        with pytest.raises(DatasetError) as error:
            next(iter(loader))
    finally:
        fault_proxy.rules = []
    said = str(error.value)
    assert "no sample for 2 s" in said
    assert ".tar [0, " in said
    assert "fetch_" in said
    assert "decode_" in said
