"""Image bytes to RGB pixels: simplejpeg for JPEG, Pillow for everything else and what it refuses.

Decided here, because decoders honestly differ (part of the preprocessing digest):

- Formats: JPEG (with MPO), PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000; HEIF and JPEG XL where the
  extras `heif` and `jxl` are installed. Others are rejected, also
  those that Pillow could read (DDS, ICNS, FITS, QOI): no archive of photographs holds them.
- EXIF orientation is applied; an animation gives its first frame; a palette is looked up.
- Alpha is laid over white: `convert("RGB")` would show whatever colour the hidden pixels have.
- 16 bits are scaled to 8 (x / 257, rounded); Pillow's own conversion clips at 255. A 9 to 15-bit
  image in a 16-bit type counts as 16-bit. Floats, 32-bit integers and LAB have no agreed scale
  to 8 bits and are rejected.
- A JPEG whose entropy-coded data end early or make no sense is rejected, although lenient decoders
  paint the rest grey.
"""

import ctypes
import io
import logging
import struct
import warnings
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.data.image_kinds import EXTRAS, HEAD_BYTES, has_extra, kind_of
from pipeline.errors import PipelineError, SampleError, ShortageError

PIXEL_LIMIT = 89_478_485
"""Most pixels of one image: Pillow's own guard against bombs, 256 MiB of RGB."""

IMAGE_BYTES = 512 * 2**20
"""Memory that decoding one image may take; a JPEG of `PIXEL_LIMIT` pixels takes that much."""

_MOST_BYTES = 27
"""Of a pixel with alpha: four RGBA copies of 4 bytes, RGB in 4, and the array in 3, with spare."""
_MORE_BYTES = {"WEBP": 8, "GIF": 8, "AVIF": 16, "JPEG2000": 16}
"""Of a pixel, in the decoder's own buffers."""
_ROW_BYTES = 48
"""Pillow keeps a pointer and pads each row, in up to three images at once."""

DECODER_VERSION = 1
"""Raised whenever the same bytes may give other pixels; part of the preprocessing digest."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000")
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_JPEG_MAGIC = b"\xff\xd8\xff"
_ORIENTATION_TAG = 0x0112
_TRANSPOSED = frozenset((5, 6, 7, 8))
# A lossless JPEG has no DCT to shrink in: libjpeg-turbo 3 writes it in full size into the buffer of
# the smaller one, which ends the process (seen with simplejpeg 1.9.0).
_DCT_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC9, 0xCA))
# The other factors of n/8 decode slower than full size (measured); these have fast inverse DCTs.
_SHRINKS = (8, 4, 2)

# Decided by size before decoding; the warning would only be noise on stderr.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\..*")
# Pillow logs some broken files as errors, besides raising: the exception says it all.
logging.getLogger("PIL").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes say: size in pixels after EXIF orientation, and Pillow's format name."""

    width: int
    height: int
    format: str
    mode: str = ""
    """Pillow's name for the kind of pixels, as stored: RGB, L, CMYK ..."""


@dataclass(frozen=True)
class _JpegHeader:
    width: int
    height: int
    orientation: int
    shrinkable: bool
    components: int


def probe_image(data: bytes, pixel_limit: int = PIXEL_LIMIT) -> ImageHeader:
    """Reads the header alone. Raises SampleError as `decode_image` does."""
    jpeg = _jpeg_header(data)
    if jpeg is not None:
        _check_pixels(jpeg.width, jpeg.height, pixel_limit)
        turned = jpeg.orientation in _TRANSPOSED
        width, height = (jpeg.height, jpeg.width) if turned else (jpeg.width, jpeg.height)
        return ImageHeader(width, height, "JPEG", _JPEG_MODES.get(jpeg.components, ""))
    image = _open(data, pixel_limit)
    # Pillow's TIFF plugin states the size after its own turn; its PNG plugin's own getexif() would
    # decode the whole image, for an EXIF chunk behind the pixels.
    try:
        exif = None if image.format == "TIFF" else Image.Image.getexif(image)
    except _PILLOW_ERRORS as error:
        raise _sample_error(error) from None
    orientation = 1 if exif is None else exif.get(_ORIENTATION_TAG, 1)
    turned = orientation in _TRANSPOSED
    width, height = (image.height, image.width) if turned else (image.width, image.height)
    return ImageHeader(width, height, image.format or "", image.mode)


