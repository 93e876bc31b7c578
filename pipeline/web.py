"""Plain HTTP requests to servers that a user named: no retries, no redirects, JSON."""

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pipeline import storage
from pipeline.errors import ConfigError, UnreachableError


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
) -> Answer:
    """One request; `context` is an `ssl.SSLContext`. Raises `UnreachableError` for no answer."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"{storage.shown(url)}: give an address such as http://HOST:PORT.")
    request = urllib.request.Request(url, data, dict(headers or {}), method=method)  # noqa: S310
    secured = urllib.request.HTTPSHandler(context=context)
    opener = urllib.request.build_opener(_NoRedirects, secured)
    try:
        with opener.open(request, timeout=seconds) as answer:
            return Answer(answer.status, answer.read(), dict(answer.headers.items()))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read(), dict(error.headers.items()))
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UnreachableError(f"{storage.shown(url)} does not answer: {reason}") from None


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
