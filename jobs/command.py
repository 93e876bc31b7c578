"""From a command line to a validated config, and from a result to stdout and an exit code.

YAML (`--config FILE`) and flags are merged as dictionaries and validated once by the same pydantic
model, from which the flags are made too.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeVar

import yaml
from pydantic import ValidationError

from jobs.flags import read_flags
from jobs.help import help_text
from jobs.interrupts import ENDED, end_in_order
from jobs.refusals import refusals
from pipeline import own_name
from pipeline.config import Section
from pipeline.config.import_path import imports_from_here
from pipeline.errors import ConfigError, PipelineError, is_shortage
from pipeline.json_value import Json, JsonValue
from pipeline.log_lines import log_to_stderr
from pipeline.masking import masked, safe, safe_line
from pipeline.own_name import as_typed
from pipeline.recipe import merge, read_recipe, read_yaml

Config = TypeVar("Config", bound=Section)

LOADING = "loading torch and what else is needed"
"""The first seconds of a job that computes, which a reader would take for nothing at all."""
REFUSED_EXIT = 3
"""Of a job that has finished, and refused more of its input than `bad_fraction` allows."""


@dataclass(frozen=True)
class Outcome:
    """What a job ends with: the last line of its stdout and its exit code."""

    result: Json
    exit_code: int = 0
    summary: Sequence[str] = field(default=())


def run_job(
    config_type: type[Config],
    main: Callable[[Config], Outcome],
    arguments: Sequence[str] | None = None,
) -> None:
    """Parses the command line, runs `main` and exits as docs/operations.md lists."""
    # Before torch is imported, here and in what this process starts: its threads sleep while they
    # wait. By default they spin, on cores that decode the next batch (measured: 4 times the CPU).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not imports_from_here():
        # Of what this process starts: a `multiprocessing.py` may lie in the working folder.
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    # A notebook names its own there, which `!vae` of another environment may not have: matplotlib
    # then can't be imported. Pictures are drawn without one.
    os.environ.pop("MPLBACKEND", None)
    sys.excepthook = _tell_bug
    program = own_name.program()
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(_split(arguments)[0]):
        with while_read():
            print(help_text(config_type, program))
        return
    try:
        values, output = parse_flags(config_type, arguments, program)
        log_to_stderr(output.log_format, quiet=output.quiet)
        end_in_order()
        config = validate(config_type, values)
        if output.print_config:
            with while_read():
                print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")
            return
        if config_type.is_look:
            from pipeline import storage

            storage.set_retry_policy(storage.LOOK)
        outcome = main(config)
    except PipelineError as error:
        print(as_typed(f"{type(error).__name__}: {error}"), file=sys.stderr)
        if not error.may_pass:
            _end_for_good(error.exit_code)
        sys.exit(error.exit_code)
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        print(safe(f"ShortageError: {_short_of(error)}"), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        said = str(interrupt) or config_type.interrupted
        print(as_typed(safe(f"Interrupted: {said}")), file=sys.stderr)
        sys.exit(ENDED)
    _print(outcome, output)
    if outcome.exit_code == REFUSED_EXIT:
        _end_for_good(REFUSED_EXIT)
    sys.exit(outcome.exit_code)


def _end_for_good(exit_code: int) -> None:
    """Under KubeRay, keeps it from making new clusters for what can only fail again."""
    from pipeline.submission.own_job import end_for_good

    problem = end_for_good(exit_code)
    if problem is not None:
        print(f"KubeRay may repeat this job: {problem}", file=sys.stderr)


def _short_of(error: BaseException) -> str:
    said = " ".join(str(error).split())[:300] or "memory ran out"
    return (
        f"{said.rstrip('.')}. See to it (more memory or disk, fewer workers, a smaller batch), and "
        "run the same command again."
    )


def _tell_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What is no error of ours keeps its traceback, and shows no secret either."""
    sys.stderr.write(safe("".join(traceback.format_exception(kind, error, trace))))


def _print(outcome: Outcome, output: "Output") -> None:
    """Lines for people, and for programs the result as the last line of stdout.

    A terminal gets the JSON only if asked: 2,000 characters below a summary hide it.
    """
    with while_read():
        for line in outcome.summary:
            print(as_typed(safe_line(line)))
        if output.json or not sys.stdout.isatty() or not outcome.summary:
            print(json.dumps(_shown(outcome.result), allow_nan=False))


def _shown(value: JsonValue) -> JsonValue:
    """What a program may read: names and commands of other people's hold secrets, too."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {masked(name): _shown(each) for name, each in value.items()}
    return [_shown(each) for each in value] if isinstance(value, Sequence) else value


@contextmanager
def while_read() -> Iterator[None]:
    """Prints no more once nobody reads stdout any more, as `| head` does: that is no error."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True)
class Output:
    """How a job talks; the same flags for every job."""

    print_config: bool = False
    json: bool = False
    quiet: bool = False
    log_format: Literal["text", "json"] = "text"


def parse_flags(
    config_type: type[Section], arguments: Sequence[str], program: str
) -> tuple[dict[str, JsonValue], Output]:
    """The merged dictionary of recipe, YAML file and flags, not yet validated; how the job talks.

    What follows a `--` is the field `command`. Raises `ConfigError`.
    """
    words, command = _split(arguments)
    flags = read_flags(config_type, words, program)
    if command is not None:
        flags["command"] = command
    recipe, path = flags.pop("recipe", None), flags.pop("config", None)
    output = _output(flags)
    base = {} if recipe is None else read_recipe(str(recipe))
    file = {} if path is None else read_yaml(Path(str(path)), "--config")
    return merge(merge(base, file), flags), output


def _output(flags: dict[str, JsonValue]) -> Output:
    """Takes those flags out of `flags` that say how a job talks."""
    form = flags.pop("log_format", "text")
    if form not in ("text", "json"):
        raise ConfigError(f"--log-format {form}: give `--log-format json` or text.")
    return Output(
        print_config=bool(flags.pop("print_config", False)),
        json=bool(flags.pop("json", False)),
        quiet=bool(flags.pop("quiet", False)),
        log_format="json" if form == "json" else "text",
    )


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str] | None]:
    flags = list(arguments)
    if "--" not in flags:
        return flags, None
    at = flags.index("--")
    return flags[:at], flags[at + 1 :]


def validate(config_type: type[Config], values: Json) -> Config:
    """Builds the config; raises `ConfigError` naming each wrong key, value and what is allowed."""
    try:
        return config_type.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            "the configuration is wrong:", below=[*refusals(config_type, error)]
        ) from None
