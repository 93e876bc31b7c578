"""Bytes that no release may change without saying so: shards, and the order that they are read in.

The digests were taken from commit 5c84cd1, whose keys had no suffix: members are renamed so.
The images are bitmaps made of integers alone, so that no encoder's version is part of them.
"""

import hashlib
import io
import struct
import tarfile
from pathlib import Path

from pipeline.config import PackConfig
from pipeline.data.order import Order
from pipeline.packing.pack import pack


def _bitmap(seed: int, width: int = 8, height: int = 6) -> bytes:
    """A 24-bit BMP; pixel bytes follow from `seed` by a linear congruence."""
    state, pixels = seed, bytearray()
    for _ in range(height * width * 3):
        state = (state * 1103515245 + 12345) % 2**31
        pixels.append(state >> 16 & 255)
    header = struct.pack("<2sIHHI", b"BM", 54 + len(pixels), 0, 0, 54)
    return header + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + pixels


def _renamed(path: Path) -> bytes:
    """A shard with `a.bmp` where it has `a%2Ebmp.bmp`, written by Python's tarfile."""
    buffer = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=buffer, mode="w") as new:
        for member in old:
            data = old.extractfile(member)
            assert "%2Ebmp." in member.name
            member.name = member.name.replace("%2Ebmp", "")
            new.addfile(member, data)
    return buffer.getvalue()


def test_a_fixed_pack_gives_the_shards_it_always_gave(tmp_path: Path) -> None:
    for number in range(40):
        path = tmp_path / "images" / f"class{number % 3}" / f"{number:03d}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_bitmap(number))
    pack(
        PackConfig(
            source=(str(tmp_path / "images"),), output=str(tmp_path / "packed"), holdout=0.2,
            shard_bytes=30_000, workers=1,
        )
    )  # fmt: skip
    found = {
        f"{path.parent.parent.name}/{path.name[:10]}": hashlib.sha256(_renamed(path)).hexdigest()
        for path in sorted((tmp_path / "packed").rglob("*.tar"))
    }
    assert found == {
        "holdout/001-000000": "4668774f62ea796aefcc3a8d2552964f4a6154bfd6d6e091fb3403f2ff67c026",
        "holdout/001-000001": "819f20a488dd9207ad7c36ff3079194ee9ab5171f65ef82b78fe694c19387e53",
        "holdout/001-000002": "c4e00983e7297a0303d70dc1f4cb1d719c27d75904cb5d834048af2747d9beea",
        "holdout/001-000003": "3cfd71c5242850f8f4a1da3ed835094aa8db5d1804d010c86e18c0a961fa39b5",
        "train/001-000000": "6e31c1f4b65b65cf58e5695729d982e2a80677950eb7a338167c70211687109f",
        "train/001-000001": "8d0c7901dd42ae5e66834f0b1babde743296f377cb548261b654a0867d316895",
        "train/001-000002": "88aa09930d1bb4526786f98b2d01e7172e3495acf69738e0e82298936759e8d7",
        "train/001-000003": "04827195ee87673d45e1afe7ccb375d2b52456bc8c6817fa7e275ab97262aa69",
        "train/001-000004": "dc06a7ddf2c4e218744fe89d1895c350b3f4f23f1d84e37565d30434e9b9a3b6",
    }


def test_the_order_is_the_one_it_always_was() -> None:
    digest = hashlib.sha256()
    for shuffle in (True, False):
        for tail in ("pad", "drop", "wrap"):
            order = Order(1003, 24, 5, 16, 4, shuffle, tail)
            for epoch in (0, 3):
                for index in range(order.steps):
                    digest.update(order.batch(epoch, index, range(24)).tobytes())
    assert digest.hexdigest() == "916e79e78ff24f1c27324075850442c479abddeb798072d326ce78d04effa103"
