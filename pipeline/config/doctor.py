"""The knobs of `jobs.doctor`."""

from pydantic import Field

from pipeline.config.sections import Section, TrackingConfig, Url


class DoctorConfig(Section):
    """`jobs.doctor`: probe what the jobs need; say what is wrong and which command mends it."""

    storage: Url = Field("./runs", description="Where runs, datasets or stores shall live.")
    probe_bytes: int = Field(
        8 * 2**20, ge=2**16, description="Bytes written and read to measure the storage's speed."
    )
    address: str | None = Field(
        None,
        description="The Ray dashboard, http://HOST:8265; None: RAY_API_SERVER_ADDRESS, if set.",
    )
    timeout_seconds: float = Field(10, gt=0, description="How long one answer is waited for.")
    tracking: TrackingConfig = TrackingConfig()
