"""Configurations as files: recipes by name, YAML of one's own, and how they are laid upon another.

Flags and Python's keywords are laid upon both.
"""

from collections.abc import Mapping
from pathlib import Path

from pipeline import storage
from pipeline.config.plain_yaml import parse_plain
from pipeline.errors import ConfigError, StorageError
from pipeline.json_value import Json, JsonValue
from pipeline.masking import shell_word
from pipeline.nearest import nearest

_RECIPES = Path(__file__).with_name("recipes")


def recipes() -> list[str]:
    """The names that `--recipe` takes."""
    return sorted(path.stem for path in _RECIPES.glob("*.yaml"))


def read_recipe(name: str, flag: str = "--recipe") -> dict[str, JsonValue]:
    """What a recipe says; raises `ConfigError` with those that there are, naming `flag`."""
    known = recipes()
    if name in known:
        return read_yaml(_RECIPES / f"{name}.yaml", flag)
    near = [*nearest(name, known, cutoff=0.4), *known][0]
    meant = f"{flag} {shell_word(near)}" if flag.startswith("--") else f'{flag}="{near}"'
    raise ConfigError(
        f"{flag} {name}: there is no such recipe. Did you mean `{meant}`? There are: "
        f"{', '.join(known)}."
    )


def merge(base: Json, over: Json) -> dict[str, JsonValue]:
    """`base` with the keys of `over` laid upon it, section by section."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = (
            merge(below, value)
            if isinstance(value, Mapping) and isinstance(below, Mapping)
            else value
        )
    return merged


def read_yaml(path: Path, flag: str) -> dict[str, JsonValue]:
    """A file's mapping; raises `ConfigError` for anything else, naming `flag`."""
    try:
        text = storage.read_bounded(str(path), MOST_YAML_BYTES).decode()
        values = parse_plain(text)
    except StorageError as error:
        beside = sorted(each.name for each in path.absolute().parent.glob("*.y*ml"))
        near = [] if path.name in beside else nearest(path.name, beside)
        said = f" Did you mean `{flag} {shell_word(str(path.with_name(near[0])))}`?" if near else ""
        raise ConfigError(f"{flag} {error}{said} Name a readable YAML file.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{flag} {path}: not YAML: it is no UTF-8. Save it as UTF-8.") from None
    except ValueError as error:
        raise ConfigError(f"{flag} {path}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{flag} {path}: holds no mapping of keys to values.")
    return values


MOST_YAML_BYTES = 2**20
"""A configuration has some KB: what is larger is another file."""
