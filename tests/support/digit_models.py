"""Small models of scikit-learn's digits, trained in seconds, and held-out batches of them."""

import functools
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.config import ModelConfig, ObjectiveConfig, PackConfig, PreprocessConfig
from pipeline.data import Batch
from pipeline.packing.pack import pack
from pipeline.vae import VAE, build_vae, draw_noise, objective_loss, save_bundle

TRAINED_ON = 1400


@functools.cache
def images() -> tuple[torch.Tensor, list[str]]:
    """All 1,797 digits as uint8 `[N, 1, 8, 8]`, and their labels."""
    points, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(points / 16 * 255).round().to(torch.uint8)
    return pixels.view(-1, 1, 8, 8), [str(label) for label in labels]


@functools.cache
def digits_vae(
    likelihood: str = "gaussian",
    latents: int = 8,
    beta: float = 1.0,
    steps: int = 400,
    posterior: str = "diagonal",
    objective: str = "beta",
) -> VAE:
    """A trained MLP VAE, or a plain autoencoder; always the same weights."""
    torch.manual_seed(0)
    # Two threads spin more than they compute in layers as small as these.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = ModelConfig.model_validate(
        {
            "kind": "mlp",
            "likelihood": likelihood,
            "latent_channels": latents,
            "width": 64,
            "posterior": posterior,
        }
    )
    aim = ObjectiveConfig.model_validate({"kind": objective, "beta": beta})
    vae = build_vae(config, PreprocessConfig(image_size=8, channels=1))
    optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    pixels, _ = images()
    for step in range(1, steps + 1):
        chosen = torch.randint(0, TRAINED_ON, (128,), generator=generator)
        noise = draw_noise(vae, 0, step, range(128))
        terms = vae(pixels[chosen], noise, at_mean=aim.needs_mean)
        loss = objective_loss(aim, terms, step).loss_per_image.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return vae.eval()


def sigma_of(vae: VAE) -> torch.Tensor:
    """The one scale of all pixels, a scalar."""
    scale = vae.likelihood.one_scale
    assert scale is not None
    return scale


def held_out(count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
    """The first `count` held-out digits as a loader gives them to one rank, the last batch padded.

    Position 3 is a bad sample: it keeps its place and counts nowhere.
    """
    pixels, labels = images()
    for index in range(-(-count // batch_size)):
        slots = range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        positions = [index * batch_size + slot for slot in slots]
        real = [position < count for position in positions]
        places = [TRAINED_ON + min(position, count - 1) for position in positions]
        good = [there and position != 3 for there, position in zip(real, positions, strict=True)]
        yield Batch(
            images=pixels[places] * torch.tensor(good, dtype=torch.uint8)[:, None, None, None],
            keys=[str(p) if there else "" for p, there in zip(positions, real, strict=True)],
            valid=torch.tensor(good, dtype=torch.bool),
            columns={"label": [labels[place] for place in places]},
            epoch=0,
            index=index,
            slots=slots,
        )


def pack_digits(folder: Path) -> Path:
    """A packed hold-out of 120 digits at `folder/data`."""
    pixels, labels = images()
    for number in range(TRAINED_ON, TRAINED_ON + 120):
        path = folder / "images" / labels[number] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number, 0].numpy()).save(path)
    pack(PackConfig(source=(str(folder / "images"),), output=str(folder / "data"), workers=1))
    return folder / "data"


def write_digits(folder: Path) -> Path:
    """`data`, as `pack_digits` makes it, and the bundles that are saved below by name."""
    pack_digits(folder)
    save_bundle(digits_vae(), folder / "vae")
    save_bundle(digits_vae(beta=500.0), folder / "collapsed")
    save_bundle(digits_vae("bernoulli"), folder / "binary")
    save_bundle(digits_vae(objective="autoencoder"), folder / "autoencoder")
    save_bundle(digits_vae(posterior="full"), folder / "full")
    return folder
