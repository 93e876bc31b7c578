"""The knobs of `jobs.doctor`."""

from pydantic import Field

from pipeline.config.sections import StorageConfig


class DoctorConfig(StorageConfig):
    """`jobs.doctor`: probe what the jobs need; say what is wrong and which command mends it.

    The Ray cluster is that of RAY_API_SERVER_ADDRESS, MLflow that of MLFLOW_TRACKING_URI.
    """

    support_file: str | None = Field(
        None,
        min_length=1,
        description="Also write a zip for whoever helps: states, versions, logs, metrics, last "
        "errors; no secret, at most 5 MB.",
    )
