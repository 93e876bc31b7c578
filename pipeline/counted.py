"""A number with its noun, as people say it."""


def counted(number: int, noun: str) -> str:
    """ "1 image", "1,204 images"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
