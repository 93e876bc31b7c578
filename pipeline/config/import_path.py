"""What a user's own import path names."""

import os
import pkgutil
import sys
import traceback
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.masking import one_line, shell_word
from pipeline.nearest import nearest

OWN_CODE = (Exception, SystemExit)
"""What somebody's own code may raise. A script that is imported for its class may end by
`sys.exit()`: a job would end with it, without a word, and with 0 as if all had been done."""


def imports_from_here() -> bool:
    """Whether this process imports from its working folder: `python -m` does so, `vae` does not.

    What it starts must not do it either then: a `numpy.py` may lie in a folder of a stranger.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError:  # removed since
        return False
    return any(os.path.realpath(path or ".") == here for path in sys.path)


def find_named(path: str, flag: str, error_type: type[PipelineError]) -> Any:
    """What stands at `package.module:Name`; raises `error_type`, naming the flag, if nothing does.

    Whoever asks checks what it is before it is called: the path may come from somebody's bundle.
    """
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise error_type(f"{flag} {path}: {error}. {_instead(path, flag)}") from None
    except OWN_CODE as error:  # Somebody's module does what it likes while it is imported.
        raise error_type(f"{flag} {path}: its module fails: {told(error)}") from error


def _instead(path: str, flag: str) -> str:
    """What somebody may have meant: a name of the same module, or a module beside it."""
    module, _, name = path.partition(":")
    if module in sys.modules:
        there = [each for each in vars(sys.modules[module]) if not each.startswith("_")]
        meant = [f"{module}:{each}" for each in nearest(name, there)]
    else:
        files = [each.stem for place in sys.path for each in Path(place or ".").glob("*.py")]
        meant = [f"{each}:{name}" for each in nearest(module, files)]
    if meant:
        return f"Did you mean `{flag} {shell_word(meant[0])}`?"
    return (
        "Give MODULE:NAME, importable from this folder or PYTHONPATH: `export PYTHONPATH=FOLDER` "
        "where your file lies elsewhere."
    )


def told(error: BaseException) -> str:
    """What somebody's own code raised, and in which line: for a message without a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {one_line(str(error))}{where}."
