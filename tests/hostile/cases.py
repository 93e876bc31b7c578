"""What hostile people try, each as the command that a user types; drawn up before it was tried.

`says`: what the one line of refusal must hold.
"""

import io
import json
import os
import pickle
import socket
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import feather

from tests.hostile.gifts import (
    ELSEWHERE,
    LINKED,
    SOURCES,
    in_bundle,
    in_index,
    in_pack_state,
    in_part,
    in_pointer,
    in_shard,
    in_snapshot,
    in_store_pointer,
    instead,
    text,
)

LISTENER = socket.create_server(("127.0.0.1", 0))
"""An address that nothing may ask, and that would know."""
FOREIGN = f"http://127.0.0.1:{LISTENER.getsockname()[1]}"
SECRET = "AbC/dEf+0123456789zz"
TRAIN = (
    "train --data data --run r --workers 0 --image-size 8 --channels 1 --steps 1 "
    "--global-batch-size 4 --model.kind mlp --model.width 8"
)
HUGE = TRAIN.replace("size 4", "size 1000000").replace("size 8", "size 256")
ENCODE = "encode --model model --data data --output out --actors 0"
EVALUATE = "evaluate --model model --data data"
DECODE = "decode --store store --output out"
VERIFY = "verify --dataset data"


@dataclass(frozen=True)
class Case:
    """A command in a world in which something evil was planted; `wrote`: what it may leave."""

    name: str
    command: str
    says: str
    plant: Callable[[Path], object] = lambda home: None
    wrote: str = ""


def _custom(path: str) -> dict[str, object]:
    return {"kind": "custom", "custom": path, "width": None}


def _their_store(home: Path) -> None:
    """The store names a model that needs code."""
    in_bundle(config=_custom("evil:Net"))(home)
    in_store_pointer(model=str(home / "model"))(home)


def _another_model(home: Path) -> None:
    in_bundle(config={"sigma": 0.5})(home)
    in_store_pointer(model=str(home / "model"))(home)


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch RAN",)


CODE = (
    Case("class beside a bundle, evaluated", EVALUATE, "--allow-custom evil:Net",
         in_bundle(config=_custom("evil:Net"))),
    Case("class beside a bundle, encoded", ENCODE, "--allow-custom evil:Net",
         in_bundle(config=_custom("evil:Net"))),
    Case("class beside a bundle, explained", "explain --model model --data data",
         "--allow-custom evil:Net", in_bundle(config=_custom("evil:Net"))),
    Case("class beside a bundle, begun from", f"{TRAIN} --init model",
         "--allow-custom evil:Net|no part of this program", in_bundle(config=_custom("evil:Net"))),
    Case("another class than the one allowed", f"{EVALUATE} --allow-custom good:Net",
         "no part of this program", in_bundle(config=_custom("evil:Net"))),
    Case("a program as class", EVALUATE, "no part of this program",
         in_bundle(config=_custom("os:system"))),
    Case("a program as class, allowed", f"{EVALUATE} --allow-custom os:system", "is no class",
         in_bundle(config=_custom("os:system"))),
    Case("a pickle as weights", EVALUATE, "safetensors|can't read",
         in_bundle(model=pickle.dumps(_Runs()))),
    Case("a store's model with code, decoded", DECODE, "model|digest", _their_store),
    Case("a store's model with code, verified", "verify --store store --sample 1",
         "model|digest", _their_store),
    Case("a store's model that is another", DECODE, "digest", _another_model),
    *(Case(f"registered source {source}", f"pull --model models:/gift/{number} --output out",
           "no artifact of its own run|leads out|is no artifact")
      for number, source in enumerate(SOURCES, 1)),
    Case("registered links", f"pull --model models:/gift/{LINKED} --output out", "link"),
    Case("registered links, evaluated", f"evaluate --model models:/gift/{LINKED} --data data",
         "link"),
    *(Case(f"artifacts on another server: {name}", f"pull --model models:/gift/{n} --output out",
           "another server|no artifact of its own run")
      for n, name in enumerate(ELSEWHERE, LINKED + 1)),
    Case("a training into such an experiment",
         f"{TRAIN} --tracking.experiment elsewhere", "another server", wrote="runs"),
    Case("a registered name of another tongue", "pull --model \"models:/g'ift@x\" --output out",
         "has no model"),
)  # fmt: skip

