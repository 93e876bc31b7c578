"""What no message may show: secrets in URLs, and characters that a terminal would obey.

Errors, log lines and printed lines all pass through here, so that no place has to think of it.
"""

import os
import re
import shlex
import unicodedata
from collections.abc import Sequence
from urllib.parse import unquote

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BETWEEN_WORDS = re.compile(r"([\s'\"<>|]+)")
_MARK = re.compile(r"(?::|(?<![\w:/.]))//")
"""Behind it a host or a user begins; a URL may come without its scheme."""
_ENCODED_USER = re.compile(r"(?i)(%3a%2f%2f)(?:(?!%2f)\S)*%40")
_AT = re.compile(r"(?<![^\s'\"(`=\[,])models:/[^\s@'\"]{0,300}@|@")
"""The "@" of a registered model's alias ends no user."""
_NAME = re.compile(r"[^/@:]*")
_PORT = re.compile(r"\d{1,5}(?![A-Za-z0-9_%+~$!*=^@-])")
_HOST = re.compile(r"localhost|[\w-]+(\.[\w-]+)+")
_WITHOUT_PORTS = ("s3", "s3a", "gs", "gcs")
_NAMES = (
    r"secret|passw(?:or)?d|passphrase|pwd|token|api[_-]?key|access[_-]?key|private[_-]?key|"
    r"credentials?|signature|(?<![A-Za-z])sig"
)
# Everything is bounded: the text may be a stranger's.
_NAMED = rf"[A-Za-z0-9_-]{{0,200}}(?:{_NAMES})(?:[_-][A-Za-z0-9_-]{{0,200}})?"
_NEXT = r"[&;,]\\*['\"]?[\w.-]+\\*['\"]?[=:]"
"""Where another setting begins behind this one's value."""
_ENDS = r"[`'\")\]}.,:;&]{0,8}(?:\s|$)"
# The backtick that ends a command is kept: without it, nobody knows where that ends.
_VALUE = (
    r"(?!\.\.\.(?!\w))(?P<q>['\"]).{0,2000}?(?P=q)(?=[\s,;&)\]}.:`]|$)"
    rf"|(?!\.\.\.(?!\w))(?:(?!{_NEXT})\S)+?(?={_ENDS}|{_NEXT})"
)
_KEYS = re.compile(
    rf"(?i)(?P<name>(?<![A-Za-z0-9_-]){_NAMED}\\*['\"]?\s*[=:]\s*)(?P<value>{_VALUE})"
)
_FLAGS = re.compile(
    rf"(?i)(?P<name>(?<![\w-])--?{_NAMED}(?![\w=:-])\\*['\"]?(?:\s*,\s*|[ \t]+|\s*\n\s*-\s+))"
    rf"(?P<value>(?!--|[-,]\s)(?:{_VALUE}))"
)
"""A secret that is a word of its own behind its flag, in a shell's line or a list of words."""
_AUTHORIZATION = re.compile(
    r"(?i)(\bauthorization\\*['\"]?\s*[:=]\s*\\*['\"]?(?:(?:bearer|basic|digest|token)\s+)?)"
    r"(?P<value>[^\s'\",;]+)"
)
_BEARER = re.compile(r"(?i)\b((?:bearer|basic)\s+)[A-Za-z0-9+/=._~-]{8,}")
_IPV6 = re.compile(r"://\[[0-9A-Fa-f:.%]*\]")
_HARMLESS_VALUE = re.compile(r"[A-Za-z0-9._-]{0,8}")
_SECRET_NAME = re.compile(
    r"(?i)sig|token|secret|pass|pwd|auth|sas|cred|key|code|session|signature|ticket|jwt|hmac"
)
_DATABASES = re.compile(r"^(postgres|mysql|mssql|sqlite|oracle)")
_PLAIN_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,15}")
_VARIABLE = re.compile(
    r"(?i).*(secret|token|passw|_pwd$|credential|private_?key|api_?key|access_?key$|_pat$|dsn).*"
)
_NO_SECRET = re.compile(r"(?i).*_(path|file|dir|folder|name|mode|type|id|expiration|ttl|endpoint)")
_SAID_ELSEWHERE = re.compile(
    r"(?i)[_-](path|file|dir|folder|name|mode|type|kind|env|variable|len(gth)?|size|count|ttl)$"
)
_NO_VALUE = re.compile(
    r"(?i)|\$.*|<.*>|\.\.\.|os\.(environ|getenv).*|true|false|none|null|yes|no|auto|[+-]?\d{0,5}(\.\d{0,5})?(e[+-]?\d+)?"
)
"""What a variable holds, a placeholder, a switch or a measure: no secret."""
_MLFLOW_PAGE = re.compile(r"#/experiments/\d{1,20}/runs/[0-9a-f]{32}(\?workflowType=[a-z_]{1,40})?")
"""A page of MLflow's that is printed to be opened: its numbers open nothing by themselves."""
_LOGIN = re.compile(
    r"((?<![\w-])(?:-u|--user|--proxy-user)['\"]?[\s=,]\s*['\"]?)(?!\d+:\d+(?:\W|$))"
    r"[^\s:$'\"]+:[^\s$'\"][^\s]*"
)
_FORMS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*|\beyJ[\w-]{8,}\.[\w-]+\.?[\w-]*"
    r"|\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{16,}"
    r"|(?:hf_|npm_|sk-(?:proj-|ant-)?)[A-Za-z0-9]{20,}|dapi[0-9a-f]{30,})"
)
"""What looks like nothing else, whatever stands before it."""
_LONGEST_WORD = 5000
_LEAST = 8
"""Characters of an environment's secret: a shorter one would stand in too many words."""


