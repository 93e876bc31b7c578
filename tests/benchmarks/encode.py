"""What `jobs.encode` costs beside the bare work, and what reading a store costs beside its bytes.

`python tests/benchmarks/encode.py` prints one JSON line; README.md says how to read it.
`--parts` chooses; `device` is for a machine with a GPU, and runs anywhere.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image

from pipeline.commands.encode import run_encoding
from pipeline.config import EncodeConfig, ModelConfig, PackConfig, PreprocessConfig
from pipeline.data import Dataset, preprocess_image, read_shard
from pipeline.encoding.determinism import exact_numerics
from pipeline.exchange.store_export import export_store
from pipeline.latents import LatentStore
from pipeline.latents.identity import EncodeOptions, Identity
from pipeline.latents.latent_file import LatentFileWriter, file_digest
from pipeline.latents.positions import Positions
from pipeline.latents.receipt import LatentPart, Receipt, latent_path
from pipeline.latents.snapshot import Snapshot, point_to, publish_snapshot
from pipeline.latents.statistics import empty, measure
from pipeline.latents.stored_shard import StoredPart, StoredShard
from pipeline.packing.pack import pack
from pipeline.vae import VAE, build_vae, save_bundle
from tests.support.warm import ROOT

BATCH, LANES = 64, 2
IN_FLIGHT = LANES + 1
"""One shard waits for the disk while the others compute, as with `--cores 2`."""
IMAGENET = 1_281_167
MODELS = {
    "small": ModelConfig(width=32, latent_channels=8, latent_size=4),
    "f8": ModelConfig(kind="autoencoder_kl", width=32),
    "f8_full": ModelConfig(kind="autoencoder_kl"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=6000, help="for the small model")
    parser.add_argument("--f8-images", type=int, default=512)
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--shard-images", type=int, default=64, help="about as many in each shard")
    parser.add_argument("--latents", type=int, default=8000, help="rows of the store to read")
    parser.add_argument(
        "--parts", nargs="+", default=["small", "f8", "actors", "memory", "reading"],
        choices=["small", "f8", "actors", "memory", "reading", "device"],
    )  # fmt: skip
    arguments = parser.parse_args()
    report: dict[str, object] = {"cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory(prefix="bench-encode-") as name:
        folder = Path(name)
        count = max(arguments.images, arguments.f8_images)
        data = write_dataset(folder, count, arguments.size, arguments.shard_images)
        for part in arguments.parts:
            if part in ("small", "f8"):
                images = arguments.images if part == "small" else arguments.f8_images
                report[part] = job_beside_bare(folder, data, part, images, arguments.size)
            elif part == "actors":
                report[part] = actors(folder, data, arguments.images, arguments.size)
            elif part == "memory":
                report[part] = memory(folder, data, arguments.size)
            elif part == "reading":
                report[part] = reading(folder, arguments.latents)
            else:
                report[part] = on_device(folder, data, arguments.images, arguments.size)
    print(json.dumps(report))


def write_dataset(folder: Path, count: int, size: int, shard_images: int) -> str:
    """JPEGs of smooth noise, twice as large as the model's images."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(count):
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((2 * size, 2 * size), Image.Resampling.BICUBIC)
        image.save(folder / f"images/{number:06d}.jpg", quality=90)
    average = sum(p.stat().st_size for p in (folder / "images").iterdir()) // count
    output = str(folder / "data")
    shard_bytes = shard_images * (average + 3584)
    pack(PackConfig(source=(str(folder / "images"),), output=output, shard_bytes=shard_bytes))
    return output


def make_model(folder: Path, kind: str, size: int) -> tuple[VAE, str]:
    torch.manual_seed(0)
    vae = build_vae(MODELS[kind], PreprocessConfig(image_size=size)).eval()
    save_bundle(vae, str(folder / kind), {})
    return vae, str(folder / kind)


def encode(model: str, data: str, output: Path, limit: int, **options: object) -> float:
    """Images/s of a job between its first finished shard and its last."""
    given = {"actors": 0, "cores": IN_FLIGHT - 1, "precision": "fp32"}
    given |= options
    config = EncodeConfig(model=model, data=data, output=str(output), limit=limit, **given)
    run_encoding(config)
    done = sorted(
        (path.stat().st_mtime, json.loads(path.read_bytes())["samples"])
        for path in output.glob("receipts/*/*.json")
    )
    # The lanes begin together and their shards end in waves: from the end of the first to the last.
    images = sum(samples for _, samples in done[IN_FLIGHT:])
    return images / max(1e-9, done[-1][0] - done[IN_FLIGHT - 1][0])


