"""Thousands of generated secrets of each kind: flags refuse them, messages do not show them."""

import json
import random
import shlex
import string
from collections.abc import Callable
from urllib.parse import quote

import pytest

from pipeline.config import PackConfig
from pipeline.errors import StorageError
from pipeline.masking import (
    is_secret_query,
    markdown,
    masked,
    one_line,
    printable,
    safe,
    secret_in,
    secret_in_command,
)

EACH = 400
SHOWN = 8
"""So many characters of a secret in a row tell something; fewer may be there by chance."""
BASE64 = string.ascii_letters + string.digits + "+/"
PLAIN = string.ascii_letters + string.digits
HARD = PLAIN + "!$%&*+,-.:;=^_~/?#@'\"<>|`()[]{}\\ "

Pair = tuple[str, str]
"""A URL, and the secret in it, as it stands there."""


def text(draw: random.Random, alphabet: str, least: int, most: int) -> str:
    return "".join(draw.choices(alphabet, k=draw.randint(least, most)))


def host(draw: random.Random) -> str:
    name = draw.choice(("host", "data.example.org", "10.0.0.7", "[::1]", "acct.blob.example.net"))
    return name + draw.choice(("", ":443", ":8080"))


def path(draw: random.Random) -> str:
    return draw.choice(("x", "a/b/c.tar", "photos/2026/IMG_1.jpg", "c@2x.png", ""))


def aws(draw: random.Random) -> Pair:
    """40 characters of base64, one in two with a slash: botocore's own shape of a key."""
    secret = text(draw, BASE64, 40, 40)
    return f"s3://AKIA{text(draw, string.ascii_uppercase, 16, 16)}:{secret}@bucket/key", secret


def password(draw: random.Random) -> Pair:
    secret = text(draw, HARD, SHOWN, 30)
    scheme = draw.choice(("https", "http", "s3", "postgresql", "mysql+pymysql", "ftp", "redis"))
    return f"{scheme}://{text(draw, PLAIN, 0, 8)}:{secret}@{host(draw)}/{path(draw)}", secret


def quoted_password(draw: random.Random) -> Pair:
    secret = quote(text(draw, HARD, SHOWN, 20), safe="")
    return f"https://user:{secret}@{host(draw)}/{path(draw)}", secret


def user_token(draw: random.Random) -> Pair:
    secret = draw.choice(("ghp_", "hf_", "glpat-", "")) + text(draw, PLAIN, 20, 40)
    return f"https://{secret}{draw.choice(('', ':', ':x-oauth-basic'))}@{host(draw)}/x", secret


def sas(draw: random.Random) -> Pair:
    secret = quote(text(draw, BASE64, 43, 43) + "=", safe="")
    url = (
        f"https://acct.blob.example.net/c/b.tar?sv=2022-11-02&se=2027-01-01&sr=b&sp=r&sig={secret}"
    )
    return url, secret


def presigned(draw: random.Random) -> Pair:
    secret = text(draw, "0123456789abcdef", 64, 64)
    kind = draw.choice(("Amz", "Goog"))
    query = f"X-{kind}-Date=20261129T000000Z&X-{kind}-Expires=3600&X-{kind}-Signature={secret}"
    return f"https://bucket.example.net/key?{query}", secret


def query_token(draw: random.Random) -> Pair:
    names = "token access_token auth password pwd sas code key apikey api_key session jwt t q"
    secret, name = text(draw, PLAIN + "-_.", 12, 60), draw.choice(names.split())
    name = draw.choice((name, name.upper(), name.title()))
    before = draw.choice(("", "v=2&", "a=b;"))
    return f"https://{host(draw)}/x{draw.choice('?#')}{before}{name}={secret}", secret


def whole_query(draw: random.Random) -> Pair:
    """The query is nothing but the token."""
    secret = text(draw, PLAIN, 20, 40)
    return f"https://{host(draw)}/x?{secret}", secret


def chained(draw: random.Random) -> Pair:
    url, secret = draw.choice((aws, password, user_token, sas, query_token))(draw)
    outer = draw.choice(("simplecache::", "filecache::", "zip://*.png::", "blockcache::zip://x::"))
    return outer + url, secret


