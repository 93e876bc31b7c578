"""Keys as flags: their names, those that somebody may have meant, and a run's own command line."""

import inspect
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.config.train import TrainConfig
from pipeline.errors import ConfigError
from pipeline.masking import shell_word
from pipeline.nearest import nearest

_OTHER_WORDS = {"epochs": "steps"}
"""What people ask for elsewhere, where no likeness of letters leads."""
_MOST_NEAR = 3
"""Of likely names in a message: more of them is a list to search."""


def keys_of(
    config_type: type[BaseModel], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Each key that holds a value, sections followed."""
    for name, info in config_type.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys_of(kind, (*above, name))
        else:
            yield (*above, name), info


def flag_name(path: Sequence[str]) -> str:
    """`("optimizer", "learning_rate")` as `--optimizer.learning-rate`."""
    return "--" + ".".join(path).replace("_", "-")


def near_names(word: str, names: Sequence[str]) -> list[str]:
    """Which of dotted names (`optimizer.learning-rate`) `word` may mean, the best first: 3 at most.

    By the last part, its initials (`lr`), a part of it (`batch-size`), or likeness.
    """
    leaves = {each: each.rpartition(".")[2] for each in names}
    last = word.rpartition(".")[2]
    found = [
        *(each for each in names if each == _OTHER_WORDS.get(word)),
        *(each for each in names if leaves[each] == last),
        *(each for each in names if _initials(leaves[each]) == word),
        *(each for each in names if each.endswith(f"-{word}") or each.startswith(f"{word}-")),
        *nearest(word, names, _MOST_NEAR),
        *(each for near in nearest(last, leaves.values(), 1, 0.7)
          for each in names if leaves[each] == near),
    ]  # fmt: skip
    return list(dict.fromkeys(found))[:_MOST_NEAR]


def refuse_others(kind: type, others: Collection[str]) -> None:
    """Raises `ConfigError` for arguments of Python's callers that `kind` does not take."""
    if not others:
        return
    known = [name.replace("_", "-") for name in inspect.signature(kind).parameters]
    argument = next(iter(others))
    likely = [near.replace("-", "_") for near in near_names(argument.replace("_", "-"), known)]
    meant = f" Did you mean {' or '.join(f'`{each}=`' for each in likely)}?" if likely else ""
    raise ConfigError(f"{kind.__name__}: has no argument `{argument}=`.{meant}")


def training_command(config: TrainConfig) -> str:
    """`python -m jobs.train ...` with each flag that is not what it is by default."""
    return f"python -m jobs.train {' '.join(map(shell_word, _given(config)))}"


def _given(config: TrainConfig) -> Iterator[str]:
    for path, info in keys_of(TrainConfig):
        value: Any = config
        for name in path:
            value = getattr(value, name)
        if value == info.default or value is False:
            continue
        yield flag_name(path)
        if value is not True:
            yield from map(str, value if isinstance(value, tuple) else [value])


def _initials(words: str) -> str:
    return "".join(word[0] for word in words.split("-") if word) if "-" in words else ""
