"""YAML as far as a configuration needs it: what JSON can say, and no more.

Left out is what makes nine lines expand to 10^9 words (aliases), hides one key behind another,
builds objects (tags), or means something else than it shows: `1:30` is no number to the base 60,
`010` no eight, `no` a word, and a date a word.
"""

import re
from typing import Any

import yaml

_MOST_DIGITS = 19
"""2^63 has as many; longer ones cost their square to read."""
_MOST_DEPTH = 20
"""Sections lie two deep."""
_LONGEST_KEY = 100
"""Characters; the names of all knobs are shorter."""
_TAG = "tag:yaml.org,2002:"


def parse_plain(text: str) -> Any:
    """The value of one document; raises `ValueError` that says in one line what is wrong."""
    try:
        return yaml.load(text, _PlainLoader)  # noqa: S506 - derived from the safe one
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:300].replace("'\\t'", "a tab (`\\t`)")
        raise ValueError(f"not YAML: {said}") from None


class _PlainLoader(yaml.SafeLoader):
    """Its resolvers and constructors are set below: none of the library's are left."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuses aliases, tags, and nesting deeper than any configuration's."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read here: write the value out")
        tag = getattr(self.peek_event(), "tag", None)  # type: ignore[no-untyped-call]
        if tag not in (None, "!"):
            raise yaml.YAMLError(f"tags ({tag[:100]!r}) are not read here: write the value alone")
        self._depth = getattr(self, "_depth", 0) + 1
        if self._depth > _MOST_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {_MOST_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Keys are text. Refuses one that is there twice: only one of its values would count."""
        found = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError("a key is a list or a mapping, and no word")
            if len(key.value) > _LONGEST_KEY:
                raise yaml.YAMLError(f"a key of {len(key.value):,} characters")
            if key.value in found:
                raise yaml.YAMLError(f"the key {key.value!r} is there twice")
            found[key.value] = self.construct_object(value, deep=True)
        return found


def _whole(loader: Any, node: Any) -> int:
    digits = loader.construct_scalar(node).replace("_", "").lstrip("+")
    if len(digits.lstrip("-")) > _MOST_DIGITS:
        raise yaml.YAMLError(f"a whole number of {len(digits.lstrip('-'))} digits")
    return int(digits)


def _number(loader: Any, node: Any) -> float:
    text = loader.construct_scalar(node).replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _truth(loader: Any, node: Any) -> bool:
    return bool(loader.construct_scalar(node).lower() == "true")


_PlainLoader.yaml_implicit_resolvers = {}
_PlainLoader.yaml_constructors = {
    f"{_TAG}null": yaml.SafeLoader.construct_yaml_null,
    f"{_TAG}bool": _truth,
    f"{_TAG}int": _whole,
    f"{_TAG}float": _number,
    f"{_TAG}str": yaml.SafeLoader.construct_yaml_str,
    f"{_TAG}seq": yaml.SafeLoader.construct_yaml_seq,
    f"{_TAG}map": yaml.SafeLoader.construct_yaml_map,
}
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
):
    _PlainLoader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"(?:{_pattern})$"), _first)
