import http.server
import threading
from collections.abc import Iterator

import pytest

from pipeline.errors import ConfigError, UnreachableError
from pipeline.web import ask


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """An address, and (path, Authorization) of each request that came; /moved goes to /other."""
    asked: list[tuple[str, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization")))
            moved = self.path == "/moved"
            body = b"[" * 100_000 if self.path == "/deep" else b"no json"
            self.send_response(302 if moved else 200)
            if moved:
                self.send_header("Location", "/other")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}", asked
        made.shutdown()
        thread.join()


def test_a_redirect_is_an_answer_and_no_token_is_sent_on(
    server: tuple[str, list[tuple[str, str | None]]],
) -> None:
    address, asked = server
    answer = ask("GET", f"{address}/moved", headers={"Authorization": "Bearer planted"})
    assert answer.status == 302
    assert asked == [("/moved", "Bearer planted")]


@pytest.mark.parametrize("path", ["/text", "/deep"])
def test_an_answer_that_is_no_json_is_one_of_another_server(
    server: tuple[str, list[tuple[str, str | None]]], path: str
) -> None:
    with pytest.raises(UnreachableError, match="no JSON"):
        ask("GET", server[0] + path).json()


def test_only_web_addresses_are_asked() -> None:
    with pytest.raises(ConfigError, match="http://HOST:PORT"):
        ask("GET", "file:///etc/passwd")


def test_an_error_names_the_server_without_its_password() -> None:
    with pytest.raises(UnreachableError) as raised:
        ask("GET", "http://me:planted@127.0.0.1:9/x")
    assert "planted" not in str(raised.value)
