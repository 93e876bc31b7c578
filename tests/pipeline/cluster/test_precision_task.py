"""bf16 tried by a Ray task: as in this process, and whatever ends that process ends no driver."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pipeline.cluster.encoding_crew import ActorResources
from pipeline.cluster.precision_task import try_bf16_on_ray
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.data import Dataset
from pipeline.encoding.precision import Unmeasured, try_bf16
from pipeline.errors import StoreError
from tests.support.small_store import identity_of, small_dataset, small_vae
from tests.support.warm import ray_workers_here

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()),
    reason="this machine has no fast bf16, so it is never tried",
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_workers_here(), ray_cluster(1):
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"), range(8))


def _dies(_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _is_short(_: Any) -> Any:
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


def tried(dataset: Dataset, encode: Any = None) -> Any:
    vae: Any = small_vae()
    options = identity_of(vae).options
    if encode is not None:
        vae.encode = encode
    return try_bf16_on_ray(vae, dataset, options, ActorResources())


@pytest.mark.skipif(torch.cuda.is_available(), reason="an actor without a GPU rounds otherwise")
def test_it_finds_what_this_process_finds(cluster: None, dataset: Dataset) -> None:
    vae = small_vae()
    here = try_bf16(vae, dataset, identity_of(vae).options, torch.device("cpu"))
    assert tried(dataset) == here
    assert not isinstance(here, Unmeasured)


def test_a_process_that_dies_of_it_leaves_it_unmeasured_with_the_reason(
    cluster: None, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    found = tried(dataset, _dies)
    assert isinstance(found, Unmeasured)
    assert found.reason.startswith("the process that tried bf16 died, 2 times: ")
    assert caplog.text.count("the process that tried bf16 died: ") == 2


def test_memory_that_is_short_there_is_the_one_line_that_it_is_here(
    cluster: None, dataset: Dataset
) -> None:
    with pytest.raises(StoreError, match=r"can't allocate memory .*`--precision fp32`"):
        tried(dataset, _is_short)
