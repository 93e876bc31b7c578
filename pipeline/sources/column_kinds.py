"""What a column of somebody's table may hold, by its Arrow type."""

from typing import Any

import pyarrow.types as kinds

BYTES = "bytes"
"""The field of an image's struct that holds its file, as the `datasets` library names it."""


def inside_list(field: Any) -> Any:
    """What the lists of a column hold, None for a column without."""
    checks = (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list, kinds.is_list_view)
    return field.type.value_field if any(check(field.type) for check in checks) else None


def is_binary(kind: Any) -> bool:
    """Bytes in any of Arrow's layouts; Polars writes views, Pandas' categories are dictionaries."""
    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    checks = (
        kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view, kinds.is_fixed_size_binary,
    )  # fmt: skip
    return any(check(kind) for check in checks)


def is_text(kind: Any) -> bool:
    """Text in any of Arrow's layouts."""
    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    return any(
        check(kind) for check in (kinds.is_string, kinds.is_large_string, kinds.is_string_view)
    )


def is_image(field: Any) -> bool:
    """Whether this is a struct with bytes, as the `datasets` library has an image."""
    if not kinds.is_struct(field.type):
        return False
    return any(inside.name == BYTES and is_binary(inside.type) for inside in field.type)


def has_bytes(field: Any) -> bool:
    """Whether the column is of bytes, or of images."""
    return is_binary(field.type) or is_image(field)


def holds_bytes(kind: Any) -> bool:
    """Whether values of this type have bytes anywhere, which JSON can't hold."""
    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    return is_binary(kind) or any(
        holds_bytes(kind.field(number).type) for number in range(kind.num_fields)
    )
