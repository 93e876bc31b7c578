"""Noise by position: a function of (seed, step, slot) and nothing else.

A slot is a place in the global batch, so any number of ranks draws the same numbers, a resumed run
draws what the first one would have drawn, and no generator state is ever saved. What a network
draws of itself (dropout) comes from torch's generators, which are set at each forward pass.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """What one forward pass of B images needs.

    `posterior` is standard normal, [B, Z, h, w], or [B, K, Z, h, w] for K latents per image;
    `pixels` is uniform on [0, 1), [B, C, H, W], for dequantisation or binarisation.
    """

    posterior: Tensor
    pixels: Tensor


class Noisy(Protocol):
    """What noise is drawn for: a VAE."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(Z, h, w)."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @property
    def uses_pixel_noise(self) -> bool:
        """Whether the likelihood's target depends on `Noise.pixels`."""


def draw_noise(
    vae: Noisy,
    seed: int,
    step: int,
    slots: Sequence[int],
    device: torch.device | str = "cpu",
    *,
    samples: int = 1,
) -> Noise:
    """The noise of these slots of the global batch; `samples` latents per image.

    A likelihood that needs no pixel noise gets zeros that take no memory.
    """
    latent_shape = vae.latent_shape if samples == 1 else (samples, *vae.latent_shape)
    posterior = np.empty((len(slots), *latent_shape), np.float32)
    pixels = np.empty((len(slots) if vae.uses_pixel_noise else 0, *vae.image_shape), np.float32)
    # One generator that is set to each slot's stream: making one takes three times as long (6 us).
    bits = np.random.Philox(key=0)
    generator, start = np.random.Generator(bits), bits.state
    for row, slot in enumerate(slots):
        start["state"]["key"] = _slot_key(seed, step, slot)
        bits.state = start
        generator.standard_normal(out=posterior[row], dtype=np.float32)
        if vae.uses_pixel_noise:
            generator.random(out=pixels[row], dtype=np.float32)
    uniforms = torch.from_numpy(pixels)
    if not vae.uses_pixel_noise:
        uniforms = torch.zeros(()).expand(len(slots), *vae.image_shape)
    return Noise(torch.from_numpy(posterior).to(device), uniforms.to(device))


def set_generators(seed: int, step: int, slot: int, device: torch.device) -> None:
    """Sets torch's generators for a forward pass that begins with this slot.

    Not by `torch.manual_seed`: without CUDA that formats the caller's stack each time.
    """
    mixed = int(_slot_key(seed, step, slot)[0]) >> 1
    torch.default_generator.manual_seed(mixed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(mixed)


def slot_generator(seed: int, step: int, slot: int) -> np.random.Generator:
    """A stream of its own for one image of one step.

    Philox takes a 128-bit key as it is. torch's CPU generator keeps 32 bits of its seed: of 100,000
    such streams two would be the same with a chance of 69%.
    """
    return np.random.Generator(np.random.Philox(key=_slot_key(seed, step, slot)))


def _slot_key(seed: int, step: int, slot: int) -> npt.NDArray[np.uint64]:
    """[2], Philox's key."""
    key = hashlib.blake2b(struct.pack("<qqq", seed, step, slot), digest_size=16).digest()
    return np.frombuffer(key, dtype=np.uint64)