def masked(text: str) -> str:
    """The text, in which no URL shows a user, a password, a signature or a token any more.

    Nor what this process's environment keeps secret, however it got there. Rather too much of a
    text is masked than too little.
    """
    for secret in _own_secrets():
        if secret in text:
            text = text.replace(secret, "...")
    if "//" in text or "%2" in text:
        text = "\n".join(map(_masked_line, text.split("\n")))
    if "=" in text or ":" in text:
        text = _AUTHORIZATION.sub(r"\1...", text)
        text = _KEYS.sub(_hidden, text)
    if "-" in text or "_" in text or "eyJ" in text:
        text = _FLAGS.sub(_hidden, text)
        text = _LOGIN.sub(r"\1...", text)
        text = _FORMS.sub("...", text)
    return _BEARER.sub(r"\1...", text)


def _hidden(found: re.Match[str]) -> str:
    quote = found["q"] or ""
    return f"{found['name']}{quote}...{quote}"


def _own_secrets() -> list[str]:
    """What the environment's variables of such names hold, and the users in its URLs."""
    found = set()
    for name, value in os.environ.items():
        if _VARIABLE.fullmatch(name) and not _NO_SECRET.fullmatch(name):
            found.add(value)
        if "://" in value and "@" in value:
            user = _user(value.replace("\n", " "))
            said = value[user] if user is not None else ""
            found |= {said, said.partition(":")[2]}
    found |= {unquote(value) for value in found if "%" in value}
    return sorted((each for each in found if len(each) >= _LEAST), key=len, reverse=True)


def _masked_line(line: str) -> str:
    user = _user(line)
    if user is not None:
        line = f"{line[: user.start]}...{line[user.stop :]}"
    line = _ENCODED_USER.sub(r"\1...%40", line)
    words = _BETWEEN_WORDS.split(line)
    return "".join(_masked_query(word) if "//" in word else word for word in words)


def _masked_query(word: str) -> str:
    found = re.compile(r"[?#]").search(word, word.find("//") + 2)
    if found is None:
        return word
    query = word[found.start() :]
    said = query.rstrip(".,:;)]}`")
    if _MLFLOW_PAGE.fullmatch(said):
        return word
    return f"{word[: found.start()]}?...{query[len(said) :]}" if is_secret_query(said) else word


def _user(line: str) -> slice | None:
    """Where the first user of a line's URLs stands, with all that may be a password.

    That is all up to the last "@": of the URLs between them, none is looked for.
    """
    last = max((at.end() - 1 for at in _AT.finditer(line) if len(at.group()) == 1), default=-1)
    for mark in _MARK.finditer(line, 0, last + 1):
        begin = mark.end()
        was_masked = line.startswith("...@", begin) and "@" not in _word(line, begin + 4)
        if begin <= last and not was_masked and _is_user(line, begin, last):
            return slice(begin, last)
    return None


