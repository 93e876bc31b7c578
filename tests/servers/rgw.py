"""A real S3 server for tests: Ceph's gateway over a monitor and an in-memory store, on loopback."""

import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "ceph-authtool")
ACCESS_KEY, SECRET_KEY = "testkey", "testsecret"
FULL = (
    ("quota", "set", "--uid=test", "--quota-scope=bucket", "--max-size=1"),
    ("quota", "enable", "--uid=test", "--quota-scope=bucket"),
)
ROOM = ("quota", "disable", "--uid=test", "--quota-scope=bucket")
"""To `radosgw-admin`: each of the user's buckets may hold a byte at most, and what it likes."""

_CONFIG = """
[global]
fsid = {fsid}
mon host = {monitor}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = {folder}/keyring
run dir = {folder}/run
admin socket = {folder}/run/$name.asok
pid file = {folder}/run/$name.pid
log file = {folder}/log/$name.log
mon cluster log file = {folder}/log/cluster.log
crash dir = {folder}/log
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
auth allow insecure global id reclaim = false
[mon]
# Each pool waits for the monitor: 11.5 s to start with its defaults, 1.3 s with these.
paxos propose interval = 0.02
paxos min wait = 0.01
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
# A gateway that was killed is waited for that long, in seconds, by the next one (default: 30).
osd client watch timeout = 4
[client.rgw]
rgw frontends = beast endpoint={listen}:{port} tcp_nodelay=1
rgw relaxed region enforcement = true
rgw thread pool size = 64
# Seconds between its signs of life to the store: less than half the time-out above.
objecter tick interval = 1
"""
_KEYS = {
    "mon.": ["mon", "allow *"],
    "client.admin": ["mon", "allow *", "osd", "allow *"],
    "osd.0": ["mon", "allow profile osd", "osd", "allow *"],
    "client.rgw": ["mon", "allow rw", "osd", "allow rwx"],
}


@dataclass
class S3Server:
    """Started by `start`; `bucket()` makes a fresh bucket and returns its URL."""

    folder: Path
    port: int
    key: str = ACCESS_KEY
    secret: str = SECRET_KEY

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
        )

    def bucket(self) -> str:
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def rotate_secret(self, secret: str) -> None:
        """Gives the user another secret; once this returns, the old one is refused."""
        self._admin("key", "create", "--uid=test", "--key-type=s3",
                    f"--access-key={self.key}", f"--secret-key={secret}")  # fmt: skip
        self.secret = secret
        _until_it_answers(self)

    def suspend_user(self) -> None:
        """Refuses the user everything, with 403 UserSuspended, until `enable_user`."""
        self._admin("user", "suspend", "--uid=test")

    def enable_user(self) -> None:
        self._admin("user", "enable", "--uid=test")
        _until_it_answers(self)

    def fill_up(self) -> None:
        """Refuses to store anything more, with 403 QuotaExceeded, until `make_room`."""
        for words in FULL:
            self._admin(*words)

    def make_room(self) -> None:
        """Stores again."""
        self._admin(*ROOM)

    def kill_gateway(self) -> None:
        """SIGKILL to the process that serves S3; what was stored stays."""
        pid = self.folder / "run" / "client.rgw.pid"
        os.kill(int(pid.read_text()), signal.SIGKILL)
        pid.unlink()

    def start_gateway(self) -> None:
        """Starts it again on the same port; returns when it answers."""
        _run(self.folder, "radosgw", "-c", str(self.folder / "ceph.conf"), "-n", "client.rgw")
        _until_it_answers(self)

    def _admin(self, *arguments: str) -> None:
        config = str(self.folder / "ceph.conf")
        _run(self.folder, "radosgw-admin", "-c", config, "-n", "client.rgw", *arguments)

    def stop(self) -> None:
        """Ends exactly the processes that were started; radosgw first, it waits for its store."""
        for name in ("client.rgw", "osd.0", "mon.a"):
            pid = self.folder / "run" / f"{name}.pid"
            if pid.exists():
                os.kill(int(pid.read_text()), signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def missing_programs() -> list[str]:
    return [program for program in PROGRAMS if shutil.which(program) is None]


def start(
    folder: Path, listen: str = "127.0.0.1", port: int | None = None,
    user: tuple[str, str] = (ACCESS_KEY, SECRET_KEY),
) -> S3Server:  # fmt: skip
    """Starts monitor, store and gateway for a user's key and secret; returns when it answers."""
    for name in ("mon", "osd", "run", "log"):
        (folder / name).mkdir(parents=True)
    ports = [port or free_ports(1)[0], *free_ports(2)]
    monitor = f"[v2:127.0.0.1:{ports[1]},v1:127.0.0.1:{ports[2]}]"
    fsid, store_id = str(uuid.uuid4()), str(uuid.uuid4())
    config = folder / "ceph.conf"
    config.write_text(
        _CONFIG.format(fsid=fsid, monitor=monitor, folder=folder, listen=listen, port=ports[0])
    )
    keyring, given = str(folder / "keyring"), ["-c", str(config)]
    Path(keyring).touch()
    for name, grants in _KEYS.items():
        caps = [part for what, may in zip(grants[::2], grants[1::2], strict=True)
                for part in ("--cap", what, may)]  # fmt: skip
        _run(folder, "ceph-authtool", keyring, "--gen-key", "-n", name, *caps)
    monmap = str(folder / "monmap")
    _run(folder, "monmaptool", "--create", "--addv", "a", monitor, "--fsid", fsid, monmap)
    _run(folder, "ceph-mon", *given, "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
    _run(folder, "ceph-mon", *given, "-i", "a")
    _run(folder, "ceph", *given, "osd", "new", store_id)
    # The store must be made with the id that the monitor knows, or it stays in "booting" for ever.
    _run(folder, "ceph-osd", *given, "-i", "0", "--mkfs", "--osd-uuid", store_id)
    _run(folder, "ceph-osd", *given, "-i", "0")
    _run(
        folder, "radosgw-admin", *given, "-n", "client.rgw", "user", "create", "--uid=test",
        "--display-name=test", f"--access-key={user[0]}", f"--secret-key={user[1]}",
    )  # fmt: skip
    _run(folder, "radosgw", *given, "-n", "client.rgw")
    server = S3Server(folder, ports[0], *user)
    try:
        _until_it_answers(server)
    except (BotoCoreError, ClientError):
        server.stop()
        raise
    return server


def _until_it_answers(server: S3Server) -> None:
    """Waits until the gateway lets the user in with the present secret; raises after a minute."""
    deadline = time.monotonic() + 600
    while True:
        try:
            server.client().list_buckets()
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


# Below those that the kernel gives to clients (32768 and up): nothing takes one meanwhile. Each
# worker of `pytest -n` has 3,000 of its own, no two calls give the same.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
_NEXT = itertools.count(random.randrange(3000))


def free_ports(count: int) -> list[int]:
    """Ports of loopback on which nothing listens, each given once."""
    found: list[int] = []
    while len(found) < count:
        port = 20000 + 3000 * _WORKER + next(_NEXT) % 3000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found


def _run(folder: Path, *command: str) -> None:
    with (folder / "log/setup.log").open("a") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True, timeout=600)
