"""What is an image: by its name, and by its first bytes where the name says nothing or lies."""

import io
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Literal

HEAD_BYTES = 512
"""So many first bytes tell every kind: a tar says so in its byte 257."""

IMAGE_SUFFIXES = frozenset((
    ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jif", ".jp2",
    ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".png", ".tif", ".tiff", ".webp",
))  # fmt: skip
"""Of the formats that are always read."""

EXTRAS = {"heif": "pillow_heif", "jxl": "pillow_jxl"}
"""Extras of this package, and the module of the Pillow plugin that each brings."""
_EXTRA_OF_SUFFIX = {
    ".heic": "heif", ".heics": "heif", ".heif": "heif", ".heifs": "heif", ".hif": "heif",
    ".jxl": "jxl",
}  # fmt: skip
_RAW_SUFFIXES = frozenset((
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".k25",
    ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".ptx", ".raf", ".raw",
    ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
))  # fmt: skip
_UNREAD_SUFFIXES = frozenset((
    ".ai", ".bpg", ".cur", ".dcm", ".dds", ".emf", ".eps", ".exr", ".fit", ".fits", ".flif",
    ".hdr", ".icns", ".ico", ".jbig2", ".jng", ".jxr", ".kra", ".mng", ".nii", ".ora", ".pbm",
    ".pcx", ".pfm", ".pgm", ".pic", ".pict", ".pnm", ".ppm", ".psb", ".psd", ".qoi", ".ras",
    ".sgi", ".svg", ".svgz", ".tga", ".wbmp", ".wdp", ".wmf", ".xbm", ".xcf", ".xpm",
))  # fmt: skip
_IMAGES_BY_NAME = IMAGE_SUFFIXES | _EXTRA_OF_SUFFIX.keys() | _RAW_SUFFIXES | _UNREAD_SUFFIXES
_UNREAD_ARCHIVES = frozenset((
    ".7z", ".arj", ".cab", ".cb7", ".cbr", ".cbt", ".cbz", ".cpio", ".dmg", ".epub", ".iso",
    ".lha", ".lz4", ".rar", ".sit", ".sitx", ".squashfs", ".wim", ".xar", ".z", ".zipx",
))  # fmt: skip
_NO_PICTURES = frozenset((
    ".aar", ".apk", ".ckpt", ".crx", ".docm", ".docx", ".egg", ".ipa", ".jar", ".keras", ".kmz",
    ".npz", ".nupkg", ".odg", ".odp", ".ods", ".odt", ".potx", ".ppsx", ".pptx", ".pt", ".pth",
    ".vsix", ".war", ".whl", ".xlsm", ".xlsx", ".xpi",
))  # fmt: skip
"""Of zips that are programs and documents: nobody keeps a dataset in one."""
_COMPRESSIONS = frozenset((".br", ".bz2", ".gz", ".lz", ".lz4", ".lzo", ".sz", ".xz", ".z", ".zst"))
_PART_OF_ARCHIVE = re.compile(
    r"(\.(tar|tgz|zip|7z|rar)(\.(gz|bz2|xz|zst))?\.?(part[-_.]?\w{1,4}|\d{2,4}|[a-c][a-z])|\.[rz]\d\d)$"
)
SPLIT, UNNAMED, PACKED_TABLE = "split archive", "unnamed archive", "table in an archive"
_OF_OTHERS = re.compile(r"\.(beton|lmdb|mdb|mds|rec|tfrec(ord)?s?(-\d+-of-\d+)?)(\.(gz|zst))?$")
OTHER_BYTES, OTHER_FORMAT = "table of other bytes", "dataset of another library"
"""Kinds of ignored files that have no suffix of their own."""
UNREADABLE = "unreadable"
"""The reason of an archive or table that can't be read to its end: nobody knows what it holds."""

TRANSPOSED = frozenset((5, 6, 7, 8))
"""EXIF orientations that exchange width and height."""
JPEG_MAGIC = b"\xff\xd8\xff"
ORIENTATION_TAG = 0x0112
# A lossless JPEG has no DCT to shrink in: libjpeg-turbo 3 writes it in full size into the buffer of
# the smaller one, which ends the process (seen with simplejpeg 1.9.0).
_DCT_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC9, 0xCA))
# All coefficients of one are kept until its last scan: 2 bytes each.
_PROGRESSIVE_FRAMES = frozenset((0xC2, 0xC6, 0xCA, 0xCE))

