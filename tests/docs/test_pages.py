"""What the documents point to exists: pages, headings, files, tests."""

import ast
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from jobs.flags import common_flags
from pipeline.config import Section, TrainConfig
from pipeline.config.command_line import flag_name
from pipeline.storage import DocumentKind
from tests.docs.blocks import DOCUMENTS, ROOT, blocks
from tests.test_knobs import SECTIONS, section_in


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


@pytest.mark.parametrize(
    "page",
    [page for page in DOCUMENTS if ROOT / "tests" not in page.parents],  # scripts have their own
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_flag_that_a_page_names_is_one_of_ours(page: Path) -> None:
    """In backticks, alone or behind our commands; other programs' flags stand behind theirs."""
    known = {flag for section in SECTIONS.values() for flag in flags_of(section)}
    known |= {flag.split()[0] for flag, _ in common_flags(TrainConfig)}
    known |= {"--help", "--allowed-hosts"}  # the latter is MLflow's
    named = [
        flag
        for span in re.findall(r"`((?:--|vae |python -m jobs\.|jobs\.)[^`]*)`", prose(page))
        for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", span.split(" -- ")[0])
    ]
    assert [flag for flag in named if flag.replace("_", "-") not in known] == []


def flags_of(section: type[Section], above: tuple[str, ...] = ()) -> list[str]:
    found = []
    for name, info in section.model_fields.items():
        inner = section_in(info.annotation)
        found += flags_of(inner, (*above, name)) if inner else [flag_name((*above, name))]
    return found


def test_the_page_of_formats_names_each_kind_of_document_with_its_version() -> None:
    modules = [
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for path in (ROOT / "pipeline").rglob("*.py")
        if "DocumentKind(" in path.read_text()
    ]
    kinds = {
        (kind.format, str(kind.version))
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, DocumentKind)
    }
    page = (ROOT / "docs/formats.md").read_text()
    assert set(re.findall(r"`(vae-pipeline/[\w-]+)` (\d+)", page)) == kinds


def test_each_place_that_the_architecture_names_is_defined_there() -> None:
    """As `pipeline/ROOM/file.py::name`, a function, method or class."""
    page = (ROOT / "docs/architecture.md").read_text()
    places = re.findall(r"`(pipeline/[\w/]+\.py)::(\w+)`", page)
    missing = []
    for file, name in places:
        path = ROOT / file
        tree = ast.parse(path.read_text() if path.exists() else "")
        kinds = (ast.FunctionDef, ast.ClassDef)
        if name not in {node.name for node in ast.walk(tree) if isinstance(node, kinds)}:
            missing.append(f"{file}::{name}")
    assert missing == []
    assert len(places) > 30
    files = re.findall(r"`((?:pipeline|jobs)/[\w/]+\.py)`", page)
    assert [file for file in files if not (ROOT / file).is_file()] == []


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


def test_the_lines_that_start_servers_are_such_as_mlflow_and_ray_take() -> None:
    lines = [
        shlex.split(line)
        for block in blocks(ROOT / "docs/operations.md", "bash")
        for line in block.splitlines()
        if line.startswith(("mlflow ", "ray "))
    ]
    assert [words[:2] for words in lines] == [
        ["mlflow", "server"], ["ray", "start"], ["ray", "start"], ["ray", "stop"],
    ]  # fmt: skip
    programs = {
        "mlflow": importlib.import_module("mlflow.cli").cli,
        "ray": importlib.import_module("ray.scripts.scripts").cli,
    }
    for program, name, *flags in lines:
        programs[program].commands[name].make_context(name, flags)  # refuses what it doesn't know
    (server,) = (words for words in lines if words[0] == "mlflow")
    known = programs["mlflow"].commands["server"].make_context("server", server[2:]).params
    assert known["artifacts_destination"] == "s3://mlflow"
