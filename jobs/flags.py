"""Flags to the same dictionary as a YAML file gives: `--model.kind mlp` is {model: {kind: mlp}}.

Made from the config models alone. Values stay text, but for choices and numbers that pydantic
would not take from text; pydantic checks the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from pipeline.config import TrainConfig
from pipeline.config.command_line import flag_name, keys_of, near_names
from pipeline.errors import ConfigError
from pipeline.json_value import JsonValue
from pipeline.masking import shell_word
from pipeline.nearest import did_you_mean

_COMMON = (
    ("--config FILE", "A YAML file with the same keys."),
    ("--print-config", "Write the effective YAML to stdout, and end."),
    ("--json", "End with the result as a line of JSON, on a terminal too."),
    ("--quiet", "No progress and no notes: warnings and errors alone."),
    ("--log-format {text,json}", "Log lines for people, or a JSON each."),
)
_RECIPE = ("--recipe NAME", "Begin with a recipe's configuration (docs/recipes.md).")


@dataclass(frozen=True)
class Flag:
    """One flag: where its value goes, and of which type that is."""

    path: tuple[str, ...]
    kind: Any

    @property
    def is_switch(self) -> bool:
        """Takes no value: `--flip`, `--no-flip`."""
        return self.kind is bool

    @property
    def takes_many(self) -> bool:
        """Takes all words up to the next flag."""
        return get_origin(self.kind) is tuple or any(
            get_origin(each) is tuple for each in get_args(self.kind)
        )


def common_flags(config_type: type[BaseModel]) -> tuple[tuple[str, str], ...]:
    """The flags that jobs have beside their own, and what `--help` says of them."""
    return (_RECIPE, *_COMMON) if config_type is TrainConfig else _COMMON


def flags_of(config_type: type[BaseModel]) -> dict[str, Flag]:
    """All flags of a job, those that every job has among them."""
    known = {}
    for told, _ in common_flags(config_type):
        name, _, value = told.partition(" ")
        known[name] = Flag((name[2:].replace("-", "_"),), str if value else bool)
    known |= {flag_name(path): Flag(path, info.annotation) for path, info in keys_of(config_type)}
    # What stands behind `--` is no flag.
    known.pop("--command", None)
    return known


def read_flags(
    config_type: type[BaseModel], words: Sequence[str], program: str
) -> dict[str, JsonValue]:
    """The flags that were given, as a dictionary of sections. Raises `ConfigError`."""
    known = flags_of(config_type)
    found: dict[str, JsonValue] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, inside = word.partition("=")
        if not name.startswith("--"):
            meant = _meant(config_type, found, word)
            raise ConfigError(f"{word!r}: stands behind no flag.{meant} {_help(program)}")
        name = name.replace("_", "-")
        flag = known.get(name)
        negated = known.get(f"--{name[5:]}") if name.startswith("--no-") else None
        if flag is None and negated is not None and negated.is_switch:
            _put(found, negated.path, False)
            continue
        if flag is None:
            raise ConfigError(
                f"{name}: there is no such flag.{_near(name, known)} {_help(program)}"
            )
        given = [inside] if equals else _values(left, flag)
        if not flag.is_switch and not flag.takes_many and not given:
            raise ConfigError(
                f"{name}: a value belongs behind it: `{name} {kind_name(flag.kind)}`."
            )
        if flag.is_switch:
            _put(found, flag.path, inside if equals else True)
        elif flag.takes_many:
            _put(found, flag.path, [_value(word, flag.kind) for word in given])
        else:
            _put(found, flag.path, _value(given[0], flag.kind))
    return found


def kind_name(kind: Any) -> str:
    """What stands behind a flag: {a,b} of choices, INT, FLOAT, TEXT; nothing after a switch."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return "|".join(dict.fromkeys(kind_name(each) for each in inner if each is not NoneType))
    if origin is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if origin is tuple:
        many = inner[-1] is Ellipsis
        return f"{kind_name(inner[0])} ..." if many else " ".join(map(kind_name, inner))
    if kind is bool:
        return ""
    if origin is not None:  # Annotated
        return kind_name(inner[0])
    return {int: "INT", float: "FLOAT"}.get(kind, "TEXT")


def choices_of(kind: Any) -> list[str]:
    """The words that a flag takes, where it takes a few only."""
    if get_origin(kind) is Literal:
        return [str(each) for each in get_args(kind)]
    return [each for inner in get_args(kind) for each in choices_of(inner)]


def _values(left: list[str], flag: Flag) -> list[str]:
    """Takes off `left` what belongs to the flag."""
    given: list[str] = []
    while left and not flag.is_switch and not left[0].startswith("--"):
        if given and not flag.takes_many:
            break
        given.append(left.pop(0))
    return given


def _value(text: str, kind: Any) -> JsonValue:
    """A word as its kind wants it; what does not fit stays text, and pydantic says so."""
    inner = get_args(kind)
    if text == "None" and NoneType in inner:
        return None
    for each in (kind, *inner):
        if get_origin(each) is Literal:
            return next((option for option in get_args(each) if str(option) == text), text)
    if {int, str} <= set(inner) and text.isdecimal():
        return int(text)
    return text


def _put(found: dict[str, JsonValue], path: Sequence[str], value: JsonValue) -> None:
    for name in path[:-1]:
        below = found.setdefault(name, {})
        assert isinstance(below, dict), "sections and values have different names"
        found = below
    found[path[-1]] = value


def _near(name: str, known: Mapping[str, Flag]) -> str:
    near = near_names(name[2:], [each[2:] for each in known])
    return f" Did you mean {' or '.join(f'`--{each}`' for each in near)}?" if near else ""


def _meant(config_type: type[BaseModel], found: Mapping[str, JsonValue], word: str) -> str:
    """Behind which flag a word may belong: the first one that was not given."""
    if "command" in config_type.model_fields:
        return " What is to run stands behind `--`."
    fields = config_type.model_fields
    required = [name for name, info in fields.items() if info.is_required()]
    own = [name for name in config_type.__annotations__ if name in fields]
    first = (*getattr(config_type, "first", ())[:1], *required)
    for name in first or own[:1]:
        if name not in found:
            return did_you_mean(f"{flag_name([name])} {shell_word(word)}")
    return ""


def _help(program: str) -> str:
    return f"`{program} --help` tells all flags."