KINDS: tuple[Callable[[random.Random], Pair], ...] = (
    aws, password, quoted_password, user_token, sas, presigned, query_token, whole_query, chained,
)  # fmt: skip

MESSAGES: tuple[Callable[[str], str], ...] = (
    "{}".format,
    "{}: does not exist. Check the URL.".format,
    "reading ({}), and then {{}}".format,
    'GET "{}" failed'.format,
    "'{}' is no kind of address".format,
    lambda url: f"DatasetError: {url!r}, [{url!r}, 'b'] and <{url}>",
    lambda url: json.dumps({"url": url, "next": [url]}),
    "two lines\n  {}\nand s3://bucket/plain beside https://host:80/x?v=2".format,
    lambda url: f"first {url} then {url}",
)


def shows(message: str, secret: str) -> bool:
    """Whether `SHOWN` characters of the secret stand there in a row."""
    return any(secret[at : at + SHOWN] in message for at in range(len(secret) - SHOWN + 1))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_flag_takes_a_secret(kind: Callable[[random.Random], Pair]) -> None:
    draw = random.Random(kind.__name__)
    taken = [url for url, _ in (kind(draw) for _ in range(EACH)) if secret_in(url) is None]
    assert taken == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_message_shows_a_secret(kind: Callable[[random.Random], Pair]) -> None:
    draw, leaks = random.Random(kind.__name__), []
    for _ in range(EACH):
        url, secret = kind(draw)
        for message in MESSAGES:
            told = masked(message(url))
            if shows(told, secret):
                leaks.append((message(url), told))
    assert leaks == []
    assert "host" in masked("https://host:80/x?v=2"), "what is no secret is shown"


@pytest.mark.parametrize(
    "said",
    [
        "AWS_SECRET_ACCESS_KEY={}", "aws_secret_access_key = {}", "Authorization: Bearer {}",
        "Authorization: Basic {}", "password={}", '{{"password": "{}"}}', "{{'token': '{}'}}",
        "MLFLOW_TRACKING_PASSWORD={}", "RAY_AUTH_TOKEN={}", "HF_TOKEN: {}", "api_key={}&x=1",
        "x-amz-security-token: {}", "aws_session_token={}", "secret: {}",
    ],
)  # fmt: skip
def test_no_setting_that_is_a_secret_is_shown(said: str) -> None:
    draw = random.Random(said)
    for _ in range(EACH):
        secret = text(draw, BASE64, 20, 40)
        assert not shows(masked(said.format(secret)), secret), said


def test_what_the_environment_keeps_secret_is_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = random.Random(0)
    for _ in range(EACH):
        secret, behind = text(draw, HARD, SHOWN, 30), text(draw, PLAIN, SHOWN, 20)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{behind}@127.0.0.1:1")
        told = masked(f"no user has {secret}, and it is not {behind!r} either")
        assert not shows(told, secret)
        assert not shows(told, behind)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/me/token")
    assert masked("see /home/me/token") == "see /home/me/token", "a file's name is none"


