"""Archives, tables and names as people have them: each kind of public complaint, with neighbours.

`seen = packed + duplicates + rejected + ignored` is asserted by the code in every one of them.
"""

import bz2
import gzip
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import storage
from pipeline.data import image_kinds
from pipeline.data.dataset import Dataset
from pipeline.errors import DatasetError
from pipeline.packing.commit import PackResult
from pipeline.packing.pack import pack
from tests.pipeline.packing.test_pack import config, png, write
from tests.support.presence import present

ODD = Path(__file__).parents[4] / "shared/data/odd"


def jpeg(seed: int, size: tuple[int, int] = (9, 7)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def file(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as writer:
        for info, data in members:
            writer.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as writer:
        for name, data in members.items():
            writer.writestr(name, data)
    return buffer.getvalue()


def packed(result: PackResult) -> dict[str, tuple[bytes, str | None]]:
    """Bytes and label of every sample that counts, by the path in its json."""
    found, dataset = {}, Dataset.open(result.dataset)
    for number, record in enumerate(dataset.shards):
        index, shard = dataset.read_index(number), storage.read(dataset.shard_url(record))
        for at in set(range(len(index))) - set(record.removed):
            image = shard[index.offsets[at] :][: index.sizes[at]]
            about = json.loads(shard[index.json_offsets[at] :][: index.json_sizes[at]])
            found[about["path"]] = image, about.get("label")
    return found


def pack_file(tmp_path: Path, name: str, data: bytes, **options: Any) -> PackResult:
    (tmp_path / name).write_bytes(data)
    return pack(config(str(tmp_path / name), tmp_path / "out", **options))


def test_hard_links_and_links_in_a_tar_are_followed_wherever_they_lead(tmp_path: Path) -> None:
    data = tar(
        file("x/a.png", png(1)), link("y/hard.png", "x/a.png", tarfile.LNKTYPE),
        link("y/soft.png", "../x/a.png"), link("z", "x"), link("y/through.png", "../z/a.png"),
        link("y/chain.png", "soft.png"), link("y/later.png", "../x/late.png"),
        link("x/ring.png", "ring.png"), link("y/gone.png", "nothing.png"),
        link("y/out.png", "/etc/passwd.png"), link("y/up.png", "../../a.png"),
        file("x/late.png", png(2)),
    )  # fmt: skip
    result = pack_file(tmp_path, "t.tar", data)
    a, late = png(1), png(2)
    assert packed(result) == {
        "x/a.png": (a, "x"), "y/hard.png": (a, "y"), "y/soft.png": (a, "y"), "z/a.png": (a, "z"),
        "y/through.png": (a, "y"), "y/chain.png": (a, "y"), "y/later.png": (late, "y"),
        "x/late.png": (late, "x"), "z/late.png": (late, "z"),
    }  # fmt: skip
    assert result.ignored == {"dangling": 5}, "x/ring.png counts as z/ring.png, too"


def test_links_in_a_zip_are_followed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as writer:
        writer.writestr("x/a.png", png(1))
        info = zipfile.ZipInfo("y/b.png")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        writer.writestr(info, "../x/a.png")
    result = pack_file(tmp_path, "t.zip", buffer.getvalue())
    assert packed(result) == {"x/a.png": (png(1), "x"), "y/b.png": (png(1), "y")}


def test_a_link_that_leads_to_nothing_is_counted_in_a_folder_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"a.png": png(1)})
    os.symlink("nothing.png", f"{folder}/b.png")
    os.symlink("a.png", f"{folder}/c.png")
    result = pack(config(folder, tmp_path / "out"))
    assert (result.seen, result.samples, result.ignored) == (3, 2, {"dangling": 1})


@pytest.mark.parametrize("flavour", ["gnu", "posix", "oldgnu"])
def test_sparse_members_are_read(tmp_path: Path, flavour: Any) -> None:
    image = Image.new("RGB", (200, 200))
    image.save(tmp_path / "whole.bmp")
    data = (tmp_path / "whole.bmp").read_bytes()
    with (tmp_path / "a.bmp").open("wb") as sparse:
        sparse.write(data[:64])
        sparse.truncate(len(data))  # a hole: the pixels are black
    command = f"tar --sparse --format={flavour} -cf t.tar a.bmp"
    assert os.system(f"cd {tmp_path} && {command}") == 0
    with tarfile.open(tmp_path / "t.tar") as made:
        assert next(iter(made)).issparse()
    result = pack(config(str(tmp_path / "t.tar"), tmp_path / "out"))
    assert packed(result) == {"a.bmp": (data, None)}


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress])
def test_tars_joined_by_cat_are_read_to_their_end(tmp_path: Path, compress: Any) -> None:
    name = {bytes: "t.tar", gzip.compress: "t.tar.gz", bz2.compress: "t.tar.bz2"}[compress]
    parts = [tar(file(f"{n}.png", png(n))) for n in range(3)]
    result = pack_file(tmp_path, name, b"".join(map(compress, parts)))
    assert {path: image for path, (image, _) in packed(result).items()} == {
        f"{n}.png": png(n) for n in range(3)
    }


