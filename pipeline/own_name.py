"""How this program was started, `vae NAME` or `python -m jobs.NAME`: its advice is typed so."""

import re
import sys


def program() -> str:
    """The words before this job's flags."""
    name = _module() or "jobs"
    return f"vae {name.removeprefix('jobs.')}" if _is_vae() else f"python -m {name}"


def as_typed(text: str) -> str:
    """The text with the commands that stand in backticks in the form that was typed.

    Who typed neither, in a notebook say, reads them as they are written.
    """
    if _is_vae():
        return text.replace("`python -m jobs.", "`vae ")
    if (_module() or "").startswith("jobs."):
        return re.sub(r"`vae (?=[a-z])", "`python -m jobs.", text)
    return text


def _is_vae() -> bool:
    # Its entry point is imported; `python -m jobs` runs that file as `__main__`.
    return "jobs.__main__" in sys.modules


def _module() -> str | None:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else None
