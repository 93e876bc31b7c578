"""What no message may show: secrets in URLs, and characters that a terminal would obey.

Errors, log lines and printed lines all pass through here, so that no place has to think of it.
"""

import re
import unicodedata
from urllib.parse import unquote

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BETWEEN_WORDS = re.compile(r"([\s'\"<>|]+)")
_NAME_ENDS = re.compile(r"[/@:]")
_PORT = re.compile(r"\d{1,5}(?=[/?#]|$)")
_WITHOUT_PORTS = ("s3", "s3a", "gs", "gcs")
_NAMES = (
    r"secret|passw(?:or)?d|passphrase|pwd|token|api[_-]?key|access[_-]?key|credentials?|signature|"
    r"(?<![A-Za-z])sig"
)
_KEYS = re.compile(
    rf"(?i)((?<![A-Za-z0-9_-])[A-Za-z0-9_-]*(?:{_NAMES})(?:[_-][A-Za-z0-9_-]*)?['\"]?\s*[=:]\s*"
    # Not the backtick that ends a command: without it, nobody knows where that ends.
    r"['\"]?)[^\s'\"&;,]+?(?=`[.:)]*(?:[\s'\"&;,]|$)|[\s'\"&;,]|$)"
)
_AUTHORIZATION = re.compile(
    r"(?i)(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|digest|token)\s+)?)[^\s'\",;]+"
)
_BEARER = re.compile(r"(?i)\b((?:bearer|basic)\s+)[A-Za-z0-9+/=._~-]{8,}")
_IPV6 = re.compile(r"://\[[0-9A-Fa-f:.%]*\]")
_HARMLESS_VALUE = re.compile(r"[A-Za-z0-9._-]{0,8}")
_SECRET_NAME = re.compile(
    r"(?i)sig|token|secret|pass|pwd|auth|sas|cred|key|code|session|signature|ticket|jwt|hmac"
)
_DATABASES = re.compile(r"^(postgres|mysql|mssql|sqlite|oracle)")


def masked(text: str) -> str:
    """The text, in which no URL shows a user, a password, a signature or a token any more.

    Rather too much of a text is masked than too little.
    """
    if "://" in text:
        words = _BETWEEN_WORDS.split(text)
        text = "".join(_masked_word(word) if "://" in word else word for word in words)
    if "=" in text or ":" in text:
        text = _AUTHORIZATION.sub(r"\1...", text)
        text = _KEYS.sub(r"\1...", text)
    return _BEARER.sub(r"\1...", text)


def _masked_word(word: str) -> str:
    user = _user(word)
    if user is not None:
        word = f"{word[: user.start]}...{word[user.stop :]}"
    found = re.compile(r"[?#]").search(word, word.find("://") + 3)
    if found is None:
        return word
    query = word[found.start() :]
    said = query.rstrip(".,:;)]}")
    return f"{word[: found.start()]}?...{query[len(said) :]}" if is_secret_query(said) else word


def _user(word: str) -> slice | None:
    """Where a user, and a password, stand in a word that holds a URL.

    An AWS secret has a "/" in every second key, and other passwords have "?", "#" and "@", so they
    may look like a path: from `scheme://name:` to the last "@" all is theirs, unless a port follows
    that colon.
    """
    last, at = word.rfind("@"), word.find("://")
    while last > at >= 0:
        begin = at + 3
        ends = _NAME_ENDS.search(word, begin)
        kind = ends.group() if ends is not None and word[begin] != "[" else "/"
        if ends is not None and kind == ":":
            scheme = re.split(r"[^A-Za-z0-9+.-]", word[max(0, at - 20) : at])[-1].lower()
            port = _PORT.match(word, ends.end()) if scheme not in _WITHOUT_PORTS else None
            kind = "@" if port is None or word.find("/", last) > 0 else "/"
        if kind == "@":
            return slice(begin, last)
        at = word.find("://", begin)
    return None


def printable(text: str) -> str:
    """The text with control characters, and those that turn the direction of writing, escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char in "\n\t" or char.isprintable() or char == " " else _escaped(char)
        for char in text
    )


def _escaped(char: str) -> str:
    return ascii(char)[1:-1]


def safe(text: str) -> str:
    """What may be printed: no secret, and nothing that a terminal would obey."""
    return printable(masked(text))


def one_line(text: str) -> str:
    """The same on one line, for a name that somebody else chose."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def markdown(text: str) -> str:
    """A name that somebody else chose, for a Markdown table: it can open no tag and no cell."""
    return re.sub(r"([\\`|<>*_\[\]&#!])", lambda m: f"&#{ord(m.group())};", one_line(text))


def is_secret_query(url: str, *, by_name: bool = False) -> bool:
    """Whether what follows `?` or `#` in a URL may be a signature or a token.

    by_name: only what a name says; a picture's address has long values that open nothing.
    """
    tail = re.split(r"[?#]", url, maxsplit=1)[1:]
    for part in re.split(r"[&;?#]", tail[0]) if tail else ():
        name, equal, value = part.partition("=")
        value = unquote(value)
        if _SECRET_NAME.search(unquote(name)) and value:
            return True
        if not by_name and not _HARMLESS_VALUE.fullmatch(value if equal else unquote(name)):
            return True
    return False


def secret_in(text: str, *, by_name: bool = False) -> str | None:
    """What kind of secret a flag or a key of a configuration holds, None for none.

    by_name: see `is_secret_query`.
    """
    for word in text.split():
        word = _IPV6.sub("://localhost", word)
        if re.match(r"[a-z0-9]+::", word) or ("::" in word and "://" in word):
            return "a chained URL (with ::), behind which another one hides"
        scheme = _SCHEME.match(word)
        if scheme is None:
            continue
        user = _user(word)
        # A database's name for itself, without a password, is written as everybody does.
        if user is not None and not (_DATABASES.match(word) and ":" not in word[user]):
            return "a password" if ":" in word[user] else "a user, which may be a token"
        if not scheme.group().startswith("s3") and is_secret_query(word, by_name=by_name):
            return "a signature or a token"
    return None


def is_control(char: str) -> bool:
    """Whether a character would be obeyed, not shown."""
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
