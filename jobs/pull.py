"""Copy a registered model's bundle to disk, its checksums verified."""

from jobs.command import Outcome, run_job
from pipeline.config import PullConfig


def main(config: PullConfig) -> Outcome:
    """Resolves the URI once, then copies that version."""
    from pipeline.registry.models import pull

    model, digest = pull(config.model, config.output)
    return Outcome(
        {"path": config.output, "model": model.uri, "version": model.version, "digest": digest},
        summary=[f"{config.output}: {model.uri}, digest {digest}, checksums verified."],
    )


if __name__ == "__main__":
    run_job(PullConfig, main)
