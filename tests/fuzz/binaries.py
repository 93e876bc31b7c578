"""Parsers of what others wrote: shard indexes, tars, zips, tables, addresses, images."""

import hashlib
import io
import itertools
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from PIL import Image
from pyarrow import feather, parquet

from pipeline import masking, storage
from pipeline.data.decode import check_image, probe_image
from pipeline.data.shard_index import _SCHEMA, ShardIndex, cut_sample
from pipeline.errors import SampleError, StorageError
from pipeline.packing.adopt import adopt_tar
from pipeline.sources.annotations import Annotation, read_annotations
from pipeline.sources.archives import MemberPlace, members_of, read_member
from pipeline.sources.tables import image_rows, read_table_row
from pipeline.storage import urls
from tests.fuzz.harness import Target
from tests.fuzz.mutations import PATCHES, Patch, patched

_FRESH = itertools.count()
"""A name for each file: what is read is remembered by its URL."""


def binary_targets(folder: Path, index: bytes) -> Iterator[Target]:
    """`index` is that of a shard; files are written into `folder`."""
    seeds = _seeds(index)
    for name, inputs, read in (
        ("shard index", _indexes(index), _read_index),
        ("tar", _tars(), lambda data: _read_archive(folder, data, "tar")),
        ("zip", _zips(), lambda data: _read_archive(folder, data, "zip")),
        ("annotations", _annotations(), lambda file: _read_annotations(folder, *file)),
        ("tables of images", _image_tables(), lambda file: _read_images(folder, *file)),
        ("URLs", _urls(), _read_url),
        ("image headers", _images(), _read_image),
    ):
        yield Target(name, inputs, read, seeds.get(name, ()))


def _seeds(index: bytes) -> dict[str, tuple[Any, ...]]:
    """Inputs that once ended in a traceback."""
    whole = _zip()
    directory = whole.find(b"PK\1\2")
    lzma = whole.find(b"a/3.png") + len(b"a/3.png") + 20
    return {
        "shard index": (
            _index(index, [(_SCHEMA.names.index("offsets"), 0, 2**63 - 1)], None),
            _index(index, [(_SCHEMA.names.index("ends"), 0, -1)], None),
        ),
        "tar": (_tar({"size": "x"}), _tar({"size": "10" * 15}), _tar({"GNU.sparse.major": "1"})),
        "zip": (
            patched(whole, [Patch(directory + 6, "over", b"\x51")]),  # of version 8.1
            whole.replace(b"\xc3\xa4/x.png", b"\xd1\xd1/x.png"),  # a name that is no UTF-8
            patched(whole, [Patch(lzma, "over", b"\xff" * 8)]),
        ),
        "annotations": (
            (b'{"path":"a","v":' + b"[" * 400 + b"]" * 400 + b"}", "jsonl"),
            (b"path,n\na.png," + b"9" * 5000 + b"\n", "csv"),
        ),
        "URLs": ("https://[::1/x", "https://\u2100/x", "file:///\ud800"),
    }


def _file(folder: Path, data: bytes, suffix: str) -> Iterator[str]:
    path = folder / f"{next(_FRESH)}.{suffix}"
    path.write_bytes(data)
    try:
        yield str(path)
    finally:
        path.unlink()


def _index(whole: bytes, changes: list[tuple[int, int, int]], metadata: bytes | None) -> bytes:
    """Numbers of some columns and rows, counted round; texts become as long as a number says."""
    table = pa.ipc.open_file(pa.BufferReader(whole)).read_all()
    columns = {name: table[name].to_pylist() for name in table.column_names}
    for at, row, number in changes:
        name = _SCHEMA.names[at % len(_SCHEMA.names)]
        kind = _SCHEMA.field(name).type
        if pa.types.is_integer(kind):
            span = np.iinfo(kind.to_pandas_dtype())
            columns[name][row % len(table)] = min(max(number, int(span.min)), int(span.max))
        else:
            columns[name][row % len(table)] = "\x1b" * (number % 3)
    schema = _SCHEMA if metadata is None else _SCHEMA.with_metadata({"columns": metadata})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.table(columns, schema))
    return bytes(sink.getvalue())


