"""Image bytes to RGB pixels: simplejpeg for JPEG, Pillow for everything else and what it refuses.

Decided here, because decoders honestly differ (part of the preprocessing digest):

- Formats: JPEG (with MPO), PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000; HEIF and JPEG XL where the
  extras `heif` and `jxl` are installed. Others are rejected, also
  those that Pillow could read (DDS, ICNS, FITS, QOI): no archive of photographs holds them.
- EXIF orientation is applied; an animation gives its first frame, a file of several pages or
  pictures (TIFF, MPO) its first; a palette is looked up.
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
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.data.image_kinds import (
    EXTRAS,
    HEAD_BYTES,
    JPEG_MAGIC,
    MOST_SCANS,
    ORIENTATION_TAG,
    TRANSPOSED,
    JpegHeader,
    container_of,
    has_extra,
    has_too_many_scans,
    jpeg_header,
    kind_of,
    unread_tiff,
)
from pipeline.data.memory import DECODING, SHORT, check_decoding, decoding_bytes, twice
from pipeline.errors import PipelineError, SampleError, ShortageError, is_shortage

Pixels = npt.NDArray[np.uint8]

PIXEL_LIMIT = 89_478_485
"""Most pixels of one image: Pillow's own guard against bombs, 256 MiB of RGB."""

_SCANS = f"a JPEG of more than {MOST_SCANS} scans"

DECODER_VERSION = 1
"""Raised whenever the same bytes may give other pixels; part of the preprocessing digest."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000")
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
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
    several: bool = False
    """Whether more pages or frames follow, which nobody reads."""


def probe_image(data: bytes, pixel_limit: int = PIXEL_LIMIT) -> ImageHeader:
    """Reads the header alone. Raises SampleError as `decode_image` does."""
    jpeg = jpeg_header(data)
    if jpeg is not None:
        _check_jpeg(data, jpeg, pixel_limit)
        turned = jpeg.orientation in TRANSPOSED
        width, height = (jpeg.height, jpeg.width) if turned else (jpeg.width, jpeg.height)
        return ImageHeader(width, height, "JPEG", _JPEG_MODES.get(jpeg.components, ""))
    image = _open(data, pixel_limit)
    # Pillow's TIFF plugin states the size after its own turn; its PNG plugin's own getexif() would
    # decode the whole image, for an EXIF chunk behind the pixels.
    try:
        exif = None if image.format == "TIFF" else Image.Image.getexif(image)
    except _PILLOW_ERRORS as error:
        raise _sample_error(error) from None
    orientation = 1 if exif is None else exif.get(ORIENTATION_TAG, 1)
    turned = orientation in TRANSPOSED
    width, height = (image.height, image.width) if turned else (image.width, image.height)
    return ImageHeader(width, height, image.format or "", image.mode, _is_several(image))


def _is_several(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except _PILLOW_ERRORS:  # What follows the first frame is broken, and not asked for.
        return False


def decode_image(
    data: bytes,
    pixel_limit: int = PIXEL_LIMIT,
    *,
    channels: Literal[1, 3] = 3,
    shrink_to: int | None = None,
    side: Literal["short", "long"] = "short",
) -> Pixels:
    """All pixels: uint8 [H, W, channels], oriented; grey is ITU-R 601 luma.

    With `shrink_to` a JPEG may come smaller by 2, 4 or 8, as long as its short (or long) side keeps
    that many pixels: the DCT throws away what a resize would. Raises SampleError with one of the
    reasons `not-an-image`, `bomb`, `truncated`, `corrupt`, `unsupported`.
    """
    with decoded_image(
        data, pixel_limit, channels=channels, shrink_to=shrink_to, side=side
    ) as pixels:
        return pixels


@contextmanager
def decoded_image(
    data: bytes,
    pixel_limit: int = PIXEL_LIMIT,
    *,
    channels: Literal[1, 3] = 3,
    shrink_to: int | None = None,
    side: Literal["short", "long"] = "short",
) -> Iterator[Pixels]:
    """The same for as long as the block runs: other threads' large images wait for that."""
    jpeg = jpeg_header(data)
    if jpeg is not None:
        _check_jpeg(data, jpeg, pixel_limit)
        height, width = _shrunk(jpeg, shrink_to, side)
        with DECODING.taken(height * width * jpeg.pixel_bytes + jpeg.coefficients):
            pixels = _decode_jpeg(data, jpeg, channels, height, width)
            if pixels is not None:
                yield pixels
                return
    image = _open(data, pixel_limit)
    with DECODING.taken(decoding_bytes(image)):
        yield _decode_pillow(data, image, channels)


