"""What `--help` prints: the flags that people use first, then the rest, section by section.

Made from the config models alone.
"""

import shutil
import textwrap
from collections.abc import Iterator, Sequence

from pydantic.fields import FieldInfo

from jobs.flags import common_flags, kind_name
from pipeline.config import Section
from pipeline.config.command_line import flag_name

_FLAG_COLUMNS = 30
"""Most flags with their kind are shorter; longer ones get a line of their own."""
_MOST_COLUMNS = 100
"""Longer lines are hard to read, however wide the terminal is."""


def help_text(config_type: type[Section], program: str) -> str:
    """The whole help of a job, as wide as the terminal, at most 100 columns."""
    width = min(_MOST_COLUMNS, shutil.get_terminal_size().columns)
    own = {n: f for n, f in config_type.model_fields.items() if section_of(f) is None}
    first = [name for name in config_type.first or own if name in own]
    required = [
        f"{flag_name([name])} {kind_name(own[name].annotation)}"
        for name in own
        if own[name].is_required()
    ]
    lines = [" ".join(["usage:", program, *required, "[flags]"]), ""]
    lines += textwrap.wrap((config_type.__doc__ or "").split("\n\n")[0].strip(), width)
    lines += ["", "Flags:", *_rows([(n, own[n]) for n in first], "", width)]
    rest = [(name, info) for name, info in own.items() if name not in first]
    if rest:
        lines += ["", "Used less often:", *_rows(rest, "", width)]
    for name, info in config_type.model_fields.items():
        section = section_of(info)
        if section is not None:
            said = (section.__doc__ or "").partition("\n")[0]
            lines += ["", *textwrap.wrap(f"--{name}.*: {said}", width)]
            lines += _rows(list(section.model_fields.items()), f"{name}.", width)
    lines += ["", "Of every job:"]
    lines += [line for flag, said in common_flags(config_type) for line in _row(flag, said, width)]
    return "\n".join(lines)


def section_of(info: FieldInfo) -> type[Section] | None:
    """The section that a field holds, if it does."""
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _rows(named: Sequence[tuple[str, FieldInfo]], prefix: str, width: int) -> Iterator[str]:
    for name, info in named:
        flag = f"{flag_name([prefix + name])} {kind_name(info.annotation)}".rstrip()
        yield from _row(flag, f"{info.description} {_default(info)}".rstrip(), width)


def _row(flag: str, said: str, width: int) -> list[str]:
    lines = textwrap.wrap(said, max(30, width - _FLAG_COLUMNS - 2))
    told = [" " * (_FLAG_COLUMNS + 2) + line for line in lines]
    if len(flag) <= _FLAG_COLUMNS - 2:
        return [f"  {flag:<{_FLAG_COLUMNS}}" + told[0].lstrip(), *told[1:]]
    # Many choices take lines of their own.
    named = textwrap.wrap(flag.replace(",", ", "), width - 2, subsequent_indent=" " * 4)
    return [*(f"  {line}" for line in named), *told]


def _default(info: FieldInfo) -> str:
    """What holds without the flag; nothing where the help says what None means, or for switches."""
    if info.is_required():
        return "(required)"
    if info.default is None or info.default is False or info.default == ():
        return ""
    many = isinstance(info.default, tuple)
    return f"(default: {' '.join(map(str, info.default)) if many else info.default})"
