import importlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cluster.packing_pool import RayExecutor, pack_on_ray
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.config import PackConfig
from pipeline.errors import SampleError
from pipeline.packing.pack import pack
from tests.support.warm import ray_workers_here


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    # As in a notebook whose user had a cluster of their own before: Ray remembers its token.
    ray = importlib.import_module("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    ray.shutdown()
    with ray_workers_here(), ray_cluster(2):
        yield


def test_ray_tasks_make_the_bytes_that_threads_make(cluster: None, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(40):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"in/{seed}.png")

    def config(name: str) -> PackConfig:
        output = str(tmp_path / name)
        return PackConfig(source=(str(tmp_path / "in"),), output=output, shard_bytes=20_000)

    result = pack_on_ray(config("ray"))
    assert result.shards > 3
    assert result.digest == pack(config("threads")).digest


def _die_once(flag: str) -> int:
    if not os.path.exists(flag):
        open(flag, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def _refuse() -> None:
    raise SampleError("corrupt", "told from afar")


def test_a_task_whose_worker_is_killed_is_done_by_another_and_an_error_arrives(
    cluster: None, tmp_path: Path
) -> None:
    executor = RayExecutor()
    lost, refused = executor.submit(_die_once, str(tmp_path / "x")), executor.submit(_refuse)
    deadline = time.monotonic() + 600
    while not (lost.done() and refused.done()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert lost.result() != os.getpid()
    with pytest.raises(SampleError, match="told from afar"):
        refused.result()