Verdict = Literal["image", "ignored", "beside"]


def kind_of(head: bytes) -> str | None:
    """jpeg, png, gif, webp, bmp, tiff, avif, jp2, heif or jxl; None for anything else."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    # A bitmap's own header says its length: 12 (OS/2) to 124 (version 5).
    if (
        head[:2] == b"BM"
        and head[6:10] == bytes(4)
        and head[14:15] in b"\x0c\x28\x34\x38\x40\x6c\x7c"
    ):
        return "bmp" if len(head) > 18 and head[15:18] == bytes(3) else None
    if head[4:8] == b"ftyp":
        length = min(max(int.from_bytes(head[:4], "big"), 16), len(head))
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, length, 4))}
        if brands & {b"avif", b"avis"}:
            return "avif"
        if brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}:
            return "heif"
    return None


_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),  # BigTIFF, as microscopes write it
    (b"MM\0+", "tiff"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "jp2"),
    (b"\xff\x4f\xff\x51", "jp2"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "jxl"),
    (b"\xff\x0a", "jxl"),
)
_SUFFIX_OF_KIND = {"heif": ".heic", "jxl": ".jxl"}


def container_of(head: bytes) -> str | None:
    """zip, tar, gzip, bzip2, xz, zstd, 7z or rar by the first bytes; None for anything else."""
    if head[257:262] == b"ustar":
        return "tar"
    if head[:3] == b"BZh" and head[4:10] != b"1AY&SY":
        return None  # a tar of old, whose first file is called so
    return next((kind for magic, kind in _CONTAINERS if head.startswith(magic)), None)


_CONTAINERS = (
    (b"PK\3\4", "zip"),
    (b"PK\5\6", "zip"),
    (b"\x1f\x8b\x08", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "rar"),
)


def is_apple_double(name: str, head: Callable[[], bytes]) -> bool:
    """Whether this is what macOS writes beside `name` without its `._`: no file of anybody's."""
    return name.startswith("._") and head()[:4] in (b"\0\5\x16\7", b"\0\5\x16\0", b"")


@cache
def has_extra(extra: str) -> bool:
    """Whether the plugin of `heif` or `jxl` is installed."""
    return find_spec(EXTRAS[extra]) is not None


def _suffix(path: str) -> str:
    """As pathlib has it, in lower case; in a tenth of the time, for each of 10^7 inputs."""
    name = path[path.rfind("/") + 1 :]
    dot = name.rfind(".")
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def raw_suffix(path: str) -> str:
    """A camera's raw file's suffix, by which a path ends; "" for any other path."""
    suffix = _suffix(path)
    return suffix if suffix in _RAW_SUFFIXES else ""


def needs_head(path: str) -> bool:
    """Whether the name alone does not settle what this is."""
    suffix = _suffix(path)
    extra = _EXTRA_OF_SUFFIX.get(suffix)
    return suffix not in IMAGE_SUFFIXES and not (extra and has_extra(extra))


def judge(path: str, head: Callable[[], bytes]) -> tuple[Verdict, str]:
    """What a file is: an image that can be read, one that can't, or something beside images.

    The second is the kind under which it is counted: a suffix. `head` gives its first bytes, and is
    called only where the name does not settle it.
    """
    suffix = _suffix(path)
    if not needs_head(path):
        return "image", suffix
    start = head()
    kind = kind_of(start)
    # Raw files are TIFFs by their first bytes.
    if kind is not None and not (kind == "tiff" and suffix in _RAW_SUFFIXES):
        if kind not in EXTRAS or has_extra(kind):
            return "image", suffix
        return "ignored", _SUFFIX_OF_KIND[kind]
    if suffix in _EXTRA_OF_SUFFIX or suffix in _RAW_SUFFIXES | _UNREAD_SUFFIXES | _UNREAD_ARCHIVES:
        return "ignored", suffix
    archive = _archive_kind(path, start)
    return ("ignored", archive) if archive else ("beside", suffix)


