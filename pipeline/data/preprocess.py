"""From image bytes to the pixels that a model sees; what is decided here belongs to the model."""

import hashlib
import io

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipeline import storage
from pipeline.config import PreprocessConfig
from pipeline.data.decode import DECODER_VERSION, decoded_image
from pipeline.errors import SampleError

Pixels = npt.NDArray[np.uint8]
Picture = Image.Image | npt.NDArray[np.uint8] | bytes
"""What a person has in a notebook: a PIL image, an array [H, W] or [H, W, 3], a file's bytes."""
FILTER = "antialiased, uint8 (torch)"


def preprocess_digest(preprocess: PreprocessConfig) -> str:
    """What the pixels depend on besides the bytes: crop, size, channels, filter, decoder."""
    parts = {**preprocess.model_dump(), "filter": FILTER, "decoder": DECODER_VERSION}
    return hashlib.sha256(storage.canonical_json(parts)).hexdigest()


def picture_bytes(picture: Picture) -> bytes:
    """A picture as a file's bytes, no pixel changed; raises `SampleError` for what is none."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.shape[2:] not in ((), (3,)) or picture.ndim < 2:
            raise SampleError(
                "unsupported",
                f"a picture: found an array {picture.dtype} {list(picture.shape)}, need uint8 "
                "[H, W] or [H, W, 3], 0 to 255",
            )
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise SampleError(
            "not-an-image",
            f"a picture: found {type(picture).__name__}, need a PIL image, an array or bytes",
        )
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


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
    size, crop = preprocess.image_size, preprocess.crop
    with decoded_image(
        data,
        channels=preprocess.channels,
        shrink_to=size,
        side="long" if crop == "pad" else "short",
    ) as pixels:
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        height, width = image.shape[1:]
        if crop in ("center", "random"):
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            if crop == "random":
                top = draw % (height - side + 1)
                left = (draw >> 20) % (width - side + 1)
            image = image[:, top : top + side, left : left + side]
            image = _resize(image, size, size, preprocess.resize)
        elif crop == "stretch":
            image = _resize(image, size, size, preprocess.resize)
        else:
            scale = size / max(height, width)
            rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
            image = _resize(image, rows, columns, preprocess.resize)
            top, left = (size - rows) // 2, (size - columns) // 2
            out.zero_()
            out = out[:, top : top + rows, left : left + columns]
        if flip and is_mirrored(draw):
            image = image.flip(2)
        out.copy_(image)


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
