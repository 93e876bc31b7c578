"""Decode latents of a store back to images: as they are, interpolated, or moved."""

from dataclasses import asdict

from jobs.command import LOADING, Outcome, run_job
from pipeline.config import DecodeConfig
from pipeline.counted import counted
from pipeline.progress import phase


def main(config: DecodeConfig) -> Outcome:
    """Writes PNG files, or one contact sheet."""
    with phase(LOADING):
        from pipeline.commands.decode import run_decoding

    result = run_decoding(config)
    return Outcome(asdict(result), summary=[f"{result.output}: {counted(result.images, 'image')}."])


if __name__ == "__main__":
    run_job(DecodeConfig, main)