def test_what_follows_an_end_mark_and_is_no_tar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"follow its end mark, and are no tar"):
        pack_file(tmp_path, "t.tar", tar(file("a.png", png(1))) + b"rubbish" * 200)


@pytest.mark.parametrize("outer", ["t.tar", "t.tar.gz", "t.zip"])
@pytest.mark.parametrize("inner", ["tar", "tar.gz", "zip"])
def test_archives_in_an_archive_give_their_names_as_labels(
    tmp_path: Path, outer: Any, inner: Any
) -> None:
    def archive(name: str, members: dict[str, bytes]) -> bytes:
        if name.endswith("zip"):
            return zipped(members)
        data = tar(*(file(*each) for each in members.items()))
        return gzip.compress(data) if name.endswith("gz") else data

    classes = {
        f"n{label}.{inner}": archive(
            inner, {f"{label}_{n}.PNG": png(10 * label + n) for n in (1, 2)}
        )
        for label in (3, 4)
    }
    result = pack_file(tmp_path, outer, archive(outer, {**classes, "top.png": png(0)}))
    assert packed(result) == {
        "top.png": (png(0), None),
        **{
            f"n{label}/{label}_{n}.PNG": (png(10 * label + n), f"n{label}")
            for label in (3, 4)
            for n in (1, 2)
        },
    }


def test_three_archives_deep_and_a_damaged_inner_one_are_counted(tmp_path: Path) -> None:
    deep = tar(file("deep.tar", tar(file("a.png", png(1)))))
    data = tar(
        file("in.tar", deep), file("cut.zip", zipped({"a.png": png(2)})[:50]),
        file("cut.tar", tar(file("b.png", png(3)))[:700]), file("ok.png", png(4)),
    )  # fmt: skip
    result = pack_file(tmp_path, "t.tar", data)
    assert packed(result) == {"ok.png": (png(4), None)}
    assert result.ignored == {"nested": 1}
    assert result.reasons == {"unreadable": 2}


def test_zips_of_windows_have_folders_and_labels(tmp_path: Path) -> None:
    result = pack_file(tmp_path, "t.zip", zipped({"cats\\0.png": png(0), "dogs\\b\\1.png": png(1)}))
    assert packed(result) == {"cats/0.png": (png(0), "cats"), "dogs/b/1.png": (png(1), "dogs")}


def test_a_backslash_stays_one_where_the_zip_knows_slashes(tmp_path: Path) -> None:
    result = pack_file(tmp_path, "t.zip", zipped({"a/0.png": png(0), "b\\1.png": png(1)}))
    assert set(packed(result)) == {"a/0.png", "b\\1.png"}


def test_one_damaged_and_one_encrypted_member_are_rejects_not_the_end(tmp_path: Path) -> None:
    data = bytearray(zipped({"good.png": png(0), "hidden.png": png(1), "bad.png": b"x" * 400}))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        encrypted = archive.getinfo("hidden.png").header_offset
        damaged = archive.getinfo("bad.png").header_offset
    data[encrypted + 6] |= 1
    central = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    data[central + 8] |= 1
    data[damaged + 40] ^= 255
    result = pack_file(tmp_path, "t.zip", bytes(data))
    assert set(packed(result)) == {"good.png"}
    assert result.reasons == {"archive": 1, "encrypted": 1}


def test_a_name_that_is_not_utf8_is_rejected_and_the_rest_packed(tmp_path: Path) -> None:
    info, data = file("x/caf\udce9.png", png(1))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", encoding="utf-8", errors="surrogateescape") as t:
        for each, content in ((info, data), file("x/ok.png", png(2))):
            t.addfile(each, io.BytesIO(content))
    result = pack_file(tmp_path, "t.tar", buffer.getvalue())
    assert (set(packed(result)), result.reasons) == ({"x/ok.png"}, {"name": 1})
    folder = write(tmp_path / "in", {"ok.png": png(1)})
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(png(2))
    result = pack(config(folder, tmp_path / "folder"))
    assert (set(packed(result)), result.reasons) == ({"ok.png"}, {"name": 1})


