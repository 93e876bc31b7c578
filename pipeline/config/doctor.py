"""The knobs of `jobs.doctor`."""

from pydantic import Field

from pipeline.config.sections import RAY_ADDRESS, RunsConfig


class DoctorConfig(RunsConfig):
    """`jobs.doctor`: probe what the jobs need; say what is wrong and which command mends it."""

    address: str | None = Field(
        None,
        description=RAY_ADDRESS,
    )
