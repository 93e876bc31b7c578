"""A small world that works: photos, a dataset, two runs, a store, a registry; put back each time.

Runs and stores hold whole addresses, so the world stays in its place and is filled again.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.warm import run

TRAIN = (
    "--data", "runs/photos/train", "--workers", "0", "--image-size", "16", "--steps", "2",
    "--global-batch-size", "8", "--model.kind", "mlp", "--model.width", "8",
)  # fmt: skip

NETWORK = '''
import torch
from torch import nn

class Mine(nn.Module):
    """Four latents for the whole image."""

    def __init__(self, shape, model):
        super().__init__()
        self.latent_shape = (4, 1, 1)
        pixels = shape.channels * shape.image_size**2
        self.there = nn.Linear(pixels, 8)
        self.back = nn.Linear(4, shape.num_parameters * shape.image_size**2)
        self.size = shape.image_size

    def encode(self, images):
        return self.there(images.flatten(1))[..., None, None]

    def decode(self, latents):
        return self.back(latents.flatten(1)).view(len(latents), -1, self.size, self.size)

def darker(images, seeds):
    return images // 2
'''


class World:
    """Its folder, `home`, and how it is filled and filled again."""

    def __init__(self, place: Path) -> None:
        self.home, self._kept = place / "home", place / "kept"
        self.home.mkdir()
        write_photos(self.home / "photos")
        (self.home / "mynet.py").write_text(NETWORK)
        for job, *flags in _MADE:
            ended = run(self.home, f"jobs.{job}", *flags)
            assert ended.returncode == 0, (job, flags, ended.stderr)
        unfinish(self.home / "runs/half")
        shutil.copytree(self.home, self._kept)

    def fill_again(self) -> None:
        """As it was before anything failed in it."""
        shutil.rmtree(self.home)
        shutil.copytree(self._kept, self.home)


_MADE = (
    ("pack", "--source", "photos", "--output", "runs/photos", "--holdout", "0.3"),
    ("pack", "--source", "photos/cats", "--output", "runs/cats"),
    ("train", *TRAIN, "--run", "first"),
    ("train", *TRAIN, "--run", "half", "--seed", "1"),
    ("encode", "--model", "models:/first@candidate", "--data", "runs/photos/train",
     "--output", "runs/latents", "--actors", "0", "--columns", "label"),
    ("pull", "--model", "models:/first@candidate", "--output", "runs/pulled"),
)  # fmt: skip


def write_photos(folder: Path, count: int = 12) -> None:
    """`cats/001.png` and so on, `dogs/` too: stripes, each of its own colours."""
    colours = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (folder / label).mkdir(parents=True)
        for number in range(1, count + 1):
            pixels = np.repeat(colours.integers(0, 256, (6, 1, 3), dtype=np.uint8), 4, axis=0)
            image = Image.fromarray(np.repeat(pixels, 24, axis=1))
            image.save(folder / label / f"{number:03d}.png")


def unfinish(run_folder: Path) -> None:
    """A run as it is while it trains: checkpoints, and no result yet."""
    (run_folder / "result.json").unlink()
    shutil.rmtree(run_folder / "bundle")


def flip(path: Path, place: int) -> None:
    """Another byte there; counted from the end where `place` is negative."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(bytes(data))


def write_yaml(path: Path, **values: object) -> None:
    path.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in values.items()))