def _indexes(whole: bytes) -> st.SearchStrategy[bytes]:
    """Patched bytes, and columns of any numbers in a table that is whole."""
    numbers = st.sampled_from([-1, 0, 1, 7, 2**31 - 1, 2**40, 2**63 - 1, -(2**63), 2**63 - 512])
    changes = st.tuples(st.integers(0, 40), st.integers(0, 40), numbers)
    said = st.none() | st.sampled_from(
        [b"\xff", b"{}", b'{"a":1}', b'{"a":"b"}', b"[" * 2000, b'"\\ud800"', b"NaN", b"[]"]
    )
    return st.one_of(
        PATCHES.map(lambda patches: patched(whole, patches)),
        st.builds(_index, st.just(whole), st.lists(changes, min_size=1, max_size=3), said),
        st.binary(max_size=300),
    )


def _read_index(data: bytes) -> None:
    """Read, and each sample cut out as a loader does."""
    index = ShardIndex.from_bytes(data, hashlib.sha256(data).hexdigest(), "x")
    for position in range(min(len(index), 20)):
        for columns in ((), ("label",)):
            start, end = index.span(position, whole=bool(columns))
            assert 0 <= start <= end
            sample = cut_sample(index, position, b"{}" * 600, start, columns)
            assert len(sample.image) <= 1200


_FIELDS = (0, 100, 124, 136, 148, 156, 157, 257, 263, 345)
_CELLS = st.one_of(
    st.sampled_from(
        [b"77777777777\0", b"\x80" + b"\0" * 10 + b"\1", b"\xff" * 12, b"\x80" + b"\xff" * 11,
         b"-1\0", b"0", b"1", b"2", b"L", b"K", b"S", b"x", b"g", b"D", b"\0", b"../../up.png\0",
         b"/etc/x\0", b"\xff\xfe.png\0", b"ustar  \0", b"abc"]
    ),
    st.binary(min_size=1, max_size=12),
)  # fmt: skip


