"""A script for the shell that completes jobs and their flags at the Tab key."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

import pipeline.config
from jobs.command import OUTPUT_FLAGS

_SHELLS = ("bash", "zsh")

_SCRIPT = """\
_vae_complete() {{
  local words
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{jobs}"
  elif [[ "${{COMP_WORDS[COMP_CWORD]}}" == -* ]]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  else
    COMPREPLY=($(compgen -f -- "${{COMP_WORDS[COMP_CWORD]}}"))
    return
  fi
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o filenames -F _vae_complete vae
"""


def main() -> None:
    """Prints the script: `eval "$(vae completion bash)"` turns it on."""
    if sys.argv[1:] not in [[shell] for shell in _SHELLS]:
        print(f"Say which shell: vae completion {' | '.join(_SHELLS)}", file=sys.stderr)
        sys.exit(0 if sys.argv[1:] == ["--help"] else 2)
    if sys.argv[1] == "zsh":
        print("autoload -U +X compinit && compinit; autoload -U +X bashcompinit && bashcompinit")
    print(script(), end="")


def script() -> str:
    """Completes the jobs, their flags, and file names elsewhere."""
    flags = dict(_flags_of_jobs())
    cases = "\n".join(f'      {job}) words="{" ".join(known)}" ;;' for job, known in flags.items())
    return _SCRIPT.format(jobs=" ".join(flags), cases=cases)


def _flags_of_jobs() -> Iterator[tuple[str, list[str]]]:
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        config = _config_of(path)
        if config is not None:
            yield path.stem, [*_flags(config), *OUTPUT_FLAGS, "--help"]


def _config_of(path: Path) -> type[BaseModel] | None:
    """The config that a job's file hands to `run_job`: read, since importing may take seconds."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "run_job":
            found = getattr(pipeline.config, ast.unparse(node.args[0]), None)
            return found if isinstance(found, type) else None
    return None


def _flags(config: type[BaseModel], prefix: str = "--") -> Iterator[str]:
    for name, info in config.model_fields.items():
        flag = f"{prefix}{name.replace('_', '-')}"
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _flags(info.annotation, f"{flag}.")
        else:
            yield flag


if __name__ == "__main__":
    main()