def _archive_kind(path: str, head: bytes) -> str:
    """The kind of a file that may hold images, though nothing looks into it; "" for any other."""
    name = PurePosixPath(path.lower())
    if _PART_OF_ARCHIVE.search(name.name):
        return SPLIT
    if _OF_OTHERS.search(name.name):
        return OTHER_FORMAT
    if name.suffix in _COMPRESSIONS:
        within = PurePosixPath(name.stem).suffix
        return name.suffix if within == ".tar" or within in _IMAGES_BY_NAME else ""
    holds = container_of(head)
    is_archive = holds in ("zip", "tar", "7z", "rar") and name.suffix not in _NO_PICTURES
    return UNNAMED if is_archive or (holds and not name.suffix) else ""


def cure_of(kind: str) -> str:
    """What to do about inputs ignored or rejected under `kind`; "" where nothing is to be said."""
    extra = _EXTRA_OF_SUFFIX.get(kind) or kind.removeprefix("needs-")
    if extra in EXTRAS:
        return f"install vae-pipeline[{extra}]"
    if kind in _RAW_SUFFIXES:
        return f"develop them to JPEG or PNG, or `--ignore {kind}`"
    if kind in _UNREAD_ARCHIVES | _COMPRESSIONS:
        return "unpack them, or pack them as .zip or .tar"
    if kind in _UNREAD_SUFFIXES:
        return f"convert them to PNG, or `--ignore {kind}`"
    return _CURES.get(kind, "")


_CURES = {
    "archive": "copy those archives again",
    "bomb": "scale them down first",
    "changed": "the same command with `--append` reads them",
    "corrupt": "copy them again",
    "dangling": "restore what those links lead to",
    "encrypted": "unpack them with their password",
    "packed-otherwise": "unpack their archives, and give the folders",
    "hidden": "rename them, or `--ignore hidden`",
    "missing": "copy them again; rows without an image: leave them out",
    "link": "jobs.pack follows links",
    "name": "rename them in UTF-8 (convmv; in an archive: unpack it, rename, pack the folder)",
    "no plain tar": "jobs.pack reads them",
    "no-image": "see what they hold: jobs.pack counts each file by its kind",
    "no-key": "jobs.pack gives them keys",
    "nested": "unpack the archives inside archives inside archives",
    "not-an-image": "see what they are, or copy them again",
    PACKED_TABLE: "unpack the archives and pack the folder, or `--ignore 'table in an archive'` if "
    "they hold no images",
    OTHER_FORMAT: "write them out as files, .tar or .parquet, or `--ignore "
    "'dataset of another library'`",
    OTHER_BYTES: "write images' files into them, or `--ignore 'table of other bytes'`",
    "outside": "name their prefix with `--below` (from Python `below=[...]`)",
    "replaced": "a later member or row of the same path counts",
    "scattered": "sort the members by name, so that those of a sample follow one another",
    "small": "lower `--min-side`",
    "sparse": "jobs.pack reads them",
    SPLIT: "join their parts with cat, those of .z01 with zip -s 0",
    "truncated": "copy them again",
    UNNAMED: "name them as what they are: .tar, .tar.gz or .zip, or `--ignore 'unnamed archive'`",
    UNREADABLE: "copy those archives and tables again, or see what the list says of each",
    "unsupported": "convert them to PNG or JPEG",
}


@dataclass(frozen=True)
class JpegHeader:
    """What the markers up to the frame say; width and height as stored, in pixels."""

    width: int
    height: int
    orientation: int
    shrinkable: bool
    components: int
    coefficients: int
    """Of one in several scans, in bytes; 0 for others, which need a few rows at a time."""

    @property
    def pixel_bytes(self) -> int:
        """Per pixel of RGB in the buffer that is decoded into, and turned from."""
        return 6 if self.orientation != 1 else 3


