"""Numbers as JSON that every reader takes: what is not finite becomes null."""

import math
from typing import Any


def plain_json(value: Any) -> Any:
    """The value, in whose dictionaries and lists each NaN and infinity is None."""
    if isinstance(value, dict):
        return {name: plain_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
