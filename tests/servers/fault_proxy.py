"""A small HTTP proxy on loopback that fails on command, in front of the real S3 server.

In a test: `fault_proxy.rules = [Rule("^GET .*[.]tar", "reset", count=2)]`.
As a process of its own (for benchmarks, which must not share its time with a thread of theirs):
`python tests/servers/fault_proxy.py UPSTREAM_PORT` prints its port; each line on stdin is a JSON
list of rules, answered by the counters so far; it ends with its stdin.
"""

import asyncio
import json
import random
import re
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

Fault = Literal[
    "status", "reset", "truncate", "stall", "slow", "flip", "black_hole", "lose_answer"
]  # fmt: skip
_PIECE = 2**16
_ERROR = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code>'
    "<Message>injected</Message><RequestId>x</RequestId></Error>"
)


@dataclass
class Rule:
    """What to do to requests whose line, such as `GET /bucket/key?query`, the regex finds.

    status: answers with `status` and S3's error `code`; the server never sees the request.
    black_hole: takes the request and never answers.
    lose_answer: the server acts, then the connection is reset before the first byte of the answer.
    reset, truncate, stall: sends `after_bytes` of the body, then resets, closes, or sends no more.
    slow: sends the body at `bytes_per_second`.
    flip: inverts the lowest bit of the body's byte at `after_bytes`.
    """

    match: str
    fault: Fault
    count: int | None = None
    """How many requests it hits; None: all."""
    probability: float = 1.0
    after_bytes: int = 0
    status: int = 503
    code: str = "SlowDown"
    bytes_per_second: float = 1e6


@dataclass
class Request:
    """One request as the proxy saw it; `sent` are the bytes of the answer's body."""

    line: str
    range: tuple[int, int] | None
    fault: Fault | None
    sent: int = 0


@dataclass
class FaultProxy:
    """Forwards to `upstream_port`; `rules` may be replaced at any time, the first match counts."""

    upstream_port: int
    rules: list[Rule] = field(default_factory=list)
    seed: int = 0
    requests: list[Request] = field(default_factory=list)
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def matching(self, pattern: str) -> list[Request]:
        """The requests so far whose line a regex finds."""
        return [request for request in list(self.requests) if re.search(pattern, request.line)]

    def counters(self) -> dict[str, object]:
        seen = list(self.requests)
        faults = Counter(request.fault for request in seen if request.fault)
        return {
            "requests": len(seen),
            "bytes": sum(request.sent for request in seen),
            "faults": dict(faults),
        }

    def __enter__(self) -> Self:
        self._dice = random.Random(self.seed)
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(30), "the proxy's thread did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def _run(self, started: threading.Event) -> None:
        async def serve() -> None:
            self._stop = asyncio.Event()
            server = await asyncio.start_server(
                self._connection, "127.0.0.1", self.port, limit=2**20
            )
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            await self._stop.wait()
            server.close()
            connections = asyncio.all_tasks() - {asyncio.current_task()}
            for connection in connections:
                connection.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

        self._loop.run_until_complete(serve())
        self._loop.close()

    def _rule_for(self, line: str) -> Rule | None:
        for rule in self.rules:
            if rule.count == 0 or not re.search(rule.match, line):
                continue
            if rule.probability < 1 and self._dice.random() >= rule.probability:
                continue
            if rule.count is not None:
                rule.count -= 1
            return rule
        return None

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests of one connection, until either side ends it."""
        try:
            while await self._exchange(reader, writer):
                continue
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return  # the client is gone, that is its right; or the proxy ends
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection may be used again."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        line, length = f"{method} {path}", int(_header(head, b"content-length") or 0)
        rule = self._rule_for(line)
        request = Request(line, _range(head), rule.fault if rule else None)
        self.requests.append(request)
        if _header(head, b"expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if rule is not None and rule.fault in ("status", "black_hole"):
            await _discard(reader, length)
            if rule.fault == "black_hole":
                await asyncio.Event().wait()
            writer.write(_error_answer(rule, method))
            await writer.drain()
            return True
        upstream, forward = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        try:
            forward.write(_forwarded(head))
            while length:
                piece = await reader.read(min(_PIECE, length))
                if not piece:
                    return False
                length -= len(piece)
                forward.write(piece)
                await forward.drain()
            return await self._answer(upstream, writer, request, rule)
        finally:
            forward.close()

    async def _answer(
        self,
        upstream: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: Request,
        rule: Rule | None,
    ) -> bool:
        head = await upstream.readuntil(b"\r\n\r\n")
        if rule is not None and rule.fault == "lose_answer":
            _reset(writer)
            return False
        stated = _header(head, b"content-length")
        writer.write(_without(head, b"connection"))
        bodiless = request.line.startswith("HEAD ") or head.split(b" ", 2)[1] in (b"204", b"304")
        length = 0 if bodiless else None if stated is None else int(stated)
        while length is None or request.sent < length:
            piece = await upstream.read(_PIECE)
            if not piece:
                return False
            if not await _passed(writer, request, rule, piece):
                return False
        await writer.drain()
        return True


async def _passed(
    writer: asyncio.StreamWriter, request: Request, rule: Rule | None, piece: bytes
) -> bool:
    """Sends a piece of a body as the rule says; False where the body ends here."""
    at = rule.after_bytes - request.sent if rule else -1
    if rule is not None and rule.fault == "flip" and 0 <= at < len(piece):
        piece = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
    if rule is not None and rule.fault in ("reset", "truncate", "stall") and at < len(piece):
        request.sent += at
        writer.write(piece[:at])
        await writer.drain()
        if rule.fault == "stall":
            await asyncio.Event().wait()
        if rule.fault == "reset":
            _reset(writer)
        return False
    # Counted first: whoever has read the bytes finds them counted.
    request.sent += len(piece)
    writer.write(piece)
    await writer.drain()
    if rule is not None and rule.fault == "slow":
        await asyncio.sleep(len(piece) / rule.bytes_per_second)
    return True


def _header(head: bytes, name: bytes) -> str | None:
    found = re.search(rb"(?im)^" + name + rb":[ \t]*([^\r]*)", head)
    return found[1].decode() if found else None


def _without(head: bytes, name: bytes) -> bytes:
    return re.sub(rb"(?im)^" + name + rb":[^\r]*\r\n", b"", head)


def _forwarded(head: bytes) -> bytes:
    """Host stays as it is, because it is signed; the server shall close after each answer."""
    return _without(_without(head, b"connection"), b"expect")[:-2] + b"Connection: close\r\n\r\n"


def _range(head: bytes) -> tuple[int, int] | None:
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", _header(head, b"range") or "")
    return (int(found[1]), int(found[2]) + 1) if found else None


def _error_answer(rule: Rule, method: str) -> bytes:
    body = b"" if method == "HEAD" else _ERROR.format(code=rule.code).encode()
    return (
        f"HTTP/1.1 {rule.status} Injected\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def _discard(reader: asyncio.StreamReader, length: int) -> None:
    while length and (piece := await reader.read(min(_PIECE, length))):
        length -= len(piece)


def _reset(writer: asyncio.StreamWriter) -> None:
    """RST instead of FIN: no lingering."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def main(arguments: Sequence[str]) -> None:
    with FaultProxy(int(arguments[0])) as proxy:
        print(proxy.port, flush=True)
        for line in sys.stdin:
            proxy.rules = [Rule(**rule) for rule in json.loads(line)]
            print(json.dumps(proxy.counters()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