def _word(line: str, begin: int) -> str:
    """Up to the next blank or quote."""
    ends = _BETWEEN_WORDS.search(line, begin, begin + _LONGEST_WORD)
    return line[begin : ends.start() if ends is not None else begin + _LONGEST_WORD]


def _is_user(line: str, begin: int, last: int) -> bool:
    """Whether a user begins there, which then ends at the last "@" of its line.

    An AWS secret has a "/" in every second key, and other passwords have "?", "#", "@", quotes and
    blanks, so they may look like a path, or like the end of a URL: from `scheme://name:` to the
    last "@" all is theirs, unless a port follows that colon, or a host is all that there is.
    """
    named = _NAME.match(line, begin)
    assert named is not None, "it may be empty"
    name, at = named.group(), named.end()
    kind, behind = line[at : at + 1], line[at + 1 : at + 2]
    if name[:1].isspace() or name.startswith("[") or '","' in name or kind not in ("@", ":"):
        return False
    if kind == "@":
        return not re.search(r"\s", name)
    if line.startswith("//", at + 1):
        return False
    is_host = _HOST.fullmatch(name) is not None
    if behind.isspace() or re.search(r"\s", name):
        return not behind.isspace() if re.search(r"\s", name) else not is_host
    scheme = re.split(r"[^A-Za-z0-9+.-]", line[max(0, begin - 23) : max(0, begin - 3)])[-1].lower()
    port = _PORT.match(line, at + 1) if scheme not in _WITHOUT_PORTS else None
    if port is None:
        return True
    word = _word(line, port.end())
    in_word = word.rfind("@")
    if in_word >= 0 and word[0] in "/?#":
        return "/" in word[in_word:]
    # Behind a host's port stands what is said of it.
    return in_word >= 0 or not (is_host or line[last - 1].isspace())


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


def safe_line(text: str) -> str:
    """What may be printed as one line, whoever chose the names in it."""
    return one_line(masked(text))


def shell_word(text: str) -> str:
    """A name or a URL as one word of a shell's command that is printed to be pasted."""
    return shlex.quote(safe_line(text))


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
    text = _IPV6.sub("://localhost", text)
    for word in text.split():
        if re.match(r"[a-z0-9]+::", word) or ("::" in word and "://" in word):
            return "a chained URL (with ::), behind which another one hides"
    for line in text.splitlines():
        user = _user(line)
        said = line[user] if user is not None else ""
        # A database's name for itself, without a password, is written as everybody does.
        if user is not None and not (_DATABASES.match(line) and _PLAIN_USER.fullmatch(said)):
            return "a password" if ":" in said else "a user, which may be a token"
        if _ENCODED_USER.search(line):
            return "a user, which may be a token"
        for word in _BETWEEN_WORDS.split(line):
            scheme = _SCHEME.search(word)
            # A key of a bucket may hold a "?": only what its name calls a secret is one.
            named = by_name or (scheme is not None and scheme.group().startswith("s3"))
            if scheme is not None and is_secret_query(word[scheme.end() :], by_name=named):
                return "a signature or a token"
    return None


def secret_in_command(words: Sequence[str]) -> str | None:
    """What kind of secret a command holds anywhere, the words of its shell's lines among them.

    Unlike their values, names of variables (`$TOKEN`) and of files may be said.
    """
    for word in words:
        if (found := secret_in(word)) is not None:
            return found
    line = " ".join(words)
    for form in (_KEYS, _FLAGS):
        at = 0
        while (said := form.search(line, at)) is not None:
            name = re.sub(r"[\\'\"=:,\s]+(-\s+)?$", "", said["name"])
            value = said["value"].strip("\\'\"")
            if not _SAID_ELSEWHERE.search(name) and not _NO_VALUE.fullmatch(value):
                return f"a secret, behind {one_line(name[-60:])}"
            at = said.start("value")
    bearer, sent = _BEARER.search(line), _AUTHORIZATION.search(line)
    is_token = bearer is not None and re.search("[0-9A-Z=]", bearer.group()[6:]) is not None
    is_sent = sent is not None and not sent["value"].startswith("$")
    if is_token or is_sent or _FORMS.search(line):
        return "a token"
    if any(secret in line for secret in _own_secrets()):
        return "a secret of this environment"
    return "a password" if _LOGIN.search(line) else None


def is_control(char: str) -> bool:
    """Whether a character would be obeyed, not shown."""
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
