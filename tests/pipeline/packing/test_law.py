"""Random trees of files, archives and tables with planted oddities: nothing of them vanishes."""

import gzip
import hashlib
import io
import random
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies
from pyarrow import parquet

from pipeline.packing.counts import Counts, counted
from pipeline.packing.pack import pack
from tests.pipeline.packing.test_odd_inputs import file, jpeg, link, packed, tar, zipped
from tests.pipeline.packing.test_pack import config, png

ALWAYS = png(424_242)
"""An image that lies in every tree."""


class Tree:
    """A folder that is filled by chance, and what packing it must come to."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.root, self.rng, self.made = root, rng, 0
        self.good: dict[str, str] = {}
        """SHA-256 of the bytes of every good input, by path."""
        self.rejected: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self.others = 0
        root.mkdir()

    def name(self) -> str:
        """A path of its own, with letters that people use."""
        self.made += 1
        folder = self.rng.choice(["", "cats/", "dogs and more/", "ünï/çode/", "a.b/", "[x]/"])
        return f"{folder}{self.rng.choice(['img', 'a b', '図', 'x%20', 'q?', 'n.1'])}{self.made}"

    def member(self, prefix: str) -> tuple[str, bytes]:
        """One file with its fate noted, to be written below `prefix`."""
        odd = ["bad", "cut", "hidden", "raw", "text", "bare", "lie"]
        kind = self.rng.choice(["good"] * 5 + odd)
        name, seed = self.name(), self.rng.randrange(10**6)
        data = png(seed) if seed % 2 else jpeg(seed)
        suffix = {"text": ".txt", "raw": ".NEF", "bare": "", "lie": ".dat"}.get(kind, ".png")
        if kind == "hidden":
            head, slash, tail = name.rpartition("/")
            name = f"{head}{slash}.{tail}"
        path = f"{prefix}{name}{suffix}"
        if kind == "bad":
            data = b"no image at all"
            self.rejected["not-an-image"] += 1
        elif kind == "cut":
            data = png(seed)[:-30]
            self.rejected["truncated"] += 1
        elif kind == "hidden":
            self.ignored["hidden"] += 1
        elif kind == "raw":
            data = b"II*\0" + bytes(40)
            self.ignored[".nef"] += 1
        elif kind == "text":
            data = b"words"
            self.others += 1
        else:
            self.good[path] = hashlib.sha256(data).hexdigest()
        return f"{name}{suffix}", data

    def folder(self) -> None:
        for _ in range(self.rng.randrange(12)):
            name, data = self.member("")
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def tar(self, prefix: str, deep: bool = False) -> bytes:
        members = [self.member(prefix) for _ in range(self.rng.randrange(1, 8))]
        whole = [file(*member) for member in members]
        for name, data in members:
            if f"{prefix}{name}" in self.good and self.rng.random() < 0.3:
                self.made += 1
                hard = self.rng.random() < 0.5
                other = f"link{self.made}.png"
                whole.append(link(other, name, b"1" if hard else b"2"))
                self.good[f"{prefix}{other}"] = hashlib.sha256(data).hexdigest()
        if self.rng.random() < 0.3:
            self.made += 1
            whole.append(link(f"dangling{self.made}.png", "nowhere.png"))
            self.ignored["dangling"] += 1
        if deep:
            self.made += 1
            inner = f"inner{self.made}"
            make, suffix = self.rng.choice([(self.tar, "tar"), (self.zip, "zip")])
            whole.append(file(f"{inner}.{suffix}", make(f"{prefix}{inner}/")))
        if self.rng.random() < 0.3:  # joined by cat
            return tar(*whole) + tar(*(file(*self.member(prefix)) for _ in range(2)))
        return tar(*whole)

    def zip(self, prefix: str) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for _ in range(self.rng.randrange(1, 8)):
                archive.writestr(*self.member(prefix))
        return buffer.getvalue()

    def table(self, prefix: str) -> bytes:
        rows = []
        for row in range(self.rng.randrange(1, 9)):
            data = self.rng.choice([png(row + 7000 * self.made), None, b"nothing", ALWAYS])
            self.made += 1
            path = None
            if data is None:
                self.rejected["missing"] += 1
            elif data == ALWAYS:  # beside the table, which names it
                self.good[f"{prefix}{row:08d}"] = hashlib.sha256(ALWAYS).hexdigest()
                data, path = None, "always.png"
            elif data == b"nothing":
                self.rejected["not-an-image"] += 1
            else:
                self.good[f"{prefix}{row:08d}"] = hashlib.sha256(data).hexdigest()
            rows.append({"bytes": data, "path": path})
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        sink = io.BytesIO()
        parquet.write_table(pa.table({"img": pa.array(rows, kind)}), sink, row_group_size=3)
        return sink.getvalue()

    def fill(self) -> None:
        self.folder()
        for number in range(self.rng.randrange(1, 4)):
            name = f"archive{number}"
            make = self.rng.choice(["tar", "tar.gz", "zip", "parquet", "cut.zip", "cut.tar"])
            if make == "cut.zip":
                data = zipped({"a.png": png(1)})[:-30]
                self.rejected["unreadable"] += 1
            elif make == "cut.tar":  # in its second member
                data = tar(file("a.png", ALWAYS), file("b.png", bytes(9000)))[:4096]
                self.good[f"{name}.cut/a.png"] = hashlib.sha256(ALWAYS).hexdigest()
                self.rejected["unreadable"] += 1
            elif make == "zip":
                data = self.zip(f"{name}/")
            elif make == "parquet":
                data = self.table(f"{name}/")
            else:
                data = self.tar(f"{name}/", deep=self.rng.random() < 0.5)
                data = gzip.compress(data) if make == "tar.gz" else data
            (self.root / f"{name}.{make}").write_bytes(data)


@given(rng=strategies.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_every_input_is_accounted_for_and_the_packed_bytes_are_the_sources(
    tmp_path_factory: pytest.TempPathFactory, rng: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("law")
    tree = Tree(folder / "in", rng)
    tree.fill()
    (folder / "in/always.png").write_bytes(ALWAYS)
    tree.good["always.png"] = hashlib.sha256(ALWAYS).hexdigest()
    result = pack(config(str(folder / "in"), folder / "out"))
    found = {path: hashlib.sha256(image).hexdigest() for path, (image, _) in packed(result).items()}
    assert found == tree.good
    assert result.reasons == dict(tree.rejected)
    assert result.ignored == dict(tree.ignored)
    assert sum(n for kind, n in result.counts.others.items() if kind == ".txt") == tree.others
    assert result.seen == len(tree.good) + tree.rejected.total() + tree.ignored.total()


def test_numbers_that_do_not_add_up_are_an_error() -> None:
    with pytest.raises(AssertionError, match="law of packing"):
        Counts(seen=3, packed=1, duplicates=0, reasons={"bomb": 1}, ignored={})
    with pytest.raises(AssertionError, match="law of packing"):
        counted({"packed:": 2}, 1, {})


def test_the_largest_losses_stand_in_the_summary_with_their_cures() -> None:
    found = {"packed:": 5, "rejected:truncated": 7, "ignored:.heic": 9, "removed:": 1}
    counts = counted(found, 22, {})
    lines = counts.summary()
    assert lines[0].startswith("22 seen = 5 packed + 0 duplicates + 7 rejected + 10 ignored")
    assert "  Rejected: 7 truncated: copy them again" in lines
    assert "  Ignored: 9 .heic: install vae-pipeline[heif]" in lines
    assert (counts.lost(), counts.lost((".HEIC",))) == (16, 7)
