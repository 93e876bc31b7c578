"""The f8 autoencoder against the machine's peak: encode and training step at 256 pixels.

    python -m tests.benchmarks.gpu [--seconds 20] [--batch 64]

Tries float32, bfloat16, channels-last (always on here) and torch.compile, and prints a line per
variant and one JSON object. FLOPs are counted by torch's own counter (two per multiply-add): 272.7
GFLOP for an encoding and 2,684.3 for a training step (2,684.7 with the images' own gradient, which
nobody needs). Peak: NVIDIA's dense bfloat16 numbers; on a CPU the same script runs small, and the
share of the peak is left out. Needs torch, safetensors, pydantic (of the configuration) and this
repository: no Ray, no MLflow, no dataset.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.training.step_time import PEAK_TFLOPS
from pipeline.vae import VAE, build_vae, draw_noise


@dataclass(frozen=True)
class Variant:
    """One way to run the model."""

    name: str
    dtype: torch.dtype | None
    compile: bool


VARIANTS = (
    Variant("float32", None, compile=False),
    Variant("bfloat16", torch.bfloat16, compile=False),
    Variant("bfloat16, compiled", torch.bfloat16, compile=True),
)


def measure(work: Callable[[], object], device: str, seconds: float, batch: int) -> float:
    """Images per second in steady state: after three warm-up calls, until `seconds` are over."""
    for _ in range(3):
        work()
    synchronise(device)
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        work()
        synchronise(device)
        calls += 1
    return calls * batch / (time.perf_counter() - started)


def synchronise(device: str) -> None:
    """Waits for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def encoder(vae: VAE, images: torch.Tensor, variant: Variant) -> Callable[[], object]:
    """Moments of a batch, without gradient."""
    network = torch.compile(vae.network.encode) if variant.compile else vae.network.encode

    def work() -> object:
        with torch.inference_mode(), autocast(images, variant):
            scaled = images.to(torch.float32) / 127.5 - 1
            return network(scaled.contiguous(memory_format=torch.channels_last))

    return work


def trainer(vae: VAE, images: torch.Tensor, variant: Variant) -> Callable[[], object]:
    """Forward, backward and fused AdamW on one batch, as the training loop does it."""
    model = torch.compile(vae) if variant.compile else vae
    optimizer = torch.optim.AdamW(vae.parameters(), 1e-5, fused=True)
    noise = draw_noise(vae, 0, 1, range(len(images)), images.device)

    def work() -> object:
        with autocast(images, variant):
            terms = model(images, noise)
        optimizer.zero_grad(set_to_none=True)
        (-terms.elbo.mean()).backward()
        optimizer.step()
        return terms

    return work


def autocast(images: torch.Tensor, variant: Variant) -> torch.autocast:
    """The variant's precision on the images' device."""
    return torch.autocast(images.device.type, variant.dtype, variant.dtype is not None)


def counted_gflop(work: Callable[[], object]) -> float:
    """Torch's count for one call, in GFLOP."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def main(words: list[str] | None = None) -> dict[str, object]:
    """Prints the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="Of each measurement.")
    parser.add_argument("--batch", type=int, default=64, help="Images per call.")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=128, help="128: the published model.")
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", nargs="+", default=names, choices=names)
    arguments = parser.parse_args(words)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    peak = next((value for key, value in PEAK_TFLOPS.items() if key in name), None)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    rows = []
    for variant in (each for each in VARIANTS if each.name in arguments.variants):
        for what, make in (("encode", encoder), ("training step", trainer)):
            torch.manual_seed(0)
            config = ModelConfig(kind="autoencoder_kl", width=arguments.width)
            vae = build_vae(config, PreprocessConfig(image_size=arguments.image_size)).to(device)
            vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it
            shape = (arguments.batch, *vae.image_shape)
            images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
            plain = Variant("counted", variant.dtype, compile=False)
            gflop = counted_gflop(make(vae, images, plain)) / arguments.batch
            rate = measure(make(vae, images, variant), device, arguments.seconds, arguments.batch)
            row = {"what": what, "variant": variant.name, "gflop": gflop, "images_per_second": rate}
            row["peak_share"] = gflop * rate / 1e3 / peak if peak else None
            share = f"{row['peak_share']:.1%} of peak" if peak else "no peak known"
            print(f"{what:<14}{variant.name:<22}{rate:10.1f} images/s  {gflop:9.1f} GFLOP  {share}")
            rows.append(row)
            del vae, images
    result = {"device": name, "batch": arguments.batch, "peak_tflops": peak, "rows": rows}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
