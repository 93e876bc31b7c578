"""A script for the shell that completes jobs, their flags and choices at the Tab key."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

import pipeline.config
from jobs.flags import Flag, choices_of, flags_of
from pipeline.recipe import recipes

_SHELLS = ("bash", "zsh")

_SCRIPT = """\
_vae_complete() {{
  local offered
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    offered="{jobs}"
  elif [[ "${{COMP_WORDS[COMP_CWORD]}}" == -* ]]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  else
    case "${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD-1]}}" in
{choices}
      *) COMPREPLY=($(compgen -f -- "${{COMP_WORDS[COMP_CWORD]}}")); return ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$offered" -- "${{COMP_WORDS[COMP_CWORD]}}"))
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
    """Completes the jobs, their flags, what a flag may be, and file names elsewhere."""
    flags = dict(jobs_and_flags())
    cases = "\n".join(
        f'      {job}) offered="{" ".join([*known, "--help"])}" ;;' for job, known in flags.items()
    )
    choices = "\n".join(
        f'      "{job} {name}") offered="{" ".join(taken)}" ;;'
        for job, known in flags.items()
        for name, flag in known.items()
        if (taken := recipes() if name == "--recipe" else choices_of(flag.kind))
    )
    return _SCRIPT.format(jobs=" ".join(flags), cases=cases, choices=choices)


def jobs_and_flags() -> Iterator[tuple[str, dict[str, Flag]]]:
    """Each job by its name, with its flags."""
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        config = _config_of(path)
        if config is not None:
            yield path.stem, flags_of(config)


def _config_of(path: Path) -> type[BaseModel] | None:
    """The config that a job's file hands to `run_job`: read, since importing may take seconds."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "run_job":
            found = getattr(pipeline.config, ast.unparse(node.args[0]), None)
            return found if isinstance(found, type) else None
    return None


if __name__ == "__main__":
    main()
