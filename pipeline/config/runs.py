"""The knobs of `jobs.runs`."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.sections import DELETE, StorageConfig


class RunsConfig(StorageConfig):
    """`jobs.runs`: what runs there are and what they take; remove what is not needed any more."""

    is_look: ClassVar[bool] = True

    run: tuple[str, ...] = Field((), description="Only these runs; none named: all of them.")
    remove: Literal["checkpoints", "runs"] | None = Field(
        None,
        description="What may go of finished runs: their checkpoints, or all they have.",
    )
    older_days: float = Field(
        0.0, ge=0, description="With --remove: only of runs that nothing changed for so many days."
    )
    keep_last: int = Field(
        0, ge=0, description="With --remove: the newest runs, this many, stay whatever their age."
    )
    delete: bool = Field(False, description=DELETE)

    @model_validator(mode="after")
    def _removes_something(self) -> Self:
        asked = self.delete or self.older_days or self.keep_last
        if asked and self.remove is None:
            raise ValueError(
                "--delete, --older-days and --keep-last belong to `--remove checkpoints` or "
                "`--remove runs`; look at it without `--delete` first"
            )
        return self
