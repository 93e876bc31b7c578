"""What no message may show: secrets in URLs, and characters that a terminal would obey.

Errors, log lines and printed lines all pass through here, so that no place has to think of it.
"""

import re
import unicodedata
from urllib.parse import unquote

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
# An AWS secret has a "/" in every second key, so a user and password may look like a path. What
# stands before the last "@" of a word that begins `scheme://name:` is masked, ports excepted.
_USER = re.compile(
    rf"({_SCHEME})(?:[^\s/@'\"<>|]*@|[^\s/@:'\"<>|]*:(?!\d{{1,5}}(?:[/?#\s]|$))\S*@)"
)
_PORT_AND_USER = re.compile(rf"({_SCHEME})[^\s/@:]*:\d{{1,5}}/[^\s@?#]*@(?=[^\s/]*/)")
_QUERY = re.compile(rf"({_SCHEME}[^\s?#'\"<>|]*)[?#][^\s'\"<>|]*")
_KEYS = re.compile(
    r"(?i)\b(aws_secret_access_key|aws_session_token|secret|password|passwd|token|api_?key|sig)"
    r"(['\"]?\s*[=:]\s*)(['\"]?)[^\s'\"&;,]+"
)
# As a header is written, and as Python shows one in a dictionary.
_AUTHORIZATION = re.compile(
    r"(?i)\b(authorization['\"]?\s*[=:]\s*['\"]?(?:(?:bearer|basic)[\s=:]+)?|bearer\s+(?=\S{8}))"
    r"[^\s'\"&;,]+"
)
_HARMLESS_VALUE = re.compile(r"[A-Za-z0-9._-]{0,8}")
_SECRET_NAME = re.compile(
    r"(?i)sig|token|secret|pass|pwd|auth|sas|cred|key|code|session|signature|ticket|jwt|hmac"
)
_DATABASES = re.compile(r"^(postgres|mysql|mssql|sqlite|oracle)")


def masked(text: str) -> str:
    """The text, in which no URL shows a user, a password, a signature or a token any more."""
    if "://" in text:
        text = _USER.sub(r"\1...@", text)
        text = _PORT_AND_USER.sub(r"\1...@", text)
        text = _QUERY.sub(_masked_query, text)
    text = _AUTHORIZATION.sub(r"\1...", text)
    return _KEYS.sub(r"\1\2\3...", text) if "=" in text or ":" in text else text


def _masked_query(found: "re.Match[str]") -> str:
    whole = found.group()
    return f"{found.group(1)}?..." if is_secret_query(whole) else whole


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


def one_line(text: str) -> str:
    """The same on one line, for a name that somebody else chose."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def markdown(text: str) -> str:
    """A name that somebody else chose, for a Markdown table: it can open no tag and no cell."""
    return re.sub(r"([\\`|<>*_\[\]&#!])", lambda m: f"&#{ord(m.group())};", one_line(text))


def is_secret_query(url: str) -> bool:
    """Whether what follows `?` or `#` in a URL may be a signature or a token."""
    tail = re.split(r"[?#]", url, maxsplit=1)[1:]
    for part in re.split(r"[&;?#]", tail[0]) if tail else ():
        name, equal, value = part.partition("=")
        value = unquote(value)
        if _SECRET_NAME.search(unquote(name)) and value:
            return True
        if not _HARMLESS_VALUE.fullmatch(value if equal else unquote(name)):
            return True
    return False


def secret_in(text: str) -> str | None:
    """What kind of secret a flag or a key of a configuration holds, None for none."""
    for word in text.split():
        scheme = re.match(_SCHEME, word)
        if scheme is None:
            continue
        if "::" in word:
            return "a chained URL (with ::), behind which another one hides"
        user = _USER.match(word) or _PORT_AND_USER.match(word)
        if user is not None and not (_DATABASES.match(word) and ":" not in word[scheme.end() :]):
            whole = user.group()[scheme.end() :]
            return "a password" if ":" in whole else "a user, which may be a token"
        if not scheme.group().startswith("s3") and is_secret_query(word):
            return "a signature or a token"
    if re.match(r"[a-z0-9]+::", text):
        return "a chained URL (with ::), behind which another one hides"
    return None


def is_control(char: str) -> bool:
    """Whether a character would be obeyed, not shown."""
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
