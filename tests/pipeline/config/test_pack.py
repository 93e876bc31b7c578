"""How images are encoded anew is one knob: a kind, and a quality behind a colon."""

import pytest
from pydantic import ValidationError

from pipeline.config import PackConfig


@pytest.mark.parametrize(
    ("encoding", "made"),
    [
        ("keep", ("keep", 90)),
        ("jpeg", ("jpeg", 90)),
        ("webp:1", ("webp", 1)),
        ("jpeg:100", ("jpeg", 100)),
    ],
)
def test_a_quality_may_stand_behind_the_kind(encoding: str, made: tuple[str, int]) -> None:
    assert PackConfig(source=("in",), output="out", encoding=encoding).new_encoding == made


@pytest.mark.parametrize("encoding", ["jpeg:0", "jpeg:101", "jpeg:", "png", "keep:90", "jpeg:9 0"])
def test_anything_else_is_refused(encoding: str) -> None:
    with pytest.raises(ValidationError, match="encoding"):
        PackConfig(source=("in",), output="out", encoding=encoding)
