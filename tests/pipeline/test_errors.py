import pytest

from pipeline.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [(OSError("\none\ntwo"), "one"), (EOFError(), "EOFError"), (ValueError(" \n"), "ValueError")],
)
def test_an_error_that_says_nothing_is_told_by_its_kind(error: Exception, line: str) -> None:
    assert first_line(error) == line
