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
    """Of any object; the server gives uid and time."""

    name: str
    namespace: NotRequired[str]
    uid: NotRequired[str]
    creationTimestamp: NotRequired[str]
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


class Variable(TypedDict):
    """Of a container's environment; without a value it comes from elsewhere."""

    name: str
    value: NotRequired[str]


class Container(TypedDict):
    """One of a pod."""

    name: str
    image: str
    resources: Resources
    env: NotRequired[list[Variable]]


class EmptyDir(TypedDict, total=False):
    """A pod's own folder; of the medium Memory it counts as memory."""

    medium: str
    sizeLimit: str


class Volume(TypedDict):
    """A folder that containers mount."""

    emptyDir: NotRequired[EmptyDir]


class PodSpec(TypedDict):
    """What a pod runs; of the `initContainers`, those that stay beside the others may be ours."""

    initContainers: NotRequired[list[Container]]
    containers: list[Container]
    volumes: list[Volume]
    priorityClassName: NotRequired[str]


class PodMetadata(TypedDict, total=False):
    """What pods are found by, and what they say of themselves."""

    labels: dict[str, str]
    annotations: dict[str, str]


class PodTemplate(TypedDict):
    """What the pods of a group are made of."""

    metadata: NotRequired[PodMetadata]
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
    activeDeadlineSeconds: NotRequired[int]


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
    endTime: str
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


class Named(TypedDict):
    """Any object of which no more than its name is asked."""

    metadata: Metadata


LOCAL_QUEUES = tuple(
    Kind[Named]("kueue.x-k8s.io", version, "localqueues") for version in ("v1beta2", "v1beta1")
)
PRIORITY_CLASSES = Kind[Named]("scheduling.k8s.io", "v1", "priorityclasses")
QUEUE = "kueue.x-k8s.io/queue-name"
"""The label of what waits in one of Kueue's queues."""
