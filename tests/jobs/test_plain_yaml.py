"""A configuration's YAML is what it shows, or refused in one line."""

from pathlib import Path

import pytest

from pipeline.config.plain_yaml import parse_plain
from tests.support.hostile import refused


@pytest.mark.parametrize(
    "value",
    ["0x" + "F" * 5000, "9" * 5000, "-" + "9" * 20, "0b" + "1" * 90_000, "1:30:00",
     "0x10", "1:" * 99,
     '!!bool "x"', '!!int ""', '!!int "abc"', '!!float "x"', '!!timestamp "x"', "!!binary '%%%'",
     "!!timestamp 9999-99-99", "2024-13-45", "!!set {a}", "!!omap [a]", "!!omap [a: 1]",
     "!!python/name:os.system", "!own x", "! x", "!<tag:yaml.org,2002:int> 3",
     "&a [*a]", "&a {<<: *a}",
     "{<<: {steps: 3}}", "? [a, b]\n  : 3", "{[a]: 3}", "=", ".inf", "-.INF", ".nan", "1e999",
     "\x00",
     "'\\ud800'", '"\\ud800"', '"\\x1b[2J"', "!!str 3", "!!seq [1]", "!!map {a: 1}", "!!null",
     "[1]"],
)  # fmt: skip
def test_a_value_of_yaml_that_is_no_plain_one_is_refused_in_one_line(
    tmp_path: Path, value: str
) -> None:
    (tmp_path / "c.yaml").write_text(f"steps: {value}\n")
    said = refused("train", "--config", str(tmp_path / "c.yaml"), "--data", "d", "--run", "r")
    assert "ConfigError" in said
    assert len(said) < 1000


@pytest.mark.parametrize(
    "text",
    ["? [a, b]\n: 3", "? 0x" + "F" * 5000 + "\n: 3", "1: 2", "null: 3", "<<: {steps: 3}",
     "!!set {a}", "!!omap [a: 1]", "- a", "3", '"\\e[31mx\\n": 3', "!own {steps: 3}",
     "steps: 1\n'steps': 2", ""],
)  # fmt: skip
def test_what_is_no_plain_mapping_of_yaml_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    said = refused("train", "--config", str(tmp_path / "c.yaml"), "--data", "d", "--run", "r")
    assert "ConfigError" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("value", ["!!bool x", "0x" + "F" * 5000 + ",1", "[,1", "*a,1", "!!int a"])
def test_a_sweep_of_what_is_no_plain_value_is_refused_in_one_line(value: str) -> None:
    refused("train", "--data", "d", "--run", "r", "--sweep", f"steps=2,{value}")


def test_plain_values_are_what_they_show() -> None:
    for text, value in (
        ("3", 3), ("+3", 3), ("-3", -3), ("1_000", 1000), ("3.5", 3.5), ("1.5e-4", 1.5e-4),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("no", "no"),
        ("010", "010"), ("0x10", "0x10"), ("1:30", "1:30"), ("2024-01-02", "2024-01-02"),
        ("1e-4", "1e-4"), ("'3'", "3"), ("[1, a, {b: c}]", [1, "a", {"b": "c"}]), ("<<", "<<"),
        ("9223372036854775807", 2**63 - 1),
    ):  # fmt: skip
        assert parse_plain(f"a: {text}") == {"a": value}
