"""`vae`, or `python -m jobs`: what there is; with a name, the job of that name."""

import ast
import os
import runpy
import shutil
import signal
import sys
import textwrap
from pathlib import Path

_NO_JOBS = {"command", "flags", "help", "interrupts", "refusals"}
"""Modules of this folder that no one starts."""


def main() -> None:
    """Runs a job, or lists them, each with the first line of its docstring, importing none."""
    paths = [p for p in sorted(Path(__file__).parent.glob("[!_]*.py")) if p.stem not in _NO_JOBS]
    names = [path.stem for path in paths]
    name = sys.argv[1].removeprefix("jobs.") if len(sys.argv) > 1 else None
    if name in names:
        if os.getpid() == 1:
            # The kernel keeps SIGTERM from a container's first process unless it is asked for.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        del sys.argv[1]
        runpy.run_module(f"jobs.{name}", run_name="__main__", alter_sys=True)
        return
    if name == "--version":
        from importlib.metadata import version

        print(version("vae-pipeline"))
        return
    if name is not None and name != "help" and not name.startswith("-"):
        from pipeline.masking import shell_word
        from pipeline.nearest import did_you_mean, nearest

        likely = nearest(name, names)
        said = did_you_mean(
            " ".join(map(shell_word, ["vae", likely[0], *sys.argv[2:]])) if likely else None
        )
        print(f"There is no job {name}.{said} Jobs: {', '.join(names)}", file=sys.stderr)
        sys.exit(2)
    # `vae | head` closes the pipe: that is no error.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print("Jobs; `vae NAME --help` (or `python -m jobs.NAME --help`) tells a job's flags:\n")
    for path in paths:
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        lines = textwrap.wrap(
            text.splitlines()[0], max(30, shutil.get_terminal_size().columns - 15)
        )
        print(f"  {path.stem:<12} " + "\n".join(lines).replace("\n", "\n" + " " * 15))
    print('\nTab completion: eval "$(vae completion bash)", or zsh, in your shell\'s start file.')


if __name__ == "__main__":
    main()
