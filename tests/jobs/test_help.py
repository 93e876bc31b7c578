"""`--help`: what is used first stands first, and each flag that it names is one that parses."""

import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pipeline.config
from jobs.command import parse_flags
from jobs.flags import common_flags
from jobs.help import help_text
from pipeline.config import EncodeConfig, PackConfig, Section, SubmitConfig, TrainConfig

ROOT = Path(__file__).parent.parent.parent
JOBS = [
    getattr(pipeline.config, f"{path.stem.title()}Config")
    for path in sorted((ROOT / "pipeline/config").glob("[!_]*.py"))
    if hasattr(pipeline.config, f"{path.stem.title()}Config")
]


def flags_of(text: str) -> list[str]:
    return re.findall(r"^  (--[a-z_.-]+)", text, re.MULTILINE)


def keys_of(config_type: type[Section], prefix: str = "") -> list[str]:
    """The flags of a model and of the sections in it, told from the models alone."""
    found = []
    for name, info in config_type.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found += keys_of(kind, f"{prefix}{name}.")
        else:
            found.append(f"--{prefix}{name}".replace("_", "-"))
    return found


def test_every_job_is_looked_at() -> None:
    jobs = {path.stem for path in (ROOT / "jobs").glob("[!_]*.py")}
    assert len(JOBS) == len(
        jobs - {"command", "completion", "flags", "help", "interrupts", "refusals"}
    )


@pytest.mark.parametrize("config_type", JOBS)
def test_the_help_names_each_flag_of_its_job_once(config_type: type[Any]) -> None:
    named = flags_of(help_text(config_type, "p"))
    common = [told.split()[0] for told, _ in common_flags(config_type)]
    assert sorted(named) == sorted([*keys_of(config_type), *common])


def test_a_training_shows_a_dozen_flags_first_and_the_others_below() -> None:
    first, rest = help_text(TrainConfig, "p").split("Used less often:")
    assert flags_of(first) == [
        "--data", "--run", "--storage", "--steps", "--global-batch-size", "--image-size",
        "--workers", "--holdout", "--checkpoint-every", "--evaluate-every", "--init", "--dry-run",
    ]  # fmt: skip
    assert rest.index("--seed") < rest.index("--model.*: The network") < rest.index("--model.kind")
    assert len(flags_of(rest)) > 40


@pytest.mark.parametrize("config_type", [TrainConfig, EncodeConfig, PackConfig, SubmitConfig])
def test_what_comes_first_are_keys_of_the_job_and_what_it_can_not_do_without(
    config_type: type[Any],
) -> None:
    fields = config_type.model_fields
    assert set(config_type.first) <= set(fields)
    assert len(set(config_type.first)) == len(config_type.first) <= 12
    assert {name for name, info in fields.items() if info.is_required()} <= set(config_type.first)


def test_a_narrow_terminal_gets_narrow_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, most in ((70, 70), (400, 100)):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = help_text(TrainConfig, "p").splitlines()
        assert max(map(len, lines)) <= most
        assert max(map(len, lines)) > most - 10


def test_the_help_says_choices_defaults_and_what_is_required() -> None:
    text = " ".join(help_text(TrainConfig, "python -m jobs.train").split())
    assert text.startswith("usage: python -m jobs.train --data TEXT --run TEXT [flags]")
    assert "--freeze {encoder,decoder} The part" in text
    assert (
        "--steps INT Optimiser steps in all; more continue a finished run. (default: 1000)" in text
    )
    assert "--workers INT|TEXT Ray Train workers" in text


def test_a_flag_that_the_help_shows_as_a_switch_takes_no_value() -> None:
    values, _ = parse_flags(TrainConfig, ["--dry-run", "--run", "r", "--data", "d"], "p")
    assert (values["dry_run"], values["run"], values["data"]) == (True, "r", "d")


def test_help_takes_less_than_a_second_of_a_core() -> None:
    """CPU time, the least of three: other processes on the machine are not the help's fault."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "jobs.train", "--help"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 1, spent
