"""Seconds of all of `jobs.evaluate` or `jobs.explain` on photos of one size, as a user waits.

    python tests/benchmarks/evaluation_seconds.py --photos ../shared/data/photos/val --image-size 64

An untrained model of the default network costs what a trained one does. It asks of the program only
what it has had from the start, so that the file can be run in an older checkout too.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.vae import build_vae, save_bundle


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--job", choices=["evaluate", "explain"], default="evaluate")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--importance-samples", type=int, default=64)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    vae = build_vae(ModelConfig(kind="conv"), PreprocessConfig(image_size=arguments.image_size))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for path in sorted(arguments.photos.rglob("*.jpg"))[: arguments.images]:
            shutil.copy(path, folder / "images")
        save_bundle(vae, folder / "vae")
        run("jobs.pack", "--source", folder / "images", "--output", folder / "data")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        printed = run(
            f"jobs.{arguments.job}", "--model", folder / "vae", "--data", folder / "data",
            "--output", folder / "report", "--importance-samples", arguments.importance_samples,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(printed.splitlines()[-1])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    gap, bracket = found.get("gap") or {}, found.get("bracket") or {}
    report = {
        "job": arguments.job,
        "image_size": arguments.image_size,
        "images": found["images"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "bound_images": gap.get("images"),
        "bracketed_images": bracket.get("images"),
    }
    print(json.dumps(report))


def run(module: str, *words: object) -> str:
    """A job's stdout."""
    command = [sys.executable, "-m", module, *map(str, words)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode != 0:
        sys.exit(ended.stderr)
    return ended.stdout


if __name__ == "__main__":
    main()
