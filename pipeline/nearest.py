"""Which of the names that there are somebody may have meant by one that there is not."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """At most `count` of `known`, the likest first; none below a likeness of `cutoff` of 1."""
    return difflib.get_close_matches(word, list(known), n=count, cutoff=cutoff)


def did_you_mean(said: str | None) -> str:
    """`said` as a question in backticks, with the space before it; "" where there is nothing."""
    return f" Did you mean `{said}`?" if said else ""