OUT = "leads out|lies elsewhere|names|plain file"
PATHS = (
    Case("shard above", VERIFY, OUT, in_shard(path="../secret/id_rsa")),
    Case("shard at the root", VERIFY, OUT, in_shard(path="/etc/passwd")),
    Case("shard by a detour", TRAIN, OUT, in_shard(path="a/../../secret/id_rsa")),
    Case("shard in a file URL", VERIFY, OUT, in_shard(path="file:///etc/passwd")),
    Case("shard behind %2e%2e", VERIFY, OUT, in_shard(path="file:///data/%2e%2e/etc/passwd")),
    Case("index above", VERIFY, OUT, in_shard(index_path="../secret/id_rsa")),
    Case("index in a URL", EVALUATE, OUT, in_shard(index_path="file:///etc/passwd")),
    Case("pointer above", VERIFY, "makes no sense", in_pointer(digest="../../secret/id_rsa")),
    Case("another dataset's manifest", "pack --source photos --output data --append",
         OUT + "|makes no sense", in_pack_state(manifests={"../victim": "0" * 64})),
    Case("ledger above", "pack --source photos --output data --append", OUT + "|makes no sense",
         in_pack_state(ledgers=["../secret/id_rsa"])),
    Case("snapshot above", "verify --store store", OUT,
         in_store_pointer(snapshot="../secret/id_rsa")),
    Case("snapshot at the root", "stores --store store", OUT,
         in_store_pointer(snapshot="/etc/passwd")),
    Case("latents above", "export --store store --output out", OUT + "|makes no sense",
         in_part(path="../secret/id_rsa")),
    Case("latents in a URL", DECODE, OUT + "|makes no sense", in_part(path=f"{FOREIGN}/x.arrow")),
    Case("members that lead out", "index --source evil.tar --output out", "leads out",
         lambda home: _tar(home / "evil.tar", "../up.png")),
    Case("members at the root", "index --source evil.tar --output out", "leads out",
         lambda home: _tar(home / "evil.tar", "/tmp/up.png")),
    Case("no link followed to a manifest", VERIFY, "FIFO|regular|no file|not a file",
         instead("data/manifest.json", os.mkfifo)),
)  # fmt: skip

ADDRESSES = (
    *(Case(f"shard at {scheme}", VERIFY, OUT, in_shard(path=url))
      for scheme, url in {
          "http": f"{FOREIGN}/x.tar", "https": f"https{FOREIGN[4:]}/x.tar",
          "a bucket": "s3://other/x.tar", "reference": "reference::file:///etc/passwd",
          "github": "github://o:r@main/x.tar", "a user": f"https://u@{FOREIGN[7:]}/x.tar",
          "a chain": f"https{FOREIGN[4:]}/x::file:///etc/passwd", "sftp": "sftp://127.0.0.1/x",
          "an odd host": "https://[::1/x.tar", "a line break": "https://h/x\n.tar",
      }.items()),
    *(Case(f"a dataset at {scheme}", f"verify --dataset '{scheme}://x/y'", "kind of address")
      for scheme in ("zip", "data", "github", "jupyter", "reference", "sftp", "ftp", "git", "tar")),
    Case("rows that name addresses", "pack --source list.csv --output out", "outside|rejected|none",
         text("list.csv", f"path\n{FOREIGN}/a.png\n"), wrote="out"),
    Case("rows that name files elsewhere", "pack --source list.csv --output out",
         "outside|rejected|none", text("list.csv", "path\n../secret/id_rsa\n/etc/passwd\n"),
         wrote="out"),
)  # fmt: skip

URLS = (
    Case("a secret with a slash", f"verify --dataset s3://AKIA:{SECRET}@b/x", "password"),
    Case("a password", "pack --source https://me:pw12345678@h/x --output out", "password"),
    Case("a signature", f"verify --dataset 'https://h/x?sig={SECRET}'", "signature"),
    Case("an Azure token", f"verify --dataset 'https://h/x?sv=1&sig={SECRET}'", "signature"),
    Case("a token as user", f"verify --store https://{SECRET[:3]}tokentoken@h/x", "user"),
    Case("a token as fragment", f"verify --dataset 'https://h/x#token={SECRET}'", "token"),
    Case("a chained password", f"verify --dataset simplecache::https://u:{SECRET}@h/x", "chained"),
    Case("a password in a configuration", "pack --config c.yaml", "password",
         text("c.yaml", f"source: [s3://u:{SECRET}@b/x]\noutput: out\n")),
    Case("a password of a bucket", f"{TRAIN} --storage s3://u:{SECRET}@b/runs", "password"),
    Case("a password of a store", f"decode --store s3://k:{SECRET}@b/s --output out", "password"),
)  # fmt: skip