def check_image(data: bytes, pixel_limit: int = PIXEL_LIMIT) -> ImageHeader:
    """Refuses exactly what `decode_image` refuses, at three quarters of its cost for a JPEG.

    Whether a JPEG is whole is decided while its entropy-coded data are read, which is done in full;
    of the pixels, only one in 64 is then computed, in grey.
    """
    channels: Literal[1, 3] = 1 if data.startswith(JPEG_MAGIC) else 3
    with decoded_image(data, pixel_limit, channels=channels, shrink_to=1) as pixels:
        height, width = pixels.shape[:2]
    header = probe_image(data, pixel_limit)
    if header.format == "JPEG" and (height, width) != (header.height, header.width):
        return header  # It came smaller.
    return ImageHeader(width, height, header.format, header.mode, header.several)


def _check_pixels(width: int, height: int, pixel_limit: int) -> None:
    if width * height > pixel_limit:
        raise SampleError(
            "bomb", f"an image of {width} x {height} pixels is over the limit of {pixel_limit:,}"
        )


def _check_jpeg(data: bytes, header: JpegHeader, pixel_limit: int) -> None:
    """Raises `SampleError` for a bomb."""
    _check_pixels(header.width, header.height, pixel_limit)
    if header.coefficients and has_too_many_scans(data):
        raise SampleError("bomb", _SCANS)
    needed = header.width * header.height * header.pixel_bytes + header.coefficients
    check_decoding(f"JPEG of {header.width} x {header.height}", needed, pixel_limit)


