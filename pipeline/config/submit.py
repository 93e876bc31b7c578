"""The knobs of `jobs.submit`."""

from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.sections import Section, Url
from pipeline.masking import secret_in_command


class SubmitConfig(Section):
    """`jobs.submit [flags] -- python -m jobs.NAME ...`: run a job on a cluster, and follow it.

    The same command joins the job where it runs already. Ends with 0 succeeded, 1 failed, 2 wrong
    usage, 3 finished with quarantine, 4 lost, 5 stopped.
    """

    is_look: ClassVar[bool] = True
    interrupted: ClassVar[str] = (
        "a job that was submitted goes on; the same command follows it again."
    )

    first: ClassVar[tuple[str, ...]] = (
        "command",
        "id",
        "detach",
        "status",
        "logs",
        "stop",
        "list",
        "kubernetes",
        "gpus",
        "queue",
        "dry_run",
    )

    timeout_seconds: ClassVar[float] = 30.0
    """How long one answer is waited for: a head under load takes seconds to list its jobs."""
    stop_seconds: ClassVar[float] = 120.0
    """How long a stopped training may take: a step, and a checkpoint over a slow line."""
    lost_seconds: ClassVar[float] = 300.0
    """A job whose place does not answer for so long is lost: a head that KubeRay replaces is back
    within a few minutes, and whoever gave up too early joins by the same command."""
    poll_seconds: ClassVar[float] = 2.0
    """Between two looks at the job: each costs its place some milliseconds."""

    command: tuple[str, ...] = Field((), description="What to run: all that follows `--`.")
    address: str | None = Field(
        None,
        description="The Ray dashboard, http://HOST:8265; None: RAY_API_SERVER_ADDRESS, else "
        "http://127.0.0.1:8265.",
    )
    id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="The submission's id; None: made from the command.",
    )
    stop: bool = Field(False, description="Stop the job, a training after a last checkpoint.")
    status: bool = Field(False, description="Say how the job is.")
    logs: bool = Field(False, description="Print the job's log, from its run if its head is gone.")
    list: bool = Field(False, description="List the cluster's jobs.")
    detach: bool = Field(False, description="Submit, and do not follow.")
    ship: Url | None = Field(
        None, description="Folder whose files the job runs with; None: the image's own code."
    )
    kubernetes: bool = Field(
        False,
        description="As a RayJob with a cluster of its own: a copy of the cluster's template.",
    )
    gpus: int | None = Field(
        None,
        gt=0,
        description="With --kubernetes: GPUs, one for each worker; None: the template's.",
    )
    image: str | None = Field(None, description="With --kubernetes: None: the template's image.")
    pool: str | None = Field(
        None,
        description="With --kubernetes: the template that the RayJob is a copy of; None: train for "
        "trainings, encode for what runs a model, cpu for all else.",
    )
    queue: str | None = Field(
        None,
        description="With --kubernetes: the queue that decides when the job begins; None: the "
        "template's, or none.",
    )
    priority: str | None = Field(
        None,
        description="With --kubernetes: a PriorityClass of the cluster, or of its queue; None: the "
        "template's.",
    )
    deadline_hours: float | None = Field(
        None,
        gt=0,
        description="With --kubernetes: ends a try after so long, queues not counted; None: never.",
    )
    retries: int | None = Field(
        None,
        ge=0,
        description="With --kubernetes: how often KubeRay tries again what failed; None: as the "
        "template says.",
    )
    namespace: str | None = Field(
        None, description="With --kubernetes: None: the pod's own namespace, else vae."
    )
    context: str | None = Field(
        None,
        description="With --kubernetes: kubectl's context; None: a pod's service account, or "
        "kubectl's current context.",
    )
    dry_run: bool = Field(
        False, description="With --kubernetes: print the RayJob, and create nothing."
    )
    resubmit_on_head_loss: int = Field(
        0, ge=0, description="Times that the job is submitted again to a head that replaced its."
    )

    @field_validator("command")
    @classmethod
    def _runs_without_secrets(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        if (found := secret_in_command(command)) is not None:
            raise ValueError(
                f"the command holds {found}, and whoever sees the cluster's jobs reads it. Take it "
                "out: secrets come from the environment of the cluster's processes "
                "(k8s/README.md), and a shell's line may name a variable of theirs, as $TOKEN"
            )
        return command

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        asked = [self.stop, self.status, self.logs, self.list]
        if sum([*asked, self.dry_run]) > 1:
            raise ValueError("give one of `--stop`, `--status`, `--logs`, `--list`, `--dry-run`")
        only = (
            "gpus", "image", "pool", "queue", "priority", "deadline_hours", "retries", "namespace",
            "context",
        )  # fmt: skip
        given = [name for name in only if getattr(self, name) is not None]
        if not self.kubernetes and (given or self.dry_run):
            raise ValueError(f"{', '.join(given) or 'dry_run'}: give them with `--kubernetes`")
        if self.kubernetes and (self.ship is not None or self.address):
            raise ValueError(
                "--kubernetes runs the image's code: leave `--ship` and `--address` out"
            )
        if not self.list and not self.command and not (any(asked) and self.id):
            raise ValueError(
                "give the job's command after --, such as `python -m jobs.submit -- python -m "
                "jobs.train --data URL --run NAME`; --stop, --status and --logs take `--id ID`"
            )
        return self
