"""The knobs of `jobs.doctor`."""

from pipeline.config.sections import RunsConfig


class DoctorConfig(RunsConfig):
    """`jobs.doctor`: probe what the jobs need; say what is wrong and which command mends it.

    The Ray cluster is that of RAY_API_SERVER_ADDRESS, MLflow that of MLFLOW_TRACKING_URI.
    """