def jpeg_header(data: bytes) -> JpegHeader | None:
    """Size and orientation from the markers up to the frame header; None: not (simply) a JPEG.

    Four times faster than opening it with Pillow, which costs as much as a tenth of a decode.
    """
    if data[:3] != JPEG_MAGIC:
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
            if not (width and height):
                return None
            in_scans = marker in _PROGRESSIVE_FRAMES or not _has_one_scan(data, position)
            return JpegHeader(
                width=width,
                height=height,
                orientation=orientation,
                shrinkable=marker in _DCT_FRAMES,
                components=data[position + 9],
                coefficients=2 * _coefficients(data, position) if in_scans else 0,
            )
        length = struct.unpack_from(">H", data, position + 2)[0]
        if marker == 0xDA or length < 2:
            return None
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[position + 10 : position + 2 + length])
        position += 2 + length
    return None


MOST_SCANS = 100
"""Of one image: libjpeg writes 10, those who look for the smallest file some 15. Each costs a look
at every block of the image, and may take 20 bytes."""
_SCAN = re.compile(rb"\xff\xda")
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")


def has_too_many_scans(data: bytes) -> bool:
    """Whether a JPEG has more than `MOST_SCANS` up to its end mark."""
    if len(_SCAN.findall(data)) <= MOST_SCANS:
        return False  # nearly all, in a sixth of the time
    at, scans = 0, 0
    while scans <= MOST_SCANS and (found := _MARKER.search(data, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker == 0xD9:
            break
        if marker not in (0x01, 0xD8):  # which stand alone
            scans += marker == 0xDA
            at += int.from_bytes(data[at : at + 2], "big")
    return scans > MOST_SCANS


def _has_one_scan(data: bytes, frame: int) -> bool:
    """Whether the first scan after a frame's header has all its components: libjpeg reads no more.

    False where the markers between are not plain.
    """
    position = frame + 2 + int.from_bytes(data[frame + 2 : frame + 4], "big")
    while data[position : position + 1] == b"\xff":
        if data[position + 1 : position + 2] == b"\xda":
            return data[position + 4 : position + 5] == data[frame + 9 : frame + 10]
        position += 2 + max(2, int.from_bytes(data[position + 2 : position + 4], "big"))
    return False


def _coefficients(data: bytes, frame: int) -> int:
    """How many a frame has: of each component's plane, which may be smaller than the image."""
    height, width = map(int, struct.unpack_from(">HH", data, frame + 5))
    sampling = data[frame + 11 : frame + 10 + 3 * data[frame + 9] : 3]
    blocks = sum((byte >> 4) * (byte & 15) for byte in sampling)
    most = max((byte >> 4 for byte in sampling), default=1) * max(
        (byte & 15 for byte in sampling), default=1
    )
    return -(-height * width * blocks // max(1, most))


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
        if tag == ORIENTATION_TAG:
            return value if kind == 3 and 1 <= value <= 8 else 1
    return 1


def unread_tiff(data: bytes, why: str) -> str:
    """What a whole TIFF has that Pillow, which says `why`, does not read; "" for a damaged one."""
    from PIL import TiffImagePlugin

    if data[:4] == b"MM\0+":
        return "is a BigTIFF of the byte order MM, which is not read here: write it as II"
    if why != "unknown pixel mode" and not why.isdecimal():  # the number of a compression
        return ""
    try:
        file = io.BytesIO(data)
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(16 if data[2] == ord("+") else 8))
        file.seek(tags.next)
        tags.load(file)
        bits, samples = tags.get(_BITS, (1,))[0], tags.get(_SAMPLES_PER_PIXEL, 1)
        kind = _SAMPLES.get(tags.get(_SAMPLE_FORMAT, (1,))[0], "")
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):
        return ""
    return (
        f"its pixels ({samples} x {bits} bits{kind}; compression {tags.get(_COMPRESSION, 1)}) are "
        "of no kind that is read here, as 8 or 16 bits of grey or RGB are"
    )


_BITS, _COMPRESSION, _SAMPLES_PER_PIXEL, _SAMPLE_FORMAT = 258, 259, 277, 339
_SAMPLES = {2: ", signed", 3: ", floating point", 5: ", complex", 6: ", complex"}
"""TIFF 6.0, section 19."""
