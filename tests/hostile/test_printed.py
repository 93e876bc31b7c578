"""In what is printed to be pasted a stranger's names are words, and no line begins with them."""

import ast
import logging
import shlex
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pipeline.config import TrainConfig
from pipeline.config.command_line import training_command
from pipeline.errors import PipelineError, RunError
from pipeline.latents.repair_command import encode_again
from pipeline.latents.snapshot import Pointer
from pipeline.log_lines import SafeFormatter
from pipeline.masking import safe_line, shell_word
from pipeline.storage import removal

ROOT = Path(__file__).parents[2]
HOSTILE = [
    "x; touch PWNED", "$(touch PWNED)", "`touch PWNED`", "x' ; touch PWNED ; '", 'x"; touch PWNED',
    "x\ntouch PWNED\n", "x\r\ntouch PWNED", "x && touch PWNED", "x | touch PWNED", "x > PWNED",
    "x # y", "a b", "*", "~root", "x\u2028touch PWNED", "\x1b[2J; touch PWNED", "{a,b}", "!x",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_one_word_of_a_command_and_runs_nothing(name: str, tmp_path: Path) -> None:
    commands = [
        f"echo {shell_word(name)}",
        training_command(TrainConfig(data=name, run="r", storage=name)),
        encode_again(name, POINTER(data=name, model=name)).strip("`"),
        removal(f"/data/{name}"),
    ]
    for command in commands:
        assert "\n" not in command
        assert safe_line(name) in " ".join(shlex.split(command))
        said = command.replace("python ", "echo ", 1).replace("rm ", "echo ", 1)
        subprocess.run(["bash", "-c", said], cwd=tmp_path, check=True, capture_output=True)
    assert list(tmp_path.iterdir()) == []


POINTER = partial(
    Pointer,
    1,
    "0" * 64,
    "0" * 64,
    "s",
    "0" * 64,
    samples=1,
    failed=0,
    filtered=0,
    shards=1,
    complete=True,
)
KNOWN = {
    "shell_word",
    "_line",
    "_self",
    "removal",
    "encode_again",
    "training_command",
    "kind_name",
    "flag_name",
}


def spliced(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Line, what stands before it between backticks, and expression of each value in a command."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        said = ""
        for part in node.values:
            if isinstance(part, ast.Constant):
                said += str(part.value)
            elif said.count("`") % 2:
                assert isinstance(part, ast.FormattedValue)
                if part.conversion == ord("r"):  # A word of Python, whatever is in it.
                    said += "?"
                    continue
                yield node.lineno, said.rpartition("`")[2], ast.unparse(part.value)
                said += "?"


def is_quoted(tree: ast.AST, expression: str) -> bool:
    """Whether it is a call of what quotes, or a name that was given such a call's value."""
    if any(f"{name}(" in expression or f"map({name}" in expression for name in KNOWN):
        return True
    return any(
        isinstance(node, ast.Assign)
        and expression in map(ast.unparse, node.targets)
        and any(f"{name}(" in ast.unparse(node.value) or f"map({name}" in ast.unparse(node.value)
                for name in KNOWN)
        for node in ast.walk(tree)
    )  # fmt: skip


# Numbers, flags and choices of our own, and what quotes in another way.
OURS = {
    "1 if lost else share", "flag", "program", "name", "each", "near[0]", "plain", "kind", "said",
    "config.storage_flag", "kind.__name__", "config.sample", "kinds[0]", "name.replace('_', '-')",
    "likely", "self.max_workers", "self.min_workers", "(share + 1) * workers", "max(1, share // 2)",
    "path.rpartition(':')[2]", "sizes[0]", "_NEXT", "_ENDS", "share", "fits", "RUN_TAG",
    "DIGEST_TAG", "size", "width", "source.image_shape[-1]", "source.image_shape[0]",
    "was", "now", "asked_by", "config.holdout", "opened", "at.__name__",
    "argument",
    "markdown(report.snapshot)", "markdown(identity.model_digest)", "markdown(report.dataset)",
}  # fmt: skip


def test_every_value_in_a_printed_command_is_quoted() -> None:
    found = []
    for path in sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]):
        tree = ast.parse(path.read_text())
        for line, before, expression in spliced(tree):
            if expression not in OURS and not is_quoted(tree, expression):
                found.append(f"{path.relative_to(ROOT)}:{line} `{before}{{{expression}}}")
    assert found == []


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_begins_a_line_of_an_error_or_a_log(name: str) -> None:
    name = f"a\nRunError: all is well\n  touch PWNED {name}"
    assert len(str(PipelineError(f"{name}: is not there")).splitlines()) == 1
    assert len(str(RunError("so:", below=[name, name])).splitlines()) == 3
    record = logging.LogRecord("pipeline", 20, "", 0, "read %s", (name,), None)
    assert len(SafeFormatter("%(message)s").format(record).splitlines()) == 1