def bare(vae: VAE, data: str, images: int, lanes: int = LANES) -> float:
    """Images/s of threads that decode from memory and encode, each by itself, and keep nothing."""
    sources = encoded_images(data, images)

    def lane(number: int) -> int:
        mine = sources[number::lanes]
        with torch.inference_mode():
            for start in range(0, len(mine), BATCH):
                part = mine[start : start + BATCH]
                pixels = np.stack([preprocess_image(image, vae.preprocess) for image in part])
                vae.encode(torch.from_numpy(pixels))
        return len(mine)

    with exact_numerics(), ThreadPoolExecutor(lanes) as pool:
        started = time.perf_counter()
        done = sum(pool.map(lane, range(lanes)))
        return done / (time.perf_counter() - started)


def encoded_images(data: str, count: int) -> list[bytes]:
    """The bytes of images as a tar holds them."""
    dataset, found = Dataset.open(data), list[bytes]()
    for number, shard in enumerate(dataset.shards):
        index, tar = dataset.read_index(number), Path(dataset.shard_url(shard)).read_bytes()
        pairs = zip(index.offsets.tolist(), index.sizes.tolist(), strict=True)
        found += [tar[offset : offset + size] for offset, size in pairs]
        if len(found) >= count:
            break
    return found[:count]


def job_beside_bare(folder: Path, data: str, kind: str, images: int, size: int) -> dict[str, Any]:
    """The best of two rounds of each, in turn: the machine has other work."""
    vae, bundle = make_model(folder, kind, size)
    ours, plain = [], []
    for number in range(2):
        plain.append(bare(vae, data, images))
        ours.append(encode(bundle, data, folder / f"{kind}-{number}", images))
    return {
        "images": images,
        "job_images_per_second": round(max(ours), 1),
        "bare_images_per_second": round(max(plain), 1),
        "ratio": round(max(ours) / max(plain), 3),
    }


def actors(folder: Path, data: str, images: int, size: int) -> dict[str, Any]:
    _, bundle = make_model(folder, "small", size)
    rates = {
        count: encode(bundle, data, folder / f"actors-{count}", images,
                      actors=count)
        for count in (1, 2)
    }  # fmt: skip
    return {
        "one_images_per_second": round(rates[1], 1),
        "two_images_per_second": round(rates[2], 1),
        "ratio": round(rates[2] / rates[1], 3),
    }


