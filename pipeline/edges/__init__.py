"""The only room that knows Ray, MLflow and prometheus-client."""
