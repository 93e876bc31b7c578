"""Whether what takes memory fits where it is put. Checks yield what is wrong."""

import re
from collections.abc import Iterator, Sequence

import pytest
from ray._private import utils as ray_utils

from pipeline.config import LoaderConfig
from tests.k8s.manifests import Object, pods

_UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def size_of(quantity: str) -> int:
    """In bytes."""
    number, unit = re.fullmatch(r"(\d+)(\w*)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * _UNITS[unit]


def shared_memory(objects: Sequence[Object]) -> Iterator[str]:
    """What Ray takes for its object store fits in /dev/shm; else it uses the disk, and warns."""
    for pod in pods(objects):
        if "ray.io/node-type" not in pod.labels:
            continue
        (container,) = pod.spec["containers"]
        (name,) = [m["name"] for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm"]
        (volume,) = [each["emptyDir"] for each in pod.spec["volumes"] if each["name"] == name]
        size = size_of(volume["sizeLimit"])
        limit = size_of(container["resources"]["limits"]["memory"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ray_utils, "get_shared_memory_bytes", lambda size=size: size)
            taken = ray_utils.resolve_object_store_memory(limit)
        if size > limit:
            yield f"{pod.owner}: /dev/shm may take all of its memory"
        if taken > size:
            yield f"{pod.owner}: Ray takes {taken:,} B for objects, /dev/shm has {size:,}"


def disks(objects: Sequence[Object]) -> Iterator[str]:
    """/tmp is a disk that holds what the scheduler looked for room for, and a training's cache."""
    for pod in pods(objects):
        volumes = {each["name"]: each for each in pod.spec.get("volumes", [])}
        for container in pod.containers:
            for mount in container.get("volumeMounts", []):
                if mount["mountPath"] != "/tmp":
                    continue
                place = volumes[mount["name"]]["emptyDir"]
                asked = container["resources"]["requests"].get("ephemeral-storage", "0")
                least = size_of(asked)
                if "train/workers" in pod.owner:
                    least = max(least, LoaderConfig().cache_bytes)
                if "medium" in place:
                    yield f"{pod.owner}/{container['name']}: /tmp is memory"
                # The kubelet evicts a pod that is above it.
                if size_of(place["sizeLimit"]) < least:
                    yield f"{pod.owner}/{container['name']}: /tmp holds less than {least:,} B"
