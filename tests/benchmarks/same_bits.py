"""Whether two checkouts order, pack, train and encode to the same bits on this machine.

    python -m tests.benchmarks.same_bits --old ../checkout-of-5c84cd1

Each checkout goes through the same commands in processes of its own: the order of some epochs, a
fixed pack; and over fixed tars that both adopt, so that a change of packing changes nothing here,
a fixed-seed run in one process, under torchrun and on Ray with two workers, and a fixed encoding.
What is compared are digests, never numbers that were printed. `content`: of what is in the files,
in their order (images, weights, latents), which stays when a format is changed on purpose; `file`:
of their bytes, which need not.
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
import sys, tarfile
from jobs.demo import write_digits
from pathlib import Path
write_digits(Path("images"), range(300))
files = sorted(Path("images").rglob("*.png"))
for split, first, last in (("train", 0, 260), ("holdout", 260, 300)):
    Path("tars", split).mkdir(parents=True)
    for start in range(first, last, 100):
        with tarfile.open(f"tars/{split}/{start:06d}.tar", "w") as tar:
            for number in range(start, min(start + 100, last)):
                info = tarfile.TarInfo(f"{number:06d}.png")
                info.size = files[number].stat().st_size
                with files[number].open("rb") as file:
                    tar.addfile(info, file)
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

_PACKED = """
import hashlib, sys, tarfile
digest = hashlib.sha256()
for path in sys.argv[1:]:
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith(".png"):
                digest.update(hashlib.sha256(tar.extractfile(member).read()).digest())
print(digest.hexdigest())
"""

_WEIGHTS = """
import hashlib, sys
from safetensors.numpy import load_file
digest = hashlib.sha256()
for name, value in sorted(load_file(sys.argv[1]).items()):
    digest.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
print(digest.hexdigest())
"""

_LATENTS = """
import hashlib, sys
import pyarrow as pa
digest = hashlib.sha256()
for path in sys.argv[1:]:
    table = pa.ipc.open_file(path).read_all()
    digest.update(repr(table.column("key").to_pylist()).encode())
    for name in ("mean", "logvar"):
        values = table.column(name).combine_chunks()
        values = getattr(values, "storage", values).flatten()
        digest.update(values.to_numpy(zero_copy_only=False).tobytes())
print(digest.hexdigest())
"""


_WAYS = {
    "in one process": ("-m", "jobs.train", "--workers", "0"),
    "torchrun, 2 ranks": (
        "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--", "jobs.train",
        "--workers", "0",
    ),
    "Ray, 2 workers": ("-m", "jobs.train", "--workers", "2"),
}  # fmt: skip


def main() -> None:
    """Prints a line per digest; exit code 1 if any content differs."""
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
        print(f"{verdict:8}{name:44} {old.get(name)} {'' if verdict == 'same' else new.get(name)}")
    contents = [name for name in old | new if name.startswith("content")]
    sys.exit(any(old.get(name) != new.get(name) for name in contents))


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

    run("-c", _IMAGES)
    run("-m", "jobs.pack", "--source", "images", "--output", "packed", "--holdout", "0.1")
    made = {"content: order": run("-c", _ORDER)}
    for split in ("train", "holdout"):
        shards = sorted((work / "packed" / split).rglob("*.tar"))
        made[f"content: pack, images of {split}"] = run("-c", _PACKED, *map(str, shards))
        made |= {f"file: pack, {split}/{shard.name}": _sha256(shard) for shard in shards}
        made[f"file: pack, {split}/manifest.json"] = _sha256(
            work / "packed" / split / "manifest.json"
        )
        run("-m", "jobs.index", "--source", f"tars/{split}", "--output", f"adopted/{split}")
    # Later checkouts read shards elsewhere only where the command says so.
    knows = any("shards_below" in path.read_text() for path in checkout.glob("pipeline/config/*"))
    below = ("--shards-below", str(work / "tars")) if knows else ()
    for number, (way, start) in enumerate(_WAYS.items()):
        told = json.loads(run(
            *start, "--data", "adopted/train", "--holdout", "adopted/holdout", *below,
            "--run", f"r{number}", "--steps", "40", "--seed", "3", "--global-batch-size", "32",
            "--image-size", "16", "--model.kind", "conv", "--model.width", "8",
            "--precision", "fp32",
        ))  # fmt: skip
        weights = work / "runs" / f"r{number}" / "bundle" / "model.safetensors"
        made[f"content: weights, {way}"] = run("-c", _WEIGHTS, str(weights))
        made[f"content: held-out ELBO, {way}"] = float(told["elbo"]).hex()
        made[f"file: weights, {way}"] = _sha256(weights)
    run(
        "-m", "jobs.encode", "--model", "runs/r0/bundle", "--data", "adopted/train", *below,
        "--output", "store", "--actors", "0", "--precision", "fp32",
    )  # fmt: skip
    latents = sorted((work / "store").rglob("*.arrow"))
    made["content: latents"] = run("-c", _LATENTS, *map(str, latents))
    made["file: latents"] = json.dumps(sorted(_sha256(file) for file in latents))
    return made


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