DEEP = b"[" * 100_000 + b"]" * 100_000
BOMBS = (
    Case("JSON a thousand deep", VERIFY, "sane", text("data/manifest.json", DEEP)),
    Case("JSON of a number", VERIFY, "sane", text("data/manifest.json", b"9" * 10**6)),
    Case("JSON with a key twice", VERIFY, "twice", text("data/manifest.json", b'{"a":1,"a":2}')),
    Case("a bundle's JSON", EVALUATE, "sane", text("model/bundle.json", DEEP)),
    Case("a config's JSON", EVALUATE, "sane|can't read", in_bundle(config=DEEP)),
    Case("aliases in YAML", "pack --config c.yaml", "alias",
         text("c.yaml", "a: &a [x, x]\nb: &b [*a, *a]\nsource: *b\n")),
    Case("depth in YAML", "pack --config c.yaml", "deep", text("c.yaml", b"a: " + b"[" * 1000)),
    Case("a key twice in YAML", "pack --config c.yaml", "twice",
         text("c.yaml", "output: a\noutput: b\n")),
    Case("a configuration without end", "pack --config /dev/zero", "device|regular|no file"),
    Case("a manifest without end", VERIFY, "device|regular|not a file",
         instead("data/manifest.json", lambda path: os.symlink("/dev/zero", path))),
    Case("a store without end", "verify --store store", "device|regular|not a file",
         instead("store/store.json", lambda path: os.symlink("/dev/zero", path))),
    Case("a bundle that waits", EVALUATE, "FIFO|regular|not a file",
         instead("model/bundle.json", os.mkfifo)),
    Case("a folder as manifest", VERIFY, "folder|directory",
         instead("data/manifest.json", os.mkdir)),
    Case("weights with a header of a gigabyte", EVALUATE, "can't read",
         in_bundle(model=struct.pack("<Q", 10**9) + b"{}")),
    Case("a network of a billion units", EVALUATE, "fit|impossible|less than",
         in_bundle(config={"width": 10**9})),
    Case("a network of a billion layers", EVALUATE, "can't read|fit",
         in_bundle(config={"kind": "autoencoder_kl", "width": None, "layers": 10**9})),
    Case("an index that is no table", EVALUATE, "no index", in_index(b"ARROW1\0\0" + bytes(200))),
    Case("an index that unpacks", EVALUATE, "compressed",
         lambda home: in_index(_compressed_index(home))(home)),
    Case("a shard of a trillion samples", EVALUATE, "index of|samples",
         in_shard(samples=10**12)),
    Case("latents of a billion rows", "export --store store --output out", "makes no sense",
         in_part(held={"samples": 2**31 - 1, "bits": None})),
    Case("sums that are infinite", DECODE, "makes no sense",
         in_snapshot(lambda v: v["shards"][0]["receipt"]["parts"][0]["statistics"].update(
             squares=[1e308]))),
    Case("a table that unpacks", "pack --source t.feather --output out", "unpacks to",
         lambda home: (home / "t.feather").write_bytes(_claiming_feather())),
    Case("a batch of a million", HUGE, "memory"),
    Case("a zip that is none", "pack --source z.zip --output out", "can't be read",
         text("z.zip", b"PK\3\4" + b"x" * 99)),
    Case("a tar of a size without end", "index --source t.tar --output out", "cut short|tar",
         lambda home: _lying_tar(home / "t.tar")),
)  # fmt: skip

ESCAPE = "\x1b[2J\x1b]0;owned\a"
ESCAPES = (
    Case("a shard's name", VERIFY, OUT, in_shard(path=f"s{ESCAPE}.tar")),
    Case("an adopted tar's name", "index --source t.tar --output out", "leads out|twice|several",
         lambda home: _tar(home / "t.tar", f"../{ESCAPE}.png")),
    Case("a flag", f"verify --dataset '{ESCAPE}'", "no dataset|control|not"),
    Case("a document's format", VERIFY, "reads vae-pipeline",
         text("data/manifest.json", json.dumps({"format": ESCAPE, "version": 1}))),
    Case("a latents' path", DECODE, OUT + "|makes no sense", in_part(path=f"{ESCAPE}.arrow")),
    Case("a column of a list", "pack --source l.csv --output out", "columns",
         text("l.csv", f"{ESCAPE},b\n1,2\n")),
    Case("a model's name", f"pull --model 'models:/{ESCAPE}/1' --output out", "model"),
)  # fmt: skip

CASES = (*CODE, *PATHS, *ADDRESSES, *URLS, *BOMBS, *ESCAPES)


def _tar(path: Path, name: str) -> None:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))


def _lying_tar(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.png")
        info.pax_headers = {"size": str(10**20)}
        tar.addfile(info)


def _compressed_index(home: Path) -> bytes:
    (path,) = (home / "data/index").iterdir()
    table = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _claiming_feather() -> bytes:
    """A small table whose only column says that it unpacks to a terabyte."""
    sink = pa.BufferOutputStream()
    feather.write_feather(pa.table({"image": [b"\x89PNG" + bytes(5000)]}), sink, compression="zstd")
    data = bytearray(sink.getvalue())
    at = data.find(struct.pack("<q", 5004) + b"\x28\xb5\x2f\xfd")
    data[at : at + 8] = struct.pack("<q", 2**40)
    return bytes(data)
