"""The fenced blocks and links of the documents, for the tests that run and follow them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "k8s/**/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
)


def blocks(page: Path, language: str) -> list[str]:
    """What stands between ```language and ```, unindented; "": the blocks of no language."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", page.read_text(), re.M | re.S)
    return [
        re.sub(rf"^{indent}", "", text, flags=re.M)
        for indent, name, text in found
        if name == language
    ]


def files(page: Path) -> dict[str, str]:
    """The python blocks that begin with the name of the file they are: `# my_network.py`."""
    named = ((re.match(r"# (\S+\.py)\n", text), text) for text in blocks(page, "python"))
    return {name[1]: text for name, text in named if name}