def decode_image(
    data: bytes,
    pixel_limit: int = PIXEL_LIMIT,
    *,
    channels: Literal[1, 3] = 3,
    shrink_to: int | None = None,
    side: Literal["short", "long"] = "short",
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """All pixels: uint8 [H, W, channels], oriented; grey is ITU-R 601 luma.

    With `shrink_to` a JPEG may come smaller by 2, 4 or 8, as long as its short (or long) side keeps
    that many pixels: the DCT throws away what a resize would. Raises SampleError with one of the
    reasons `not-an-image`, `bomb`, `truncated`, `corrupt`, `unsupported`.
    """
    jpeg = _jpeg_header(data)
    if jpeg is not None:
        _check_pixels(jpeg.width, jpeg.height, pixel_limit)
        pixels = _decode_jpeg(data, jpeg, channels, shrink_to, side)
        if pixels is not None:
            return pixels
    return _decode_pillow(data, pixel_limit, channels)


def check_image(data: bytes, pixel_limit: int = PIXEL_LIMIT) -> ImageHeader:
    """Refuses exactly what `decode_image` refuses, at three quarters of its cost for a JPEG.

    Whether a JPEG is whole is decided while its entropy-coded data are read, which is done in full;
    of the pixels, only one in 64 is then computed.
    """
    jpeg = _jpeg_header(data)
    if jpeg is not None:
        _check_pixels(jpeg.width, jpeg.height, pixel_limit)
        if _decode_jpeg(data, jpeg, 3, 1, "short") is not None:
            return probe_image(data, pixel_limit)
    height, width = _decode_pillow(data, pixel_limit, 3).shape[:2]
    header = probe_image(data, pixel_limit)
    return ImageHeader(width, height, header.format, header.mode)


def _check_pixels(width: int, height: int, pixel_limit: int) -> None:
    if width * height > pixel_limit:
        raise SampleError(
            "bomb", f"an image of {width} x {height} pixels is over the limit of {pixel_limit:,}"
        )


def _decode_jpeg(
    data: bytes,
    header: _JpegHeader,
    channels: int,
    shrink_to: int | None,
    side: Literal["short", "long"],
) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """None when Pillow should try: simplejpeg has no CMYK, and refuses harmless oddities."""
    height = width = 0
    if shrink_to is not None and header.shrinkable:
        pick = min if side == "short" else max
        for shrink in _SHRINKS:
            size = (-(-header.height // shrink), -(-header.width // shrink))
            if pick(size) >= shrink_to:
                height, width = size
                break
    try:
        pixels = simplejpeg.decode_jpeg(
            data, "RGB" if channels == 3 else "GRAY", min_height=height, min_width=width
        )
    except ValueError as error:
        message = str(error)
        if "Premature end of JPEG" in message:
            raise SampleError("truncated", f"JPEG: {message}") from None
        if "premature end of data segment" in message or "bad Huffman code" in message:
            raise SampleError("corrupt", f"JPEG: {message}") from None
        return None
    return np.ascontiguousarray(_orient(pixels, header.orientation))


def _orient(
    pixels: np.ndarray[Any, np.dtype[np.uint8]], orientation: int
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Undoes an EXIF orientation 1..8 of [H, W, C] (Exif 3.0, table 'Orientation')."""
    if orientation in _TRANSPOSED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _jpeg_header(data: bytes) -> _JpegHeader | None:
    """Size and orientation from the markers up to the frame header; None: not (simply) a JPEG.

    Four times faster than opening it with Pillow, which costs as much as a tenth of a decode.
    """
    if data[:3] != _JPEG_MAGIC:
        return None
    position, orientation = 2, 1
    while position + 9 < len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0x00:
            return None  # libjpeg would search on from here, and might find another frame
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            position += 2  # markers that stand alone, as libjpeg reads them
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            shrinkable = marker in _DCT_FRAMES
            if not (width and height):
                return None
            return _JpegHeader(width, height, orientation, shrinkable, data[position + 9])
        length = struct.unpack_from(">H", data, position + 2)[0]
        if marker == 0xDA or length < 2:
            return None
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[position + 10 : position + 2 + length])
        position += 2 + length
    return None


def _exif_orientation(tiff: bytes) -> int:
    """The orientation in the first directory of an EXIF block; 1 when it has none or is broken."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(tiff[:4]))
    if order is None or len(tiff) < 8:
        return 1
    start = struct.unpack_from(order + "I", tiff, 4)[0]
    if start + 2 > len(tiff):
        return 1
    count = struct.unpack_from(order + "H", tiff, start)[0]
    for entry in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
        if tag == _ORIENTATION_TAG:
            return value if kind == 3 and 1 <= value <= 8 else 1
    return 1


def _open(data: bytes, pixel_limit: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SampleError("bomb", str(error)) from None
    except UnidentifiedImageError:
        kind = kind_of(data[:HEAD_BYTES])
        if kind in EXTRAS and not has_extra(kind):
            raise SampleError(
                f"needs-{kind}", f"is {kind.upper()}: install vae-pipeline[{kind}] to read it"
            ) from None
        raise SampleError(
            "not-an-image",
            f"{len(data):,} bytes starting with {data[:8]!r} are no JPEG, PNG, WebP, GIF, BMP, "
            "TIFF, AVIF or JPEG 2000 that can be opened",
        ) from None
    except _PILLOW_ERRORS as error:
        raise _sample_error(error) from None
    _check_pixels(image.width, image.height, pixel_limit)
    _check_cost(image, max(IMAGE_BYTES, 6 * pixel_limit))
    return image


def _check_cost(image: Image.Image, budget: int) -> None:
    """Before a pixel is decoded: what decoding holds at once depends on format and rows, too."""
    alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    per_pixel = _MOST_BYTES if alpha else 12
    per_pixel += _MORE_BYTES.get(image.format or "", 0) + 4 * image.mode.startswith("I")
    needed = image.width * image.height * per_pixel + image.height * _ROW_BYTES
    if needed > budget:
        raise SampleError(
            "bomb",
            f"a {image.format} of {image.width} x {image.height} ({image.mode}) takes about "
            f"{needed / 2**20:,.0f} MiB to decode, over {budget / 2**20:,.0f}",
        )


def _decode_pillow(
    data: bytes, pixel_limit: int, channels: int
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    image = _open(data, pixel_limit)
    try:
        # Never a second load() after a failed one: it "succeeds" with garbage.
        image.load()
        image = _to_rgb(ImageOps.exif_transpose(image))
        if channels == 1:
            image = image.convert("L")
        pixels = np.array(image, dtype=np.uint8)
    except _PILLOW_ERRORS as error:
        raise _sample_error(error) from None
    return pixels.reshape(*pixels.shape[:2], channels)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB, as the module's docstring decides."""
    mode = image.mode
    if mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif mode in ("I", "F", "LAB", "HSV"):
        raise SampleError("unsupported", f"pixels of type {mode} have no agreed scale to 8 bits")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return image.convert("RGB")


def _is_short() -> bool:
    """Whether an image's share of memory can't be had; else the file asked for the impossible."""
    try:
        np.empty(IMAGE_BYTES, np.uint8)
    except MemoryError:
        return True
    return False


# What Pillow's plugins are seen to raise on broken files (its fuzzing corpus): many kinds.
_PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    OverflowError,
    ZeroDivisionError,
    MemoryError,
    RuntimeError,
    struct.error,
    Warning,
)


def _sample_error(error: BaseException) -> PipelineError:
    if isinstance(error, MemoryError) and _is_short():
        return ShortageError(
            "memory ran out while an image was decoded, which says nothing about the image. Use "
            "fewer workers or threads, or give more memory, and run the same command again."
        )
    message = str(error) or type(error).__name__
    reason = "truncated" if "truncated" in message.lower() else "corrupt"
    return SampleError(reason, message)


@cache
def _formats() -> tuple[str, ...]:
    """Pillow's names of what may be opened here; made ready by the first call."""
    _silence_libtiff()
    found = [*_FORMATS]
    if has_extra("heif"):
        import_module(EXTRAS["heif"]).register_heif_opener()
        found.append("HEIF")
    if has_extra("jxl"):
        import_module(EXTRAS["jxl"])  # registers itself
        found.append("JXL")
    return tuple(found)


def _silence_libtiff() -> None:
    """Takes away libtiff's handlers, which print hundreds of lines per hostile file to stderr.

    Pillow reports the failure itself. The library is found among those mapped into this process;
    where there is no /proc the noise stays.
    """
    Image.init()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    for line in maps.read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if "/libtiff" in path and Path(path).exists():
            library = ctypes.CDLL(path)
            for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
                setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
                setter(None)
            return
