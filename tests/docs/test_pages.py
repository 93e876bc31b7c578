"""What the documents point to exists: pages, headings, files, tests."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.docs.blocks import DOCUMENTS, ROOT


def prose(page: Path) -> str:
    """The text without its fenced blocks, in which brackets are no links."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have as a link's target, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_of_ours_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"`((?:pipeline|jobs|tests|k8s|docs)/[\w./-]+)`", prose(page))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_test_that_a_page_names_exists_in_the_file_it_names() -> None:
    """As `tests/FOLDER/test_x.py::test_name`; a claim stands beside the test that holds it."""
    missing, seen = [], 0
    for page in DOCUMENTS:
        for file, test in re.findall(r"`(tests/[\w./]+\.py)::(\w+)`", page.read_text()):
            seen += 1
            path = ROOT / file
            tree = ast.parse(path.read_text() if path.exists() else "")
            names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            if test not in names:
                missing.append(f"{page.relative_to(ROOT)}: {file}::{test}")
    assert missing == []
    assert seen > 40  # docs/guarantees.md is a list of them


def test_the_architectures_table_has_a_row_for_each_room_and_for_no_other() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    rooms = {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")}
    assert sorted(re.findall(r"^\| `pipeline/(\w+)/`", page, re.M)) == sorted(rooms)


def test_the_import_rules_know_every_room() -> None:
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [each["layers"] for each in rules["contracts"] if each["type"] == "layers"]
    known = {name for layer in layers for name in layer.split(" | ")}
    rooms = {f"pipeline.{path.parent.name}" for path in (ROOT / "pipeline").glob("*/__init__.py")}
    assert rooms - known == set()


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_pictures_are_small_and_each_is_shown_somewhere() -> None:
    shown = {
        (page.parent / target).resolve()
        for page in DOCUMENTS
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
    }
    for picture in (ROOT / "docs/images").iterdir():
        assert picture.stat().st_size < 150_000
        assert picture in shown
