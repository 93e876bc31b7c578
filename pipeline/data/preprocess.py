"""From image bytes to the pixels that a model sees; what is decided here belongs to the model.

How a training image differs from epoch to epoch stands here, too: mirrored, and by a user's own
transform, a pure function of images and their seeds.
"""

import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from pipeline import storage
from pipeline.config import PreprocessConfig
from pipeline.config.import_path import OWN_CODE, find_named, told
from pipeline.data.dataset import Sample
from pipeline.data.decode import DECODER_VERSION, decoded_image
from pipeline.errors import ConfigError, DatasetError, SampleError

Pixels = npt.NDArray[np.uint8]
Picture = Sample | Image.Image | npt.NDArray[np.uint8] | bytes
"""What a person has in a notebook: a dataset's sample, a PIL image, an array [H, W], [H, W, 3] or
[H, W, 4] (RGBA), a file's bytes."""
_NEEDED = (
    "need a Dataset's sample, a PIL image, an array uint8 [H, W], [H, W, 3] or [H, W, 4] (RGBA), 0 "
    "to 255, or a file's bytes"
)
FILTER = "antialiased, uint8 (torch)"


def preprocess_digest(preprocess: PreprocessConfig) -> str:
    """What the pixels depend on besides the bytes: crop, size, channels, filter, decoder."""
    parts = {**preprocess.model_dump(), "filter": FILTER, "decoder": DECODER_VERSION}
    return hashlib.sha256(storage.canonical_json(parts)).hexdigest()


_AS_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def several(pictures: object) -> Iterable[Any]:
    """A single picture, or what is none, as a list of one; an array of four axes is several.

    One of three is a picture with its colours last, or refused: its rows are no pictures.
    """
    if isinstance(pictures, np.ndarray):
        return list(pictures) if pictures.ndim > 3 else [pictures]
    is_one = isinstance(pictures, Sample | Image.Image | bytes | str)
    return [pictures] if is_one or not isinstance(pictures, Iterable) else pictures


def picture_bytes(picture: Picture) -> bytes:
    """A picture as a file's bytes, no pixel changed; raises `SampleError` for what is none."""
    if isinstance(picture, Sample):
        return picture.file
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, np.ndarray):
        is_picture = picture.ndim > 1 and picture.shape[2:] in ((), (3,), (4,))
        if picture.dtype != np.uint8 or not is_picture:
            raise SampleError("unsupported", f"a picture: {_strange_array(picture)}")
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        path = f". Of a path: `Path({str(picture)!r}).read_bytes()`"
        raise SampleError(
            "not-an-image",
            f"a picture: found {type(picture).__name__}, {_NEEDED}"
            f"{path * isinstance(picture, str | Path)}",
        )
    file = io.BytesIO()
    try:
        # PNG keeps what is transparent, TIFF every kind of pixels. Neither is told how a photograph
        # was held, as its own file is: it is turned first.
        upright = ImageOps.exif_transpose(picture)
        kind = "PNG" if upright.mode in _AS_PNG else "TIFF"
        upright.save(file, kind, **({"compress_level": 1} if kind == "PNG" else {}))
    except (OSError, ValueError) as error:
        raise SampleError("corrupt", f"a picture can't be read: {error}") from None
    return file.getvalue()


def _strange_array(array: npt.NDArray[Any]) -> str:
    """What an array is that is no picture, and how it becomes one or several."""
    hint = ""
    if array.ndim == 3 and array.shape[2] == 1:
        hint = " A grey one: `array[..., 0]`."
    elif array.ndim == 3 and array.shape[0] in (1, 3, 4):
        hint = " With its colours first: `array.transpose(1, 2, 0)`."
    elif array.ndim == 3:
        hint = " Several grey ones: `list(array)`."
    return f"found an array {array.dtype} {list(array.shape)}, {_NEEDED}.{hint}"


def preprocess_image(
    data: bytes, preprocess: PreprocessConfig, *, flip: bool = False, draw: int = 0
) -> Pixels:
    """uint8 [C, image_size, image_size]; raises `SampleError` as `decode_image` does.

    `draw` is the sample's own random number: where a random crop lies, and whether to flip.
    """
    out = torch.empty(
        (preprocess.channels, preprocess.image_size, preprocess.image_size), dtype=torch.uint8
    )
    preprocess_into(out, data, preprocess, flip=flip, draw=draw)
    return out.numpy()


def preprocess_into(
    out: Tensor, data: bytes, preprocess: PreprocessConfig, *, flip: bool = False, draw: int = 0
) -> None:
    """Writes the pixels into `out`, uint8 [C, S, S]."""
    with decoded_image(
        data,
        channels=preprocess.channels,
        shrink_to=preprocess.image_size,
        side="long" if preprocess.crop == "pad" else "short",
    ) as pixels:
        fit_into(out, pixels, preprocess, flip=flip, draw=draw)


