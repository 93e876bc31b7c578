"""`jobs.decode` and `jobs.verify --sample`: a store together with its own model."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pipeline import storage
from pipeline.config import DecodeConfig, VerifyConfig
from pipeline.data import Dataset
from pipeline.data.keys import file_name_of
from pipeline.encoding.reencode import Reencoded, reencode
from pipeline.errors import (
    ConfigError,
    DatasetError,
    ModelError,
    ObjectNotFoundError,
    StoreError,
)
from pipeline.evaluation.walks import label_direction, principal_axes
from pipeline.figures import draw_sheet, to_png
from pipeline.latents import LatentStore
from pipeline.latents.snapshot import Pointer, read_pointer
from pipeline.masking import shell_word
from pipeline.progress import Progress
from pipeline.registry.models import SCHEME, load_model
from pipeline.registry.named_models import DEFAULT_RUNS, finished_run
from pipeline.vae import VAE

_SHEET_IMAGES = 400
"""20 rows of 20: beyond it nobody tells the images apart."""
_BATCH = 64
"""Latents decoded at a time: the batch that jobs.encode makes them with by default."""
_SAMPLE_SEED = 0
"""Chooses the images of `--sample`, the same each time: what failed once can be looked at again."""
_MEASURED = 10_000
"""Latents, spread over the store, that a direction is made from."""
_REACH = 3.0
"""Deviations to both sides along a principal axis."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Named:
    """A latent [Z, h, w] float32 and the key of its image, or a name of ours."""

    name: str
    latent: Tensor


@dataclass(frozen=True)
class Decoded:
    """What a decoding wrote, and with which model."""

    images: int
    output: str
    model_digest: str


def run_decoding(config: DecodeConfig) -> Decoded:
    """Decodes to PNG files below the output."""
    store = LatentStore.open(config.store, size=config.size)
    vae = model_of(store, config)
    count, latents = _chosen(store, config)
    output = storage.absolute(config.output)
    written = 0
    with Progress("decode", count, "images") as progress:
        images = _decode(vae, latents, _BATCH)
        if config.sheet:
            named = list(islice(images, _SHEET_IMAGES))
            storage.publish(storage.join(output, "sheet.png"), _sheet(named, config))
            written = len(named)
            progress.advance(written)
        else:
            for name, pixels in images:
                storage.publish(storage.below(output, f"{file_name_of(name)}.png"), png(pixels))
                written += 1
                progress.advance(1)
    return Decoded(written, output, store.model_digest)


def run_sample(config: VerifyConfig) -> Reencoded:
    """`jobs.verify --store --sample N`: N random images encoded again and compared."""
    assert config.store is not None, "the config demands it"
    store = LatentStore.open_all(config.store)
    data = config.dataset or _pointer(store).data
    if config.dataset is None and storage.protocol(data) not in ("file", "s3"):
        raise ConfigError(
            f"{store.url}: says that its dataset is at {storage.shown(data)}, which is neither a "
            "path nor an s3:// URL. It was not asked for: give `--dataset URL`."
        )
    try:
        dataset = Dataset.open(data, store.snapshot.dataset, config.shards_below, flag="--dataset")
    except (DatasetError, ObjectNotFoundError) as error:
        if config.dataset is not None:
            raise
        raise DatasetError(
            f"{error} That is where it was when the store was made; if it has moved, say where it "
            f"is: `python -m jobs.verify --store {shell_word(store.url)} --sample "
            f"{config.sample} --dataset URL`."
        ) from None
    vae = model_of(store, config)
    return reencode(vae, dataset, store, config.sample, _SAMPLE_SEED)


def model_of(store: LatentStore, config: DecodeConfig | VerifyConfig) -> VAE:
    """The model that made the store, on its device.

    `ModelError` for any other, before a file of it is read but the one that says what it is.
    """
    uri = config.model
    if uri is None:
        uri = _pointer(store).model
        if not (uri.startswith(SCHEME) or storage.protocol(uri) in ("file", "s3")):
            raise ModelError(
                f"{store.url}: says that its model is at {storage.shown(uri)}, which is neither a "
                "registered model nor a path nor an s3:// URL. If you trust that, give `--model`."
            )
    run = finished_run(config.model, DEFAULT_RUNS) if config.model is not None else None
    try:
        place = run.bundle if run else uri
        vae = load_model(place, config.allow_custom, digest=store.model_digest)
    except ModelError as error:
        raise ModelError(
            f"{error} The latents of {store.url} were made by {store.model_digest[:16]}. Another "
            "model's decoder gives noise."
        ) from None
    vae.eval()
    return vae.to("cuda" if torch.cuda.is_available() else "cpu")


def _sheet(named: Sequence[tuple[str, Pixels]], config: DecodeConfig) -> bytes:
    """All in one picture with a title, keys, and the steps of walks."""
    if not named:
        raise StoreError("there is no latent to decode.")
    names, images = [name for name, _ in named], [pixels for _, pixels in named]
    headline, walk = f"{len(named)} latents, decoded", []
    if config.interpolate is not None:
        headline = "From {} to {}, straight through the latents".format(*config.interpolate)
        walk, names = np.linspace(0, 1, config.steps).tolist(), []
    elif config.edit is not None:
        headline = "From the mean of {} to that of {}".format(*config.edit)
        walk = np.linspace(0, 1, config.steps).tolist()
    elif config.axis is not None:
        headline = f"Along principal axis {config.axis}, in deviations of the store's means"
        walk = np.linspace(-_REACH, _REACH, config.steps).tolist()
    if walk and config.interpolate is None:
        names = [name.removesuffix("-000") for name in names[:: config.steps]]
    return to_png(draw_sheet, images, names, headline=headline, walk=walk)


