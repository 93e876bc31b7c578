"""One input becomes what is packed: checked in full or by its header, and re-encoded if asked."""

import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from pipeline.data.decode import check_image, decode_image, probe_image
from pipeline.errors import SampleError, ShortageError, is_shortage

_EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "TIFF": "tif",
    "JPEG2000": "jp2",
    "DIB": "bmp",
    "HEIF": "heic",
}


@dataclass(frozen=True)
class ImagePolicy:
    """What a packed image must be, and whether it is kept byte for byte."""

    verify: Literal["full", "header"]
    encoding: Literal["keep", "jpeg", "webp"]
    quality: int
    short_side: int | None
    min_side: int
    pixel_limit: int


@dataclass(frozen=True)
class PackOptions(ImagePolicy):
    """What must not change while a dataset grows: the policy, and how much is held out."""

    holdout: float


@dataclass(frozen=True)
class PackedImage:
    """Bytes as they go into a shard; width and height in pixels, as shown (after orientation)."""

    data: bytes
    extension: str
    width: int
    height: int
    mode: str = ""
    """Of the original, as Pillow names it; with `SEVERAL` where more pages or frames follow."""


SEVERAL = " (first of several)"
"""What the mode of an image ends in whose file holds more than the one that is taken."""


def inspect_image(data: bytes, policy: ImagePolicy) -> PackedImage:
    """Checks and, if asked, re-encodes an image; raises `SampleError` if it can't be used."""
    full = policy.verify == "full" and policy.encoding == "keep"
    header = (check_image if full else probe_image)(data, policy.pixel_limit)
    if header.format == "TIFF" and _is_raw(data):
        raise SampleError(
            "unsupported", "a camera's raw file, of which a small copy alone could be read"
        )
    if min(header.width, header.height) < policy.min_side:
        raise SampleError(
            "small", f"{header.width}x{header.height}, the shorter side is below {policy.min_side}"
        )
    mode = header.mode + SEVERAL * header.several
    if policy.encoding != "keep":
        return _encode(data, policy, mode)
    extension = _EXTENSIONS.get(header.format, header.format.lower())
    return PackedImage(data, extension, header.width, header.height, mode)


def _is_raw(data: bytes) -> bool:
    """Whether the first page of a TIFF says that it is a small copy of what else lies there.

    Of raw files without a raw file's name Pillow reads the thumbnail, as if it were the photograph.
    """
    with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
        tags = image.tag_v2  # type: ignore[attr-defined]
        return bool(tags.get(_SUBFILE_TYPE) == 1 or _DNG_VERSION in tags or data[8:10] == b"CR")


_SUBFILE_TYPE, _DNG_VERSION = 254, 50706
"""TIFF 6.0, p. 36: 1 is a reduced version of another image of the file; DNG 1.7, p. 22."""


def _encode(data: bytes, policy: ImagePolicy, mode: str) -> PackedImage:
    image = Image.fromarray(decode_image(data, policy.pixel_limit))
    short = min(image.size)
    if policy.short_side is not None and short > policy.short_side:
        scale = policy.short_side / short
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        image = image.resize(size, Image.Resampling.LANCZOS)
    name, most = _HELD[policy.encoding]
    if max(image.size) > most:
        raise SampleError(
            "unsupported",
            f"{image.width} x {image.height}: {name} holds at most {most:,} pixels a side",
        )
    try:
        encoded = _encoded(image, policy)
    except (OSError, ValueError) as error:
        if is_shortage(error):
            raise ShortageError(f"memory ran out while an image was encoded: {error}.") from None
        raise SampleError(
            "unsupported", f"{image.width} x {image.height}: can't be encoded as {name}: {error}"
        ) from None
    return PackedImage(encoded, _EXTENSIONS.get(name.upper(), "webp"), *image.size, mode)


# libwebp's WEBP_MAX_DIMENSION; libjpeg's JPEG_MAX_DIMENSION.
_HELD = {"jpeg": ("JPEG", 65_500), "webp": ("WebP", 16_383)}


def _encoded(image: Image.Image, policy: ImagePolicy) -> bytes:
    buffer = io.BytesIO()
    if policy.encoding == "webp":
        image.save(buffer, "WEBP", quality=policy.quality)
        return buffer.getvalue()
    try:
        image.save(buffer, "JPEG", quality=policy.quality, optimize=True)
    except OSError:
        # Noise does not fit the buffer that Pillow reckons for the two passes of `optimize`.
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=policy.quality)
    return buffer.getvalue()
