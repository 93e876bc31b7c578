"""Plain HTTP requests to servers that a user named: no retries, no redirects, JSON.

An answer is bounded in size and time: whoever speaks there may be somebody else.
"""

import http.client
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pipeline import storage
from pipeline.errors import ConfigError, UnreachableError

T = TypeVar("T")

MOST_BYTES = 64 * 2**20
"""Of an answer: a cluster of thousands of jobs or pods tells less."""
_LEAST_PACE = 20_000.0
"""Bytes a second below which an answer is none: one that comes in drops has no end."""
_PART_BYTES = 2**20


@dataclass(frozen=True)
class Answer:
    """Whatever a server said, refusals included."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The body's first line, for messages."""
        lines = self.body.decode(errors="replace").strip().splitlines()
        return lines[0][:500] if lines else ""

    def json(self) -> Any:
        """The body's value; raises `UnreachableError` if something else than our server spoke."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise UnreachableError(
                f"an answer {self.status} that is no JSON: {self.text}"
            ) from None

    def read(self, read: Callable[[Any], T], what: str) -> T:
        """What `read` makes of the JSON; `UnreachableError` where it is not as `what` tells it."""
        found = self.json()
        try:
            return read(found)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            said = " ".join(str(error).split())[:100]
            raise UnreachableError(
                f"what answers is no {what}: its JSON makes no sense ({type(error).__name__}: "
                f"{said})"
            ) from None


class _Deadline:
    """Ends the wait for an answer's first lines, which may come in drops, too."""

    def __init__(self, seconds: float) -> None:
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()
        self.is_over = False

    def watch(self, made: type[http.client.HTTPConnection], *args: Any, **named: Any) -> Any:
        """A connection whose socket is closed at the deadline."""
        connection = made(*args, **named)
        connect = connection.connect

        def watched() -> None:
            connect()
            self._socket = connection.sock

        connection.connect = watched  # type: ignore[method-assign]
        return connection

    def close(self) -> None:
        """The answer has begun: its body is watched by its pace."""
        self._timer.cancel()

    def _end(self) -> None:
        self.is_over = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> Any:
        """Opens."""
        return self.do_open(partial(self._deadline.watch, http.client.HTTPConnection), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline, context: Any) -> None:
        super().__init__(context=context)
        self._deadline, self._given = deadline, context

    def https_open(self, req: urllib.request.Request) -> Any:
        """Opens."""
        made = partial(self._deadline.watch, http.client.HTTPSConnection)
        return self.do_open(made, req, context=self._given)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer: following it would hand the token to another server."""

    def redirect_request(self, *_: Any) -> None:
        """Nowhere."""


def ask(
    method: str,
    url: str,
    data: bytes | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    seconds: float = 30.0,
    context: Any = None,
    most_bytes: int = MOST_BYTES,
) -> Answer:
    """One request; `context` is an `ssl.SSLContext`.

    Raises `UnreachableError` for no answer, for one of more than `most_bytes`, and for one that
    comes in drops.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"{storage.shown(url)}: give an address such as http://HOST:PORT.")
    request = urllib.request.Request(url, data, dict(headers or {}), method=method)  # noqa: S310
    try:
        with closing(_Deadline(2 * seconds)) as deadline:
            opener = urllib.request.build_opener(
                _NoRedirects, _Http(deadline), _Https(deadline, context)
            )
            try:
                answer = opener.open(request, timeout=seconds)
            except urllib.error.HTTPError as error:
                answer = error
        with answer:
            body = b"" if deadline.is_over else _body(answer, url, seconds, most_bytes)
            found = Answer(answer.status, body, dict(answer.headers.items()))
    # http.client raises ValueError for a number that makes no sense in what it reads.
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if not deadline.is_over:
            raise UnreachableError(f"{storage.shown(url)} does not answer: {reason}") from None
    if deadline.is_over:
        raise UnreachableError(f"{storage.shown(url)} does not answer within {2 * seconds:.0f} s")
    return found


def _body(answer: Any, url: str, seconds: float, most_bytes: int) -> bytes:
    parts: list[bytes] = []
    size, began = 0, time.monotonic()
    while part := answer.read1(_PART_BYTES):
        parts.append(part)
        size += len(part)
        if size > most_bytes:
            raise UnreachableError(
                f"{storage.shown(url)} answers with more than {most_bytes:,} bytes: it is not the "
                "server that was meant"
            )
        if time.monotonic() - began > seconds + size / _LEAST_PACE:
            raise UnreachableError(
                f"{storage.shown(url)} does not answer: {size:,} bytes in "
                f"{time.monotonic() - began:.0f} s"
            )
    return b"".join(parts)


def ray_token() -> str | None:
    """Ray's token, from where Ray itself looks for it."""
    if (token := os.environ.get("RAY_AUTH_TOKEN")) is not None:
        return token.strip()
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None
