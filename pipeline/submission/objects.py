"""Kubernetes' objects, as far as they are read or changed here; all else is carried along.

The API server checks them against their schemas, so they are typed and not checked again.
"""

from dataclasses import dataclass
from typing import Generic, Literal, NotRequired, TypedDict, TypeVar

Object = TypeVar("Object")


@dataclass(frozen=True)
class Kind(Generic[Object]):
    """Objects of a custom kind, by the names that paths have of it."""

    group: str
    version: str
    plural: str


class Metadata(TypedDict):
    """Of any object; the server gives the uid."""

    name: str
    namespace: NotRequired[str]
    uid: NotRequired[str]
    labels: NotRequired[dict[str, str]]


class Condition(TypedDict):
    """One thing that a controller says of an object."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: NotRequired[str]
    message: NotRequired[str]


class Resources(TypedDict):
    """By resource, such as memory: 8Gi or nvidia.com/gpu: "1"."""

    requests: NotRequired[dict[str, str]]
    limits: dict[str, str]


class Container(TypedDict):
    """One of a pod."""

    image: str
    resources: Resources


class EmptyDir(TypedDict, total=False):
    """A pod's own folder; of the medium Memory it counts as memory."""

    medium: str
    sizeLimit: str


class Volume(TypedDict):
    """A folder that containers mount."""

    emptyDir: NotRequired[EmptyDir]


class PodSpec(TypedDict):
    """What a pod runs."""

    containers: list[Container]
    volumes: list[Volume]


class PodTemplate(TypedDict):
    """What the pods of a group are made of."""

    spec: PodSpec


class HeadGroup(TypedDict):
    """The head of a Ray cluster."""

    template: PodTemplate


class WorkerGroup(TypedDict):
    """Equal pods of a Ray cluster."""

    template: PodTemplate
    rayStartParams: dict[str, str]
    replicas: int
    minReplicas: int
    maxReplicas: int


class ClusterSpec(TypedDict):
    """The Ray cluster of a job."""

    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]
    authOptions: NotRequired[dict[str, str]]
    enableInTreeAutoscaling: NotRequired[bool]
    autoscalerOptions: NotRequired[object]


class RayJobSpec(TypedDict):
    """What a RayJob is asked for; a template has no entrypoint."""

    rayClusterSpec: ClusterSpec
    entrypoint: NotRequired[str]
    submissionMode: NotRequired[str]
    suspend: NotRequired[bool]
    backoffLimit: NotRequired[int]


class ClusterStatus(TypedDict, total=False):
    """What KubeRay says of a job's cluster."""

    conditions: list[Condition]
    desiredWorkerReplicas: int
    readyWorkerReplicas: int


class RayJobStatus(TypedDict, total=False):
    """What KubeRay says of a job; `jobStatus` is Ray's own word for it."""

    jobDeploymentStatus: str
    jobStatus: str
    reason: str
    message: str
    failed: int
    rayClusterName: str
    rayClusterStatus: ClusterStatus


class RayJob(TypedDict):
    """A job with a cluster of its own; it has no status before KubeRay has seen it."""

    apiVersion: str
    kind: str
    metadata: Metadata
    spec: RayJobSpec
    status: NotRequired[RayJobStatus]


class RayJobTemplate(TypedDict):
    """What RayJobs are copied from."""

    metadata: Metadata
    spec: RayJobSpec


class WorkloadStatus(TypedDict, total=False):
    """What Kueue says of what it queues."""

    conditions: list[Condition]


class Workload(TypedDict):
    """Kueue's object beside one that it queues."""

    status: NotRequired[WorkloadStatus]


RAYJOBS = Kind[RayJob]("ray.io", "v1", "rayjobs")
TEMPLATES = Kind[RayJobTemplate]("vae-pipeline.internal", "v1", "rayjobtemplates")
WORKLOADS = tuple(
    Kind[Workload]("kueue.x-k8s.io", version, "workloads") for version in ("v1beta2", "v1beta1")
)
"""Kueue 0.15 and later, and all before."""
QUEUE = "kueue.x-k8s.io/queue-name"
"""The label of what waits in one of Kueue's queues."""
