"""Whether two checkouts pack, order, train and encode to the same bits on this machine.

    python -m tests.benchmarks.same_bits --old ../checkout-of-5c84cd1

Each checkout goes through the same commands in processes of its own: a fixed pack, the order of one
epoch, a fixed-seed run in one process, under torchrun and on Ray with two workers, a fixed
encoding. What is compared are digests of files, never numbers that were printed.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

_IMAGES = """
import sys
from jobs.demo import write_digits
from pathlib import Path
write_digits(Path(sys.argv[1]), range(300))
"""

_ORDER = """
import hashlib
from pipeline.data.order import Order
digest = hashlib.sha256()
for shuffle in (True, False):
    for tail in ("pad", "drop", "wrap"):
        order = Order(1003, 24, 5, 16, 4, shuffle, tail)
        for epoch in (0, 3):
            for index in range(order.steps):
                digest.update(order.batch(epoch, index, range(24)).tobytes())
print(digest.hexdigest())
"""

_BUNDLE = """
import sys
from pipeline.vae import load_bundle
print(load_bundle(sys.argv[1]).digest)
"""


def main() -> None:
    """Prints a line per digest; exit code 1 if any differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--new", type=Path, default=ROOT)
    options = parser.parse_args()
    found = {}
    for checkout in (options.old.absolute(), options.new.absolute()):
        with tempfile.TemporaryDirectory() as folder:
            found[checkout] = digests(checkout, Path(folder))
    old, new = found.values()
    for name in sorted(old | new):
        verdict = "same" if old.get(name) == new.get(name) else "DIFFERS"
        print(f"{verdict:8}{name:48} {old.get(name)} {'' if verdict == 'same' else new.get(name)}")
    sys.exit(0 if old == new else 1)


def digests(checkout: Path, work: Path) -> dict[str, str]:
    """What this checkout makes, as digests by name."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "MLFLOW_", "AWS_"))
    }
    environment |= {"PYTHONPATH": str(checkout), "CUDA_VISIBLE_DEVICES": ""}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=work, env=environment, text=True, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""

    run("-c", _IMAGES, "images")
    run("-m", "jobs.pack", "--source", "images", "--output", "packed", "--holdout", "0.1")
    made = {"order": run("-c", _ORDER)}
    for split in ("train", "holdout"):
        for shard in sorted((work / "packed" / split).rglob("*.tar")):
            made[f"pack: {split}/{shard.name}"] = _sha256(shard)
    ways = {
        "in one process": ("-m", "jobs.train", "--workers", "0"),
        "torchrun, 2 ranks": (
            "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--", "jobs.train",
            "--workers", "0",
        ),
        "Ray, 2 workers": ("-m", "jobs.train", "--workers", "2"),
    }  # fmt: skip
    for number, (way, start) in enumerate(ways.items()):
        run(
            *start, "--data", "packed/train", "--run", f"r{number}", "--steps", "40", "--seed", "3",
            "--global-batch-size", "32", "--image-size", "16", "--model.kind", "conv",
            "--model.width", "8", "--precision", "fp32",
        )  # fmt: skip
        bundle = work / "runs" / f"r{number}" / "bundle"
        made[f"weights: {way}"] = _sha256(bundle / "model.safetensors")
        made[f"model: {way}"] = run("-c", _BUNDLE, str(bundle))
    run(
        "-m", "jobs.encode", "--model", "runs/r0/bundle", "--data", "packed/train",
        "--output", "store", "--actors", "0",
    )  # fmt: skip
    for file in sorted((work / "store").rglob("*.arrow")):
        made[f"latents: {len(made):03d}"] = json.dumps([file.stat().st_size, _sha256(file)])
    return made


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