@pytest.mark.parametrize("name", ["t.tar", "t.zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_members_of_one_name_the_later_counts(tmp_path: Path, name: Any) -> None:
    members = [("a.png", png(1)), ("b.png", png(2)), ("a.png", png(3))]
    if name == "t.tar":
        data = tar(*(file(*each) for each in members))
    else:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as writer:
            for each in members:
                writer.writestr(*each)
        data = buffer.getvalue()
    result = pack_file(tmp_path, name, data)
    assert packed(result) == {"a.png": (png(3), None), "b.png": (png(2), None)}
    assert (result.seen, result.ignored, result.counts.lost()) == (3, {"replaced": 1}, 0)


@pytest.mark.parametrize("name", ["[2020] Berlin", "what?", "st*r", "a[1]", "[[x]]"])
def test_a_source_that_exists_is_taken_by_its_very_name(tmp_path: Path, name: Any) -> None:
    write(tmp_path / "in" / name, {"a.png": png(1)})
    write(tmp_path / "in" / "a1", {"other.png": png(2)})
    result = pack(config(str(tmp_path / "in" / name), tmp_path / "out"))
    assert set(packed(result)) == {"a.png"}
    globbed = pack(config(str(tmp_path / "in" / name / "*.png"), tmp_path / "globbed"))
    assert set(packed(globbed)) == {"a.png"}


def test_a_glob_that_matches_nothing_says_that_it_is_one(tmp_path: Path) -> None:
    write(tmp_path / "in", {"a.png": png(1)})
    with pytest.raises(DatasetError, match="read as a glob"):
        pack(config(str(tmp_path / "in/[x]*.png"), tmp_path / "out"))


def test_what_is_an_image_is_told_by_its_bytes_where_the_name_says_nothing_or_lies(
    tmp_path: Path,
) -> None:
    files = {
        "0f3a9c": png(1), "b/deadbeef": jpeg(2), "photo.dat": png(3), "notes.txt": jpeg(4),
        "live.heic": jpeg(5), "raw.dng": jpeg(6), "png.jpg": png(7), "v1.2.3": png(8),
        "text": b"plain", "real.txt": b"words", "empty": b"", "table.csv": b"a,b\n",
    }  # fmt: skip
    good = {name for name, data in files.items() if len(data) > 30}
    result = pack(config(write(tmp_path / "in", files), tmp_path / "folder"))
    assert {path: image for path, (image, _) in packed(result).items()} == {
        name: files[name] for name in good
    }
    assert (result.seen, sum(result.counts.others.values())) == (8, 4)
    archives = {"t.tar": tar(*(file(*each) for each in files.items())), "t.zip": zipped(files)}
    for name, data in archives.items():
        (tmp_path / name).write_bytes(data)
        again = pack(config(str(tmp_path / name), tmp_path / f"out-{name}"))
        assert set(packed(again)) == good


def test_formats_without_a_decoder_are_ignored_told_with_a_cure_and_counted_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_kinds, "has_extra", lambda extra: False)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60)
    files = {f"IMG_{n}.HEIC": heic for n in range(6)}
    files |= {"a.jpg": jpeg(1), "x.jxl": b"\xff\x0a" + bytes(60), "hash": heic}
    files |= {"raw.DNG": b"II*\0" + bytes(60), "art.psd": b"8BPS", "more.rar": b"Rar!"}
    result = pack(config(write(tmp_path / "in", files), tmp_path / "out"))
    assert result.ignored == {".heic": 7, ".jxl": 1, ".dng": 1, ".psd": 1, ".rar": 1}
    lines = "\n".join(result.counts.summary())
    assert "7 .heic: install vae-pipeline[heif]" in lines
    assert "1 .jxl: install vae-pipeline[jxl]" in lines
    assert result.counts.lost() == 11
    assert result.counts.lost((".dng", ".HEIC", ".jxl", ".psd", ".rar")) == 0