COMMANDS: tuple[Callable[[str], list[str]], ...] = (
    lambda secret: ["python", "t.py", f"--data=https://u:{secret}@host/x"],
    lambda secret: ["python", "t.py", "--data", f"postgresql://me:{secret}@db/x"],
    lambda secret: ["env", f"AWS_SECRET_ACCESS_KEY={secret}", "python", "t.py"],
    lambda secret: ["python", "t.py", "--token", secret],
    lambda secret: ["python", "t.py", f"--db-password={secret}", "--steps", "5"],
    lambda secret: ["python", "t.py", f"s3://b/x?X-Amz-Signature={secret}"],
    lambda secret: ["python", "t.py", f"sigma=[https://h/x?sig={secret}]"],
    lambda secret: ["bash", "-c", f"HF_TOKEN={secret} python t.py --steps 5"],
    lambda secret: ["bash", "-c", f"cd /x && export DB_PASSWORD='{secret}'; python t.py"],
    lambda secret: ["bash", "-c", f'python t.py --password "{secret}" && date'],
    lambda secret: ["bash", "-c", f"bash -c \"wget 'http://u:{secret}@host/x'\""],
    lambda secret: ["sh", "-c", f"curl -u me:{secret} http://host/x"],
    lambda secret: ["curl", "--user", f"me:{secret}", "http://host/x"],
    lambda secret: ["curl", "-H", f"Authorization: Bearer {secret}", "http://host/x"],
    lambda secret: ["python", "-c", f"import t; t.run(api_key='{secret}')"],
    lambda secret: ["python", "t.py", json.dumps({"client_secret": secret, "steps": 5})],
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_secret_is_found_wherever_it_stands_in_a_command(
    command: Callable[[str], list[str]],
) -> None:
    draw = random.Random(0)
    for _ in range(EACH):
        secret = text(draw, BASE64, SHOWN, 40)
        words = command(secret)
        assert secret_in_command(words) is not None, words
        assert not shows(masked(shlex.join(words)), secret), words
        assert not shows(masked(repr(words)), secret), words


@pytest.mark.parametrize(
    "command",
    [
        "python -m jobs.train --data s3://b/d --run r --recipe photos-64 --init models:/x@champion",
        "python t.py --num-tokens 77 --tokenizer bert --token-dim 768 --max_token=5 --seed 3",
        "bash -c 'curl --fail --user \"$U:$P\" --token $TOKEN http://mlflow:5000/x -d @body.json'",
        "env HF_TOKEN_PATH=/run/token python t.py --password-file /run/password --no-token",
        "python -c 'import os; token = os.environ[\"HF_TOKEN\"]'", "git clone git@host:a/b",
        "docker run -u 1000:1000 image", "python t.py 'a sentence: with basic training of a key'",
        "bash -c 'export A_TOKEN=${B_TOKEN}; A_PASSWORD=$(cat /run/p) python t.py'",
    ],
)  # fmt: skip
def test_a_command_without_a_secret_is_taken(command: str) -> None:
    assert secret_in_command(shlex.split(command)) is None


HARMLESS = [
    "s3://bucket/a/b", "s3://bucket/what?.png", "https://host/x.tar", "https://host:8080/x?v=2",
    "sqlite:///runs/mlflow.db", "runs/photos/train", "/data/a:b@c/d", "models:/first@champion",
    "models:/first/3", "http://localhost:5000", "https://host/c@2x.png", "file:///data/a b.tar",
    "s3://bucket/key:with@at/x", "http://[::1]:9091", "postgresql://db/mlflow",
    "s3://b/hf_internal-testing-images", "runs/sk-learn-of-digits-2026",
]  # fmt: skip


@pytest.mark.parametrize("url", HARMLESS)
def test_what_holds_no_secret_is_taken_and_shown_whole(url: str) -> None:
    assert secret_in(url) is None
    assert masked(f"{url}: does not exist.") == f"{url}: does not exist."


def test_a_secret_in_a_flag_is_refused_without_being_told() -> None:
    draw = random.Random(0)
    for kind in KINDS:
        url, secret = kind(draw)
        with pytest.raises(ValueError, match="secrets come from the environment") as refused:
            PackConfig(source=(url,), output="x")
        first = refused.value.errors()[0]["msg"]  # type: ignore[attr-defined]
        assert not shows(str(first), secret)


CONTROLS = [
    *map(chr, range(32)),
    "\x7f",
    *map(chr, range(0x80, 0xA0)),
    *"\u2028\u2029\u202e\u200b\ufeff",
]


@pytest.mark.parametrize("char", CONTROLS, ids=ascii)
def test_no_control_character_reaches_a_terminal_or_a_page(char: str) -> None:
    name = f"cat{char}]0;owned"
    assert char not in one_line(name)
    assert char not in markdown(name)
    if char not in "\n\t":
        assert char not in printable(name)
        assert char not in str(StorageError(f"{name}: does not exist."))


def test_a_name_opens_no_tag_no_cell_and_no_picture_of_a_page() -> None:
    name = "<img src=x onerror=alert(1)> | `code` ![p](http://h/x) **b** &lt; \\| # h"
    assert not set("<>|`*[]!\\").intersection(markdown(name))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://me:pass@db:5432/x", "at postgresql://...@db:5432/x"),
        ("s3://KEY:a/b+c@bucket/x failed", "s3://...@bucket/x failed"),
        ("https://h/x?X-Amz-Signature=abc", "https://h/x?..."),
        ("https://h/x?page=2", "https://h/x?page=2"),
        ("http://127.0.0.1:8265/api", "http://127.0.0.1:8265/api"),
        ("AWS_SECRET_ACCESS_KEY=abc/d and more", "AWS_SECRET_ACCESS_KEY=... and more"),
        ("`export RAY_AUTH_TOKEN=abc`.", "`export RAY_AUTH_TOKEN=...`."),
        ("password=a`b and more", "password=... and more"),
        ("Authorization: Bearer abc", "Authorization: Bearer ..."),
        ("{'Authorization': 'Basic abc=='}", "{'Authorization': 'Basic ...'}"),
        ("refused Bearer abcdefgh.i", "refused Bearer ..."),
        ("a bearer of news", "a bearer of news"),
        ('{"password": "pass", "x": 1}', '{"password": "...", "x": 1}'),
        ("elbo: -3.5", "elbo: -3.5"),
        ("http://me:pa'ss w@rd@127.0.0.1:1 is away", "http://...@127.0.0.1:1 is away"),
        ("at http://mlflow:5000 no models:/a@b", "at http://mlflow:5000 no models:/a@b"),
        ("http://10.0.0.1:5000: 401, ask me@x", "http://10.0.0.1:5000: 401, ask me@x"),
        ("https://...@h, then https://u:p@h/x", "https://...@h, then https://...@h/x"),
        ("login at //me:pass@h/x", "login at //...@h/x"),
        ("?next=https%3A%2F%2Fme%3Apass%40h", "?next=https%3A%2F%2F...%40h"),
        ("t.py --password 'two words' -x", "t.py --password '...' -x"),
        ("['t.py', '--token', 'abc', 'x']", "['t.py', '--token', '...', 'x']"),
        ("args:\n- --api-key\n- abc\n- x", "args:\n- --api-key\n- ...\n- x"),
        ("password=it's, x=1", "password=..., x=1"),
        ("login ghp_abcdefghijklmnop1234 failed", "login ... failed"),
    ],
)
def test_what_opens_a_door_is_left_out_and_the_rest_stays(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        ("s3://bucket/prefix", None),
        ("./runs", None),
        ("https://me:pass@host/x", "a password"),
        ("https://token@host/x", "a user, which may be a token"),
        ("https://host/x?sig=abc", "a signature or a token"),
        ("simplecache::s3://bucket/x", "a chained URL"),
    ],
)
def test_a_flag_is_refused_by_the_kind_of_its_secret(flag: str, kind: str | None) -> None:
    found = secret_in(flag)
    assert found == kind or (kind is not None and found is not None and found.startswith(kind))


def test_a_query_is_harmless_only_if_each_part_is_short_and_named_for_no_secret() -> None:
    assert not is_secret_query("https://h/x?page=2&sort=asc")
    assert is_secret_query("https://h/x?page=2&code=1")
    assert is_secret_query("https://h/x?v=" + "a" * 9)
    assert not is_secret_query("https://h/x")


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert printable("a\x1b[2Jb\u202ec") == "a\\x1b[2Jb\\u202ec"
    assert printable("zwölf\n\tlines") == "zwölf\n\tlines"
    assert one_line("a\nb") == "a\\nb"
    assert markdown("<b>|") == "&#60;b&#62;&#124;"


def test_the_page_of_a_run_in_mlflow_is_shown_whole_and_nothing_like_it() -> None:
    page = f"http://127.0.0.1:5000/#/experiments/1/runs/{'0af1' * 8}"
    whole = f"{page}?workflowType=machine_learning"
    assert safe(f"curves: {whole}, {page}.") == f"curves: {whole}, {page}."
    for more in ("&token=abcdef123456", "?sig=abc", "/0123456789abcdef0123", "0"):
        assert safe(f"{page}{more}") == "http://127.0.0.1:5000/?..."