def png(pixels: Pixels) -> bytes:
    """An image [H, W, C] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _pointer(store: LatentStore) -> Pointer:
    pointer = read_pointer(store.url)
    assert pointer is not None, "the store was opened by it"
    return pointer


def _walks(config: DecodeConfig) -> bool:
    return config.interpolate is not None or config.edit is not None or config.axis is not None


def _chosen(store: LatentStore, config: DecodeConfig) -> tuple[int, Iterator[Named]]:
    """How many images there will be, and their latents."""
    if config.interpolate is not None:
        start, goal = (
            _by_key(store, key, _another(config.interpolate, key)).latent
            for key in config.interpolate
        )
        if start.shape != goal.shape:
            raise ConfigError(
                f"--interpolate: the two latents are of the shapes {tuple(start.shape)} and "
                f"{tuple(goal.shape)}. Name two images of one shape."
            )
        walk = [start + (goal - start) * step for step in torch.linspace(0, 1, config.steps)]
        return len(walk), (Named(f"step-{n:03d}", latent) for n, latent in enumerate(walk))
    if config.keys:
        plain: Iterable[Named] = (_by_key(store, key, "`--keys KEY`") for key in config.keys)
        count = len(config.keys)
    else:
        plain, count = _all(store), len(store)
    count = min(count, config.limit or count)
    plain = islice(plain, count)
    if not _walks(config):
        return count, iter(plain)
    direction, offsets = _direction(store, config)
    moved = (
        Named(f"{one.name}-{number:03d}", one.latent + offset * direction)
        for one in plain
        for number, offset in enumerate(offsets.tolist())
    )
    return count * config.steps, moved


def _direction(store: LatentStore, config: DecodeConfig) -> tuple[Tensor, Tensor]:
    """A direction [Z, h, w] and how far to go along it, from the store's own means."""
    if len(store.shapes) > 1:
        raise ConfigError(
            f"--edit, --axis: {store.url} has latents of {len(store.shapes)} shapes, which have no "
            "direction in common. Encode in squares: `--image-size`."
        )
    every = range(0, len(store), -(-len(store) // _MEASURED))
    measured = [store[number] for number in every]
    means = torch.stack([_tensor(latent.tensors[_primary(store)]) for latent in measured])
    if config.edit is not None:
        if "label" not in store.snapshot.identity.options.columns:
            raise ConfigError(
                f"--edit: {store.url} has no labels. Encode with `--columns label` first."
            )
        labels = [str(latent.columns["label"]) for latent in measured]
        direction = label_direction(means, labels, *config.edit)
        return direction.float(), torch.linspace(0, 1, config.steps)
    axis = config.axis or 0
    found = principal_axes(means, axis + 1)
    if axis >= len(found.axes):
        raise ConfigError(f"--axis {axis}: the latents span {len(found.axes)} axes only.")
    reach = _REACH * float(found.deviations[axis])
    axes = found.axes[axis].float().view(means.shape[1:])
    return axes, torch.linspace(-reach, reach, config.steps)


def _another(keys: Sequence[str], wrong: str) -> str:
    """The flag with the ends of a walk, of which one has to be another."""
    ends = " ".join("KEY" if key == wrong else shell_word(key) for key in keys)
    return f"`--interpolate {ends}`"


def _by_key(store: LatentStore, key: str, flag: str) -> Named:
    """`flag`: what another key would be given by."""
    try:
        found = store.by_key(key)
        return Named(found.key, _tensor(found.tensors[_primary(store)]))
    except KeyError as error:
        raise ConfigError(
            f"{error.args[0]} Give another, as {flag}; `python -m jobs.stores --keys --store "
            f"{shell_word(store.url)}` lists all."
        ) from None


def _all(store: LatentStore) -> Iterator[Named]:
    primary = _primary(store)
    for batch in store.batches((primary,)):
        for key, values in zip(batch.keys, batch.tensors[primary], strict=True):
            yield Named(key, _tensor(values))


def _primary(store: LatentStore) -> str:
    return store.snapshot.identity.options.tensors[0]


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _together(latents: Iterable[Named], size: int) -> Iterator[list[Named]]:
    """At most `size` at a time, all of one shape."""
    batch: list[Named] = []
    for one in latents:
        if batch and (len(batch) == size or one.latent.shape != batch[0].latent.shape):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _decode(vae: VAE, latents: Iterable[Named], size: int) -> Iterator[tuple[str, Pixels]]:
    device = next(vae.parameters()).device
    for batch in _together(latents, size):
        with torch.inference_mode():
            decoded = vae.decode(torch.stack([one.latent for one in batch]).to(device))
        pixels = (decoded.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
        for one, image in zip(batch, pixels.numpy(), strict=True):
            yield one.name, image