def _shrunk(
    header: JpegHeader, shrink_to: int | None, side: Literal["short", "long"]
) -> tuple[int, int]:
    """Height and width, as stored, that the DCT gives at once."""
    if shrink_to is not None and header.shrinkable:
        pick = min if side == "short" else max
        for shrink in _SHRINKS:
            size = (-(-header.height // shrink), -(-header.width // shrink))
            if pick(size) >= shrink_to:
                return size
    return header.height, header.width


def _decode_jpeg(
    data: bytes, header: JpegHeader, channels: int, height: int, width: int
) -> Pixels | None:
    """None when Pillow should try: simplejpeg has no CMYK, and refuses harmless oddities."""
    if (height, width) == (header.height, header.width):
        height = width = 0
    try:
        pixels = simplejpeg.decode_jpeg(
            data, "RGB" if channels == 3 else "GRAY", min_height=height, min_width=width
        )
        return np.ascontiguousarray(_orient(pixels, header.orientation))
    except MemoryError as error:
        raise ShortageError(SHORT) from error  # Its size is known, and was allowed.
    except ValueError as error:
        message = str(error)
        if "Premature end of JPEG" in message:
            raise SampleError("truncated", f"JPEG: {message}") from None
        if "premature end of data segment" in message or "bad Huffman code" in message:
            raise SampleError("corrupt", f"JPEG: {message}") from None
        return None


def _orient(pixels: Pixels, orientation: int) -> Pixels:
    """Undoes an EXIF orientation 1..8 of [H, W, C] (Exif 3.0, table 'Orientation')."""
    if orientation in TRANSPOSED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _open(data: bytes, pixel_limit: int) -> Image.Image:
    try:
        image = twice(lambda: Image.open(io.BytesIO(data), formats=_formats()))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = str(error).partition(" exceeds ")[0]
        raise SampleError("bomb", f"{found} is over the limit of {pixel_limit:,}") from None
    except UnidentifiedImageError:
        kind = kind_of(data[:HEAD_BYTES])
        if kind in EXTRAS and not has_extra(kind):
            raise SampleError(
                f"needs-{kind}", f"is {kind.upper()}: install vae-pipeline[{kind}] to read it"
            ) from None
        if kind is not None:
            raise _damage(data, kind) from None
        raise SampleError("not-an-image", _strangeness(data)) from None
    except _PILLOW_ERRORS as error:
        raise _sample_error(error) from None
    _check_pixels(image.width, image.height, pixel_limit)
    if any(map(has_too_many_scans, _jpegs_in(data, image))):
        raise SampleError("bomb", _SCANS)
    check_decoding(
        f"{image.format} of {image.width} x {image.height} ({image.mode})", decoding_bytes(image),
        pixel_limit,
    )  # fmt: skip
    return image


def _jpegs_in(data: bytes, image: Image.Image) -> list[bytes]:
    """What libjpeg decodes: strips of a TIFF may be JPEGs, each with scans of its own."""
    if image.format == "TIFF":
        return data.split(b"\xff\xd8")[1:] if image.info.get("compression") == "jpeg" else []
    return [data] if image.format in ("JPEG", "MPO") else []


def _damage(data: bytes, kind: str) -> PipelineError:
    """Why Pillow does not open what begins as an image of this kind: asked of its reader alone."""
    name, found, why = "JPEG2000" if kind == "jp2" else kind.upper(), "corrupt", ""
    try:
        Image.OPEN[name][0](io.BytesIO(data), "")
    except _PILLOW_ERRORS as error:
        known = _sample_error(error)
        if not isinstance(known, SampleError):
            return known
        found, why = known.reason, str(known)
    chunk = re.search(r"checksum in b'(?!IHDR)(\w{4})'", why)
    told = f"its header is damaged ({f'{why}; ' * bool(why)}{len(data):,} bytes)"
    if chunk is not None:
        told = f"the checksum of its chunk {chunk[1]} is wrong"
    elif kind == "tiff" and (unread := unread_tiff(data, why)):
        found, told = "unsupported", unread
    elif found == "unsupported":
        told = why
    return SampleError(found, f"begins as {kind.upper()}, but {told}")


def _strangeness(data: bytes) -> str:
    """Why nothing opens bytes that begin as no image."""
    if not data:
        return "an empty file"
    if container_of(data[:HEAD_BYTES]):
        return f"{len(data):,} bytes of {container_of(data[:HEAD_BYTES])}: an archive, and no image"
    also = [kind.upper() for kind in EXTRAS if has_extra(kind)]
    names = ", ".join(("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF", *also))
    return f"{len(data):,} bytes starting with {data[:8]!r} are no {names} or JPEG 2000"


def _decode_pillow(data: bytes, image: Image.Image, channels: int) -> Pixels:
    def decode() -> Pixels:
        # Never a second load() after a failed one: it "succeeds" with garbage.
        first = tries.pop() if tries else Image.open(io.BytesIO(data), formats=_formats())
        first.load()
        rgb = _to_rgb(ImageOps.exif_transpose(first))
        return np.array(rgb.convert("L") if channels == 1 else rgb, dtype=np.uint8)

    tries = [image]
    try:
        pixels = twice(decode)
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


# What Pillow's plugins are seen to raise on broken files (its fuzzing corpus): many kinds.
_PILLOW_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, IndexError, KeyError, AttributeError,
    OverflowError, ZeroDivisionError, MemoryError, RuntimeError, struct.error, Warning,
)  # fmt: skip


def _sample_error(error: BaseException) -> PipelineError:
    if is_shortage(error) and not isinstance(error, MemoryError):
        return ShortageError(SHORT)
    message = str(error) or type(error).__name__
    if _UNSUPPORTED.search(message):
        return SampleError("unsupported", message)
    return SampleError("truncated" if _TRUNCATED.search(message) else "corrupt", message)


# Of what Pillow says of files; what is neither is damaged.
_TRUNCATED = re.compile("truncated|incomplete checksum|but only got|not enough data", re.I)
_UNSUPPORTED = re.compile(
    "unsupported|unknown (pixel mode|compression method)|cannot handle|"
    "not yet supported|unable to determine|too large for|too much memory", re.I,
)  # fmt: skip


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