@pytest.mark.parametrize(("extra", "suffix"), [("heif", ".heic"), ("jxl", ".jxl")])
def test_heic_and_jpeg_xl_go_in_where_their_extras_are(
    tmp_path: Path, extra: Any, suffix: Any
) -> None:
    plugin = pytest.importorskip(image_kinds.EXTRAS[extra])
    if extra == "heif":
        plugin.register_heif_opener()
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(buffer, "HEIF" if extra == "heif" else "JXL")
    data = buffer.getvalue()
    files = {f"a{suffix}": data, "named.jpg": data, "0123abcd": data}
    result = pack(config(write(tmp_path / "in", files), tmp_path / "out"))
    assert {path: image for path, (image, _) in packed(result).items()} == files
    index = Dataset.open(result.dataset).read_index(0)
    assert set(zip(index.widths.tolist(), index.heights.tolist(), strict=True)) == {(64, 48)}


def test_animations_and_rarer_suffixes_give_their_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 12), (shade, 0, 0)) for shade in (10, 200)]
    files = {}
    for name, form in (("a.apng", "PNG"), ("b.avifs", "AVIF"), ("c.jpf", "JPEG2000")):
        buffer = io.BytesIO()
        several = {} if form == "JPEG2000" else {"save_all": True, "append_images": frames[1:]}
        frames[0].save(buffer, form, **several)
        files[name] = buffer.getvalue()
    result = pack(config(write(tmp_path / "in", files), tmp_path / "out"))
    assert {path: image for path, (image, _) in packed(result).items()} == files


@pytest.mark.parametrize(
    ("encoding", "size", "words"),
    [("webp", (40, 20_000), "WebP holds at most 16,383"), ("jpeg", (70_000, 10), "JPEG holds")],
)
def test_what_an_encoding_can_not_hold_is_one_image_s_failure(
    tmp_path: Path, encoding: Any, size: Any, words: Any
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    folder = write(tmp_path / "in", {"ok.png": png(0), "strip.png": buffer.getvalue()})
    result = pack(config(folder, tmp_path / "out", encoding=encoding))
    assert (result.samples, result.reasons) == (1, {"unsupported": 1})
    assert result.rejects_url
    assert words in storage.read(result.rejects_url).decode()


def test_a_noisy_panorama_is_encoded_though_its_buffer_is_reckoned_too_small(
    tmp_path: Path,
) -> None:
    folder = write(tmp_path / "in", {"pano.jpg": jpeg(0, (30_000, 10))})
    assert pack(config(folder, tmp_path / "out", encoding="jpeg", shard_bytes=10**7)).samples == 1


def test_hidden_things_are_ignored_in_folders_and_archives_alike(tmp_path: Path) -> None:
    files = {"a.png": png(1), ".thumbs/a.png": png(2), "b/.x.png": png(3), "._a.png": b"\0\5\x16\7"}
    write(tmp_path / "in", files)
    (tmp_path / "t.tar").write_bytes(tar(*(file(*each) for each in files.items())))
    (tmp_path / "t.zip").write_bytes(zipped(files))
    for number, name in enumerate(("in", "t.tar", "t.zip")):
        result = pack(config(str(tmp_path / name), tmp_path / f"out{number}"))
        assert (set(packed(result)), result.ignored) == ({"a.png"}, {"hidden": 2})
        assert result.counts.lost() == 2
        assert result.counts.lost(("hidden",)) == 0


@pytest.mark.skipif(not ODD.exists(), reason=f"{ODD} is not here")
@pytest.mark.parametrize(
    ("name", "samples", "rejected", "ignored", "labels"),
    [
        ("hardlink.tar", 4, 0, {}, {"x": 3, "y": 1}),
        ("concat.tar", 3, 0, {}, {"x": 3}),
        ("dup.tar", 2, 0, {"replaced": 1}, {"x": 2}),
        ("hidden.tar", 1, 0, {"hidden": 1}, {"x": 1}),
        ("nested.tar", 3, 0, {}, {"n01440764": 2, "n01443537": 1}),
        ("nested_mixed.tar", 3, 0, {}, {"n01440764": 2}),
        ("backslash.zip", 6, 0, {}, {"cats": 3, "dogs": 3}),
        ("base", 24, 0, {}, {"cats": 12, "dogs": 12}),
        ("bracket/[2020] Berlin", 2, 0, {}, {}),
        ("stem", 2, 0, {}, {}),
        ("kinds", 12, 7, {}, {}),
        ("webtoon", 2, 0, {}, {}),
        ("wide", 2, 0, {}, {}),
    ],
)
def test_the_inputs_of_the_findings_end_right(
    tmp_path: Path, name: Any, samples: Any, rejected: Any, ignored: Any, labels: Any
) -> None:
    result = pack(config(str(ODD / name), tmp_path / "out"))
    assert (result.samples, result.rejected, result.ignored) == (samples, rejected, ignored)
    assert present(result.found).labels == labels
