"""What a user's own import path names."""

import pkgutil
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