def _tars() -> st.SearchStrategy[bytes]:
    """Headers whose checksums fit whatever they say, pax records of all kinds, patched bytes."""
    whole = _tar({})
    headers = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]

    def with_headers(changes: list[tuple[int, int, bytes]]) -> bytes:
        data = bytearray(whole)
        for number, name, cell in changes:
            at = headers[number % len(headers)] + _FIELDS[name % len(_FIELDS)]
            data[at : at + len(cell)] = cell
        for at in headers:
            block = data[at : at + 512]
            block[148:156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(block)
        return bytes(data)

    names = st.sampled_from(
        ["path", "linkpath", "size", "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.name",
         "GNU.sparse.realsize", "GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.numblocks",
         "mtime", "uid", "hdrcharset", "SCHILY.xattr.a", ""]
    )  # fmt: skip
    values = st.sampled_from(
        ["0", "1", "-1", "10" * 15, "1,2,3", "0,512", "nan", "x" * 300, "../up", "\x1b[2J", "1e9",
         "BINARY", "\u202e.png", " 5", "0x10"]
    )  # fmt: skip
    changes = st.tuples(st.integers(0, 20), st.integers(0, 20), _CELLS)
    return st.one_of(
        st.lists(changes, min_size=1, max_size=3).map(with_headers),
        st.dictionaries(names, values, max_size=3).map(_tar),
        PATCHES.map(lambda patches: patched(whole, patches)),
        PATCHES.map(lambda patches: patched(_gzipped(whole), patches)),
        st.binary(max_size=600),
    )


def _gzipped(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


def _tar(records: dict[str, str]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a/1.png", "a/1.json", "b" * 120 + ".png"):
            data = _picture("PNG") if name.endswith("png") else b'{"label":"x"}'
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), dict(records)
            tar.addfile(info, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"odd/{kind.decode()}.png")
            info.type, info.linkname = kind, "a/1.png"
            tar.addfile(info)
    return sink.getvalue()


def _zip() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for number, kind in enumerate((0, 8, 12, 14)):  # stored, deflate, bzip2, lzma
            archive.writestr(f"a/{number}.png", _picture("PNG"), kind)
        link = zipfile.ZipInfo("a/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "1.png")
        archive.writestr("\u00e4/x.png", b"x" * 3000, 8)
        archive.writestr("folder/", b"")
    return sink.getvalue()


def _zips() -> st.SearchStrategy[bytes]:
    """Patched bytes, most of them where the directory lies."""
    whole = _zip()
    directory = whole.find(b"PK\1\2")
    near = st.builds(Patch, st.integers(directory, len(whole)), st.just("over"), _CELLS)
    return st.one_of(
        PATCHES.map(lambda patches: patched(whole, patches)),
        st.lists(near, min_size=1, max_size=3).map(lambda patches: patched(whole, patches)),
        st.binary(max_size=300),
    )


def _read_archive(folder: Path, data: bytes, suffix: str) -> None:
    """Every member listed and read; a tar is adopted as well."""
    for url in _file(folder, data, suffix):
        try:
            for member in itertools.islice(members_of(url, url), 200):
                member.peek()
                if member.kind != "file" or member.size > 2**30:
                    continue
                place = MemberPlace(member.offset, member.member, member.inner, member.size)
                try:
                    assert len(read_member(url, url, place)) <= member.size
                except SampleError:
                    continue
        finally:
            if suffix == "tar":
                adopt_tar(url, "header")


_WORDS = st.sampled_from(
    ["path", "file_name", "label", "caption", "a/1.png", "b.png", "cat", "7", "1.5", "1e999", "nan",
     "-0", "0x1", "9" * 5000, "\u0663", "\u202e", "\x1b[2J", "\x00", '"', ",", "\t", "\n", "\r",
     "\r\n", ";", "x" * 300, "", " ", "true", "\ufeff", "\U0001f600"]
)  # fmt: skip
_LINES = st.sampled_from(
    ['{"path":"a.png","label":"x"}', '{"path":1,"label":null}', '{"path":["a"],"n":NaN}', "[]",
     '{"path":"a","v":' + "[" * 400 + "]" * 400 + "}", '{"path":"a","caption":' + '{"b":' * 450
     + "1" + "}" * 451, '{"path":"\\ud800"}', '{"path":"a","path":"b"}', "{}", "1", '"a"', "",
     '{"path":"a","n":' + "9" * 6000 + "}", '{"path":"a","caption":["b",3,null,{"c":[]}]}',
     '{" path":"a"," label ":[1]}', '{"":""}', '{"path":"a","label":1e999}', "[" * 3000, "\x00"]
)  # fmt: skip


def _annotations() -> st.SearchStrategy[tuple[bytes, str]]:
    rows = {
        "path": ["a/1.png", "b.png"], "label": ["x", None], "caption": [["u", "v"], None],
        "n": [1.5, float("nan")], "deep": [{"a": [{"b": 1}]}, None],
    }  # fmt: skip
    table = pa.table(rows)
    text = st.lists(_WORDS | st.text(max_size=4), max_size=30).map(
        lambda words: ("path,label\n" + "".join(words)).encode(errors="replace")
    )
    lines = st.lists(_LINES, min_size=1, max_size=4).map(lambda some: "\n".join(some).encode())
    made = [(_written(table, suffix), suffix) for suffix in ("parquet", "arrow", "feather")]
    return st.one_of(
        st.tuples(text, st.sampled_from(["csv", "tsv"])),
        st.tuples(lines, st.just("jsonl")),
        st.tuples(st.sampled_from(made), PATCHES).map(lambda c: (patched(c[0][0], c[1]), c[0][1])),
        st.tuples(st.binary(max_size=100), st.sampled_from(["csv", "jsonl", "parquet", "arrow"])),
    )


def _written(table: Any, suffix: str) -> bytes:
    sink = pa.BufferOutputStream()
    if suffix == "parquet":
        parquet.write_table(table, sink)
    elif suffix == "feather":
        feather.write_feather(table, sink, compression="zstd")
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return bytes(sink.getvalue())


def _read_annotations(folder: Path, data: bytes, suffix: str) -> None:
    """Each row, and its annotation as the plan keeps it and a shard gets it."""
    for url in _file(folder, data, suffix):
        for row in itertools.islice(read_annotations(url), 50):
            text = row.annotation.to_text()
            assert Annotation.from_text(text) == row.annotation
            text.encode()
            json.dumps(dict(row.annotation.others), sort_keys=True)


def _image_tables() -> st.SearchStrategy[tuple[bytes, str]]:
    image = pa.array([{"bytes": _picture("PNG"), "path": f"{n}.png"} for n in range(3)])
    table = pa.table({"image": image, "label": ["a", "b", None], "n": [1, 2, 3]})
    made = [(_written(table, suffix), suffix) for suffix in ("parquet", "arrow", "feather")]
    return st.tuples(st.sampled_from(made), PATCHES).map(
        lambda c: (patched(c[0][0], c[1]), c[0][1])
    )


def _read_images(folder: Path, data: bytes, suffix: str) -> None:
    for url in _file(folder, data, suffix):
        rows = image_rows(url, storage.stat(url), "t", None)
        for file in itertools.islice(rows.files if rows else (), 20):
            try:
                read_table_row(file, None)
            except SampleError:
                continue


_SCHEMES = ("file", "s3", "https", "memory", "data", "zip", "reference", "github", "jupyter", "x")
_NETWORK = ("s3", "s3a", "http", "https", "gs", "gcs", "az", "abfs", "abfss", "adl", "hdfs",
            "webhdfs", "oci", "oss", "hf")  # fmt: skip


def _urls() -> st.SearchStrategy[str]:
    pieces = st.sampled_from(
        [*(f"{scheme}://" for scheme in _SCHEMES), "::", ":", "/", "//", "..", ".", "@", "?", "#",
         "[", "]", "%", "%2e%2e", "%zz", "user:pass", "sig=AbCdEf0123456789", "token", "b", "k.tar",
         "\x00", "\x1b[2J", "\u202e", "\ud800", "\udcff", "\u2100", "\uff0f", "\n", " ", "\\",
         "a" * 5000, "::1", "{000..002}", "&", "=", ";"]
    )  # fmt: skip
    return st.lists(pieces | st.text(max_size=3), max_size=8).map("".join)


def _read_url(url: str) -> None:
    """All that is made of an address before anything is asked for, and a look where it is cheap."""
    shown = storage.shown(url)
    assert "\n" not in shown
    for made in (
        storage.protocol, storage.removal, masking.secret_in, masking.is_secret_query,
        masking.markdown, masking.safe, urls.bucket_and_key,
    ):  # fmt: skip
        made(url)
    for checked in (
        lambda: storage.check_name(url, "x"),
        lambda: storage.check_address(url, ("s3://b/", "/data", url), "x", "--f"),
        lambda: storage.below("/data", url),
        lambda: storage.local_path(storage.join("/data", url)),
        lambda: storage.absolute(url),
        lambda: storage.stat(url) if storage.protocol(url) not in _NETWORK else None,
    ):
        try:
            checked()
        except StorageError:
            continue


def _picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, len(mode)), np.uint8).squeeze()
    image = Image.fromarray(pixels, mode if mode != "P" else None)
    sink = io.BytesIO()
    image.convert(mode).save(sink, kind, **options)
    return sink.getvalue()


def _images() -> st.SearchStrategy[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = [
        _picture("JPEG"), _picture("JPEG", progressive=True, exif=exif), _picture("JPEG", "L"),
        _picture("PNG", "RGBA"), _picture("PNG", "L"), _picture("PNG", "P"), _picture("WEBP"),
        _picture("WEBP", "RGBA", lossless=True), _picture("GIF", "L"), _picture("BMP"),
        _picture("TIFF"), _picture("TIFF", compression="tiff_lzw"), _picture("JPEG2000"),
        _picture("AVIF"), _picture("TIFF", "RGBA", compression="tiff_adobe_deflate"),
    ]  # fmt: skip
    head = st.builds(Patch, st.integers(0, 120), st.just("over"), st.binary(min_size=1, max_size=4))
    patches = st.one_of(st.lists(head, min_size=1, max_size=3), PATCHES)
    return st.one_of(
        st.tuples(st.sampled_from(whole), patches).map(lambda c: _fitted(patched(*c))),
        st.binary(max_size=100),
    )


def _fitted(data: bytes) -> bytes:
    """A PNG with the checksums of its chunks made to fit; anything else as it is."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    found, at = bytearray(data), 8
    while at + 12 <= len(found):
        length = struct.unpack_from(">I", found, at)[0]
        if at + 12 + length > len(found):
            break
        checksum = zlib.crc32(found[at + 4 : at + 8 + length])
        found[at + 8 + length : at + 12 + length] = struct.pack(">I", checksum)
        at += 12 + length
    return bytes(found)


def _read_image(data: bytes) -> None:
    for look in (probe_image, check_image):
        try:
            look(data)
        except SampleError:
            continue
