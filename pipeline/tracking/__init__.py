"""A number's way from a step's report to /metrics, MLflow and the terminal."""
