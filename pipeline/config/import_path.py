"""What a user's own import path names."""

import pkgutil
import traceback
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError


def find_named(path: str, knob: str, error_type: type[PipelineError]) -> Any:
    """What stands at `package.module:Name`; raises `error_type`, naming the knob, if nothing does.

    Whoever asks checks what it is before it is called: the path may come from somebody's bundle.
    """
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise error_type(
            f"{knob} {path}: {error}. Give package.module:Name, importable from PYTHONPATH."
        ) from None
    except Exception as error:
        raise error_type(f"{knob} {path}: its module fails: {told(error)}") from error


def told(error: Exception) -> str:
    """What somebody's own code raised, and in which line: for a message without a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}."
