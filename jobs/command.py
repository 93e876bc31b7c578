"""From a command line to a validated config, and from a result to stdout and an exit code.

YAML (`--config FILE`) and flags are merged as dictionaries and validated once by the same pydantic
model; flags come from that model through tyro and never turn into subcommands.
"""

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from typing_extensions import TypedDict

from jobs.help import COMMON, help_text
from pipeline import storage
from pipeline.config import Section
from pipeline.errors import ConfigError, PipelineError, StorageError
from pipeline.json_value import Json
from pipeline.log_lines import log_to_stderr
from pipeline.masking import masked, printable

Config = TypeVar("Config", bound=Section)


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
    """Parses the command line, runs `main` and exits with 0, 1, 2 or what the outcome says."""
    # Before torch is imported, here and in what this process starts: its threads sleep while they
    # wait. By default they spin, on cores that decode the next batch (measured: 4 times the CPU).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    program = f"python -m {_module_name()}"
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(_split(arguments)[0]):
        print(help_text(config_type, program))
        return
    try:
        values, output = parse_flags(config_type, arguments, program)
        log_to_stderr(output.log_format, quiet=output.quiet)
        config = validate(config_type, values)
        if output.print_config:
            print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")
            return
        outcome = main(config)
    except PipelineError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as interrupt:
        said = str(interrupt) or "run the same command again to go on."
        print(f"Interrupted: {said}", file=sys.stderr)
        sys.exit(130)
    _print(outcome, output)
    sys.exit(outcome.exit_code)


def _print(outcome: Outcome, output: "Output") -> None:
    """Lines for people, and for programs the result as the last line of stdout.

    A terminal gets the JSON only if asked: 2,000 characters below a summary hide it.
    """
    with while_read():
        for line in outcome.summary:
            print(printable(line))
        if output.json or not sys.stdout.isatty() or not outcome.summary:
            print(json.dumps(outcome.result, allow_nan=False))


@contextmanager
def while_read() -> Iterator[None]:
    """Prints no more once nobody reads stdout any more, as `| head` does: that is no error."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


OUTPUT_FLAGS = tuple(flag.split()[0] for flag, _ in COMMON)
"""The flags that every job has beside its own."""


@dataclass(frozen=True)
class Output:
    """How a job talks; the same flags for every job."""

    print_config: bool = False
    json: bool = False
    quiet: bool = False
    log_format: Literal["text", "json"] = "text"


def parse_flags(
    config_type: type[Section], arguments: Sequence[str], program: str
) -> tuple[dict[str, Any], Output]:
    """The merged dictionary of YAML file and flags, not yet validated; and how the job talks.

    What follows a `--` is the field `command`.
    """
    import tyro  # 0.3 s that --help has no use for

    arguments, command = _split(arguments)
    flags = tyro.cli(
        _flag_type(config_type, with_file=True),
        prog=program,
        description=config_type.__doc__,
        args=arguments,
    )
    if command is not None:
        flags["command"] = command
    path = flags.pop("config", None)
    output = Output(**{f.name: flags.pop(f.name) for f in fields(Output) if f.name in flags})
    return merge({} if path is None else _read_yaml(Path(path)), flags), output


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str] | None]:
    flags = list(arguments)
    if "--" not in flags:
        return flags, None
    at = flags.index("--")
    return flags[:at], flags[at + 1 :]


def validate(config_type: type[Config], values: Mapping[str, Any]) -> Config:
    """Builds the config; raises `ConfigError` naming each wrong key, value and what is allowed."""
    try:
        return config_type.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            "\n  ".join(["the configuration is wrong:", *_explain(config_type, error)])
        ) from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` laid upon it, section by section."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = (
            merge(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
        )
    return merged


def _module_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else "jobs"


_COMMON_KINDS = (
    ("config", str), ("print_config", bool), ("json", bool), ("quiet", bool),
    ("log_format", Literal["text", "json"]),
)  # fmt: skip


def _flag_type(config_type: type[BaseModel], with_file: bool = False) -> Any:
    """A TypedDict in which every key may be missing, so that only flags that were given count."""
    import tyro

    keys: dict[str, Any] = {}
    if with_file:
        told = {flag.split()[0]: said for flag, said in COMMON}
        for name, common in _COMMON_KINDS:
            said = told[f"--{name.replace('_', '-')}"]
            keys[name] = Annotated[common, tyro.conf.arg(help=said)]
    for name, info in config_type.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys[name] = _flag_type(kind)
            continue
        default = "(required)" if info.is_required() else f"(default: {_plain(info.default)})"
        keys[name] = Annotated[
            kind, tyro.conf.arg(help=info.description, help_behavior_hint=default)
        ]
    return TypedDict(f"{config_type.__name__}Flags", keys, total=False)  # type: ignore[operator]


def _plain(value: object) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = storage.read_bounded(str(path), MOST_YAML_BYTES).decode()
        values = yaml.load(text, _PlainLoader)  # noqa: S506 - derived from the safe one
    except StorageError as error:
        raise ConfigError(f"--config {error} Name a readable YAML file.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:300]
        raise ConfigError(f"--config {path}: not YAML: {said}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: holds no mapping of keys to values.")
    return values


MOST_YAML_BYTES = 2**20
_MOST_SHOWN = 300
_MOST_DEPTH = 20


class _PlainLoader(yaml.SafeLoader):
    """YAML without what makes nine lines expand to 10^9 words, or hides one key behind another."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuses aliases, and nesting deeper than any configuration's."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read here: write the value out")
        self._depth = getattr(self, "_depth", 0) + 1
        if self._depth > _MOST_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {_MOST_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Refuses a key that is there twice: only one of its values would count."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.YAMLError(f"the key {name!r} is there twice")
            seen.add(name)
        return super().construct_mapping(node, deep)


def _explain(config_type: type[Section], error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        where = ".".join(location) or config_type.__name__
        if problem["type"] == "extra_forbidden":
            known = _keys_of_section(config_type, location[:-1])
            near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.4)
            hint = f" Did you mean `{near[0]}`?" if near else f" Known: {', '.join(known)}."
            lines.append(f"{where}: unknown key.{hint}")
        elif problem["type"] == "missing":
            lines.append(f"{where}: is required; give --{where.replace('_', '-')}.")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            shown = printable(masked(repr(problem["input"])[:_MOST_SHOWN]))
            found = "" if isinstance(problem["input"], dict) else f" Found: {shown}."
            lines.append(f"{where}: {message}.{found}")
    return lines


def _keys_of_section(config_type: type[BaseModel], path: Sequence[str]) -> list[str]:
    for name in path:
        info = config_type.model_fields.get(name)
        if info is None or not isinstance(info.annotation, type):
            return []
        config_type = info.annotation
    return list(config_type.model_fields)
