"""What is wrong with a configuration: each key, what was found, what is allowed, and its flag."""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from jobs.flags import choices_of, kind_name
from pipeline.config.command_line import flag_name, keys_of
from pipeline.masking import safe
from pipeline.nearest import nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_MOST_SHOWN = 300
"""Characters of a wrong value: enough to know it again."""


def refusals(config_type: type[BaseModel], error: ValidationError) -> Iterator[str]:
    """A line for each problem."""
    kinds = {path: info.annotation for path, info in keys_of(config_type)}
    for problem in error.errors():
        # Behind a key stands which of its types, or which of its values, was refused.
        path = tuple(str(part) for part in problem["loc"])
        path = next((path[:n] for n in range(len(path), 0, -1) if path[:n] in kinds), path)
        where, flag = ".".join(path) or config_type.__name__, flag_name(path)
        # Masked, then cut: half a URL is not seen as one.
        shown = safe(repr(problem["input"]))[:_MOST_SHOWN]
        if problem["type"] == "extra_forbidden":
            yield f"{where}: unknown key.{_near_key(config_type, path)}"
        elif problem["type"] == "missing":
            yield f"{where}: is required; give `{flag} {kind_name(kinds.get(path))}`."
        elif path not in kinds:
            # Of several keys together: the sentence names their flags.
            yield f"{where}: {problem['msg'].removeprefix('Value error, ')}."
        elif choices := choices_of(kinds[path]):
            near = nearest(str(problem["input"]), choices)
            kind = f"{flag} {path[-1].upper()}"
            hint = f"did you mean `{flag} {near[0]}`?" if near else f"give `{kind}`, one of these:"
            yield f"{where}: {shown} is no choice; {hint} {', '.join(choices)}."
        else:
            said = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
            said = said.replace("String should match pattern", "is not of the form")
            hint = _fitting(flag, problem) or f"another `{flag} {kind_name(kinds[path])}`"
            yield f"{where}: {said}. Found: {shown}. Give {hint}."


def _fitting(flag: str, problem: "ErrorDetails") -> str | None:
    """A name made of what a name may hold, where that is all that is wrong with it."""
    pattern = problem.get("ctx", {}).get("pattern")
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", str(problem["input"])).strip("-._")
    return f"`{flag} {plain}`" if pattern and re.match(pattern, plain) else None


def _near_key(config_type: type[BaseModel], path: Sequence[str]) -> str:
    for name in path[:-1]:
        info = config_type.model_fields.get(name)
        if info is None or not isinstance(info.annotation, type):
            return ""
        config_type = info.annotation
    known = list(config_type.model_fields)
    near = nearest(path[-1], known, cutoff=0.4)
    return f" Did you mean `{near[0]}`?" if near else f" Known: {', '.join(known)}."
