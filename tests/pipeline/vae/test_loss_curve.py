"""Twenty optimiser steps against the stored curve: whatever drifts in the numbers shows here.

To store a new one after a change that is meant: python -m tests.pipeline.vae.test_loss_curve
"""

import json
import platform
import zlib
from pathlib import Path

import pytest
import torch

from pipeline.config import ModelConfig, ObjectiveConfig, PreprocessConfig
from pipeline.vae import build_vae, draw_noise, objective_loss

STORED = Path(__file__).with_name("loss_curve.json")


def curve(kind: str) -> list[float]:
    """Losses in nats per image of 20 AdamW steps on 32 smooth random images, float32."""
    torch.manual_seed(0)
    vae = build_vae(
        ModelConfig(kind=kind, latent_channels=8, width=16, likelihood="gaussian"),
        PreprocessConfig(image_size=16, channels=1),
    )
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(32, 1, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")
    images = (smooth * 255).round().to(torch.uint8)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3)
    losses = []
    for step in range(1, 21):
        terms = vae(images, draw_noise(vae, 0, step, range(32)))
        loss = objective_loss(ObjectiveConfig(), terms, step).loss_per_image.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def machine() -> str:
    """What decides which kernels run: torch's version, the processor and its instructions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    told = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    named = {name.strip(): value.strip() for name, value in told.items()}
    kind = f"{platform.machine()} {named.get('model name', platform.processor())}"
    instructions = zlib.crc32(" ".join(sorted(named.get("flags", "").split())).encode())
    return f"torch {torch.__version__}, {kind}, instructions {instructions:08x}"


@pytest.mark.parametrize("kind", ["conv", "mlp"])
def test_twenty_steps_give_the_stored_losses(kind: str) -> None:
    stored = json.loads(STORED.read_text())
    found = curve(kind)
    assert found[-1] < found[0]
    if stored["machine"] == machine():
        assert found == stored[kind]
    # Another CPU sums in another order: 1e-5 is its share over 20 steps.
    assert found == pytest.approx(stored[kind], rel=1e-5)


def test_the_same_machine_gives_the_same_bits() -> None:
    assert curve("conv") == curve("conv")


if __name__ == "__main__":
    curves = {kind: curve(kind) for kind in ("conv", "mlp")}
    STORED.write_text(json.dumps({"machine": machine(), **curves}, indent=1) + "\n")