def memory(folder: Path, data: str, size: int) -> dict[str, Any]:
    """Resident memory of the job's process while shard after shard is done."""
    _, bundle = make_model(folder, "small", size)
    output = folder / "memory"
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.encode", "--model", bundle, "--data", data, "--output",
         str(output), "--actors", "0"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    seen: list[tuple[int, int]] = []
    while process.poll() is None:
        done = len(list(output.glob("receipts/*/*.json")))
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident = [line for line in status.splitlines() if line.startswith("VmRSS")]
        if resident and done:
            seen.append((done, int(resident[0].split()[1]) * 1024))
        time.sleep(0.05)
    shards = len(Dataset.open(data).shards)
    early = [size for done, size in seen if shards // 4 <= done < shards // 2]
    late = [size for done, size in seen if shards * 3 // 4 <= done < shards]
    ratio = round(float(np.median(late) / np.median(early)), 3) if early and late else None
    return {
        "shards": shards,
        "peak_bytes": max((size for _, size in seen), default=0),
        "late_over_early": ratio,
    }


def reading(folder: Path, count: int) -> dict[str, Any]:
    """`.batches()` beside the file's bytes and beside a tar of .npy, values touched by a copy."""
    store = write_store(folder / "read", count)
    export_store(store, str(folder / "tars"), "npy")
    tars = sorted(str(path) for path in (folder / "tars").glob("*.tar"))
    files = sorted((folder / "read/latents").rglob("*.arrow"))
    values = np.empty((2, BATCH, *store.snapshot.identity.latent_shape), np.float16)

    def ours() -> None:
        for batch in store.batches():
            for place, name in enumerate(("mean", "logvar")):
                np.copyto(values[place, : len(batch)], batch.tensors[name])

    def raw() -> None:
        buffer = memoryview(bytearray(values.nbytes))
        for file in files:
            with file.open("rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    continue

    def stock() -> None:
        for place, sample in enumerate(webdataset.WebDataset(tars, shardshuffle=False).decode()):
            values[0, place % BATCH] = sample["mean.npy"]
            values[1, place % BATCH] = sample["logvar.npy"]

    works = (("batches", ours), ("raw", raw), ("webdataset", stock))
    rates = {name: count * values.nbytes / BATCH / best_of(work, 5) / 1e6 for name, work in works}
    return {
        "latents": count,
        **{f"{name}_megabytes_per_second": round(rate, 1) for name, rate in rates.items()},
        "over_raw": round(rates["batches"] / rates["raw"], 3),
        "over_webdataset": round(rates["batches"] / rates["webdataset"], 1),
    }


def best_of(work: Callable[[], None], times: int) -> float:
    """Seconds of the quickest of some rounds."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def write_store(folder: Path, count: int, shape: tuple[int, int, int] = (4, 32, 32)) -> LatentStore:
    """A store as of the f8 model and 256 x 256 images: float16 [4, 32, 32] twice, 16 KiB."""
    shards = []
    identity = Identity("0" * 64, "0" * 64, shape, EncodeOptions(precision="fp32"))
    generator = np.random.default_rng(0)
    for number in range(4):
        path, rows, whole = folder / "part.arrow", count // 4, empty(shape[0], True)
        folder.mkdir(exist_ok=True)
        with LatentFileWriter(path, identity, shape) as writer:
            for start in range(0, rows, BATCH):
                size = min(BATCH, rows - start)
                tensors = {
                    name: generator.standard_normal((size, *shape), np.float32).astype(np.float16)
                    for name in ("mean", "logvar")
                }
                whole = whole.merge(measure(tensors["mean"], tensors["logvar"]))
                keys = [f"shard{number}/{start + row:06d}" for row in range(size)]
                writer.write(keys, range(start, start + size), tensors, {})
        digest, name = file_digest(path), f"{number:06d}"
        place = latent_path(identity.digest, name, digest)
        part = LatentPart(
            256, shape, Positions(rows), place, path.stat().st_size, digest,
            tuple(writer.places), (), whole,
        )  # fmt: skip
        receipt = Receipt(identity.digest, name, f"{number:064d}", rows, (part,), 0)
        target = folder / part.path
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
        shards.append(StoredShard(receipt, (), (StoredPart(part, (), whole),)))
    snapshot = Snapshot(identity, "d" * 64, tuple(shards))
    point_to(str(folder), snapshot, publish_snapshot(str(folder), snapshot), data="", model="")
    return LatentStore.open(str(folder))


def on_device(folder: Path, data: str, images: int, size: int) -> dict[str, Any]:
    """End to end on this machine's device beside the slower of bare decode and bare encoder."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = "f8_full" if device == "cuda" else "small"
    vae, bundle = make_model(folder, kind, size)
    cores = len(os.sched_getaffinity(0))
    rates, digests = [], []
    for number in range(2):
        output = folder / f"device-{number}"
        rates.append(encode(bundle, data, output, images, cores=cores, precision="auto"))
        files = sorted(output.glob("latents/*/*.arrow"))
        digests.append([file_digest(file) for file in files])
    sources = encoded_images(data, images)
    with ThreadPoolExecutor(cores) as pool:
        started = time.perf_counter()
        list(pool.map(lambda image: preprocess_image(image, vae.preprocess), sources))
        decode = images / (time.perf_counter() - started)
    exact, free = (bare_encoder(vae.to(device), data, exact=exact) for exact in (True, False))
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "model": kind,
        "job_images_per_second": round(max(rates), 1),
        "bare_decode_images_per_second": round(decode, 1),
        "bare_encoder_images_per_second": round(exact, 1),
        "over_slower": round(max(rates) / min(decode, exact), 3),
        "determinism_costs": round(1 - exact / free, 3),
        "equal_digests": digests[0] == digests[1],
        "imagenet_hours": round(IMAGENET / max(rates) / 3600, 2),
    }


def bare_encoder(vae: VAE, data: str, *, exact: bool) -> float:
    """Images/s of the encoder alone over one batch, again and again for some seconds."""
    dataset, device = Dataset.open(data), next(vae.parameters()).device
    batch = next(read_shard(dataset, dataset.shards[0], vae.preprocess, BATCH)).images.to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    done, started = 0, time.perf_counter()
    with exact_numerics() if exact else nullcontext(), torch.inference_mode(), autocast:
        for warm in (False, True):
            done, started = 0, time.perf_counter()
            while time.perf_counter() - started < (5 if warm else 1):
                # Waiting for each result is what makes the clock true on a GPU.
                io.BytesIO(vae.encode(batch).mean.cpu().numpy().tobytes())
                done += BATCH
    return done / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
