"""When nothing comes any more: which thread waits where, said in an error instead of a hang."""

import sys
import threading
import traceback

_FRAMES = 6
"""The innermost calls say where a thread waits; those before are the pool's own."""


def describe_threads(*prefixes: str) -> str:
    """The innermost frames of each thread whose name begins with one of `prefixes`."""
    frames = sys._current_frames()
    lines = []
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if frame is None or not thread.name.startswith(prefixes):
            continue
        stack = traceback.extract_stack(frame)[-_FRAMES:]
        calls = [f"{at.name} ({at.filename.rsplit('/', 1)[-1]}:{at.lineno})" for at in stack]
        lines.append(f"  {thread.name}: {' > '.join(calls)}")
    return "\n".join(lines) or "  none of its threads runs"
