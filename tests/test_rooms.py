"""The rules of the house: sizes, names, rooms, and command lines that still parse."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline.config
from jobs.command import parse_flags, validate

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for folder in ("pipeline", "jobs", "tests", "k8s")
    for path in (ROOT / folder).rglob("*.py")
)
PRODUCT = [path for path in SOURCES if path.parts[len(ROOT.parts)] in ("pipeline", "jobs")]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_no_file_is_longer_than_400_lines():
    assert names([p for p in SOURCES if len(p.read_text().splitlines()) > 400]) == []


def test_no_function_is_longer_than_60_lines():
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert long == []


def test_every_module_is_named_for_a_thing():
    empty = {"utils", "util", "helpers", "common", "misc", "base", "manager", "managers", "hooks"}
    assert [path for path in names(SOURCES) if Path(path).stem in empty] == []


def test_nothing_is_pickled_or_unpickled():
    # torch.load is allowed with weights_only=True alone; it is the only reader of that format.
    found = []
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import) and {a.name for a in node.names} & {
                "pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal",
            }:  # fmt: skip
                found.append(f"{path}:{node.lineno}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = any(k.arg == "weights_only" and k.value.value is True for k in node.keywords)
                found += [] if safe else [f"{path}:{node.lineno}"]
    assert found == []


def test_the_rooms_import_downwards_only():
    program = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([program], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def documented_commands() -> list[str]:
    """Every `python -m jobs.X ...` in README, recipes, manifests; lines may end in a backslash."""
    commands = []
    for path in [ROOT / "README.md", *ROOT.glob("jobs/recipes/*.yaml"), *ROOT.glob("k8s/**/*.md")]:
        if path.exists():
            text = path.read_text().replace("\\\n", " ")
            commands += re.findall(r"python -m (jobs\.[a-z]+[^\n`#|>&]*)", text)
    return sorted({command.strip() for command in commands})


@pytest.mark.parametrize("command", documented_commands())
def test_every_documented_command_line_parses_with_its_own_job(command):
    module, *arguments = shlex.split(command)
    if arguments == ["--help"] or not arguments:
        return
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    (config_name,) = {
        node.args[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "run_job"
    }
    config_type = getattr(pipeline.config, config_name)
    if "--config" in arguments:
        arguments[arguments.index("--config") + 1] = str(
            ROOT / arguments[arguments.index("--config") + 1]
        )
    values, _ = parse_flags(config_type, arguments, module)
    validate(config_type, values)