def fit_into(
    out: Tensor, pixels: Pixels, preprocess: PreprocessConfig, *, flip: bool = False, draw: int = 0
) -> None:
    """Cuts and resizes decoded pixels [h, w, C] into `out`, uint8 [C, H, W] of any shape."""
    crop = preprocess.crop
    image = torch.from_numpy(pixels[:, :, None] if pixels.ndim == 2 else pixels).permute(2, 0, 1)
    height, width = image.shape[1:]
    rows, columns = out.shape[1:]
    if crop in ("center", "random"):
        tall, wide = covered(height, width, rows, columns)
        top, left = (height - tall) // 2, (width - wide) // 2
        if crop == "random":
            top, left = random_corner(height - tall, width - wide, draw)
        image = image[:, top : top + tall, left : left + wide]
    elif crop == "pad":
        scale = min(rows / height, columns / width)
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = (out.shape[1] - rows) // 2, (out.shape[2] - columns) // 2
        out.zero_()
        out = out[:, top : top + rows, left : left + columns]
    image = _resize(image, rows, columns, preprocess.resize)
    if flip and is_mirrored(draw):
        image = image.flip(2)
    out.copy_(image)


def covered(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """Height and width of the largest part of an image that has the proportions rows : columns."""
    tall = min(height, max(1, round(width * rows / columns)))
    return tall, min(width, max(1, round(height * columns / rows)))


def random_corner(rows: int, columns: int, draw: int) -> tuple[int, int]:
    """Top and left of a random crop that leaves so many rows and columns out."""
    return draw % (rows + 1), (draw >> 20) % (columns + 1)


def is_mirrored(draw: int) -> bool:
    """Whether a sample with this random number is shown mirrored."""
    return bool((draw >> 40) & 1)


def sample_draw(seed: int, epoch: int, key: str) -> int:
    """A sample's random number in an epoch: 48 bits of (seed, epoch, key), of no rank or thread."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "little")


def _resize(image: Tensor, height: int, width: int, mode: str) -> Tensor:
    if image.shape[1:] == (height, width):
        return image
    resized: Tensor = F.interpolate(
        image[None], (height, width), mode=mode, antialias=True, align_corners=False
    )
    return resized[0]


Transform = Callable[[Tensor, Tensor], Tensor]
"""`transform(images, seeds)`: uint8 `[n, C, S, S]` and int64 `[n]` to images of the same shape.

Each image may depend on itself and its own seed alone: how many come at once, and which, is not
promised, and the same sample has the same seed in an epoch whatever the number of workers.
"""


@dataclass(frozen=True)
class Augmentation:
    """`flip`: half of the images, by a coin for each (seed, key, epoch), are mirrored.

    `transform` is the import path of a `Transform`, as package.module:function, applied last.
    """

    flip: bool = False
    transform: str | None = None


def load_transform(path: str) -> Transform:
    """The function at `package.module:function`; raises `ConfigError` if there is none."""
    found = find_named(path, "--transform", ConfigError)
    if not callable(found):
        raise ConfigError(f"--transform {path}: is no function, but {found!r}.")
    checked: Transform = found
    return checked


def apply_transform(transform: Transform, path: str, images: Tensor, seeds: list[int]) -> None:
    """Replaces `images` in place; raises `DatasetError` where it fails, or for another shape."""
    try:
        result = transform(images, torch.tensor(seeds, dtype=torch.int64))
    except OWN_CODE as error:  # Somebody's own function raises what it likes.
        raise DatasetError(
            f"--transform {path}: failed with {told(error)} It is called as {_called(path)} with "
            f"uint8 {tuple(images.shape)} and int64 [{len(seeds)}], and gives images alike."
        ) from error
    if not isinstance(result, Tensor):
        raise DatasetError(
            f"--transform {path}: gave no tensor, but {type(result).__name__}; {_called(path)} "
            "gives uint8 images of the shape it gets."
        )
    if result.shape != images.shape or result.dtype != torch.uint8:
        raise DatasetError(
            f"--transform {path}: gave {result.dtype} {tuple(result.shape)} for uint8 "
            f"{tuple(images.shape)}; {_called(path)} must give uint8 of the same shape, as with "
            "`.to(torch.uint8)`."
        )
    images.copy_(result)


def _called(path: str) -> str:
    return f"`{path.rpartition(':')[2]}(images, seeds)`"


def try_transform(path: str, shape: tuple[int, int, int]) -> None:
    """Calls it on two black images [C, S, S]; raises `ConfigError` if it can't be trained with."""
    images = torch.zeros((2, *shape), dtype=torch.uint8)
    try:
        apply_transform(load_transform(path), path, images, [0, 1])
    except DatasetError as error:
        raise ConfigError(str(error)) from error
