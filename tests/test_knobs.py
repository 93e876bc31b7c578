"""The knobs: fewer of them, each read by code, each explained.

How they are counted: a knob is a key of a section (`pipeline.config`) that holds a value, told by
its name and its help. What several jobs are asked in the same words, or get from a shared section,
is one knob: a user learns it once. A key that holds a section is none.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

import pipeline.config
from pipeline.config import Section

ROOT = Path(__file__).parent.parent
MOST_KNOBS = 150
"""Without those of `NAMED`: the number never rises, and a feature that needs a knob more joins two
others or makes one a constant."""

NAMED = {
    "shards_below": "proven or refused: shards elsewhere only below prefixes that are named",
    "allow_custom": "proven or refused: how a class of one's own is allowed",
    "TrainConfig.begin_anew": "proven or refused: how to begin anew on purpose",
    "PackConfig.image_column": "nothing vanishes: tables with an image column",
    "PackConfig.below": "nothing vanishes: prefixes below which a table may name inputs",
    "PackConfig.ignore": "nothing vanishes: kinds that may be ignored",
    "PackConfig.unmatched": "nothing vanishes: a budget for half-labelled datasets",
    "PackConfig.deduplicate": "nothing vanishes: of exact duplicates one",
    "PackConfig.retry_rejected": "nothing vanishes: failed ones again",
    "IndexConfig.image_extension": "nothing vanishes: samples with several images",
    "StoresConfig.keys": "nothing vanishes: keys are listed",
    "StoresConfig.dataset": "in production: generations of datasets, erasure",
    "StoresConfig.erase": "in production: erasure",
    "StoresConfig.keep_last": "in production: retention by keep-last",
    "RunsConfig.run": "in production: runs are listed and removed",
    "RunsConfig.remove": "in production: checkpoints of finished runs, whole runs",
    "RunsConfig.older_days": "in production: retention by age",
    "RunsConfig.keep_last": "in production: retention by keep-last",
    "RunsConfig.delete": "in production: dry run first",
    "SubmitConfig.pool": "in production: flags of the submission",
    "SubmitConfig.queue": "in production: flags of the submission",
    "SubmitConfig.priority": "in production: flags of the submission",
    "SubmitConfig.deadline_hours": "in production: flags of the submission",
    "SubmitConfig.retries": "in production: flags of the submission",
    "DoctorConfig.support_file": "in production: one file for support",
    "EncodingTrackingConfig.expected_hours": "in production: stores opt in to overdue alerts",
    "EvaluateConfig.features": "numbers that hold up: a feature network that the user names",
    "EvaluateConfig.lpips": "numbers that hold up: LPIPS with the user's weights",
    "EncodeConfig.replace_model": "numbers that hold up: a store of another model, by a word",
    "EncodeConfig.image_size": "latents: sizes at encode time",
    "EncodeConfig.crop": "latents: sizes at encode time",
    "EncodeConfig.resize": "latents: sizes at encode time",
    "EncodeConfig.buckets": "latents: aspect-ratio buckets",
    "EncodeConfig.where": "latents: filters at encode time",
    "EncodeConfig.also": "latents: a user's encoder beside the VAE",
    "EncodeConfig.tile": "latents: tiles for large images",
    "ModelConfig.library": "latents: other classes, through the diffusers library itself",
    "ModelConfig.widths": "latents: every AutoencoderKL that its class builds",
    "ModelConfig.layers": "latents: every AutoencoderKL that its class builds",
    "ModelConfig.groups": "latents: every AutoencoderKL that its class builds",
    "ModelConfig.activation": "latents: every AutoencoderKL that its class builds",
    "ModelConfig.attention": "latents: every AutoencoderKL that its class builds",
    "ModelConfig.quant_convs": "latents: every AutoencoderKL that its class builds",
    "TrainConfig.no_register": "to call and look at: a trial stays out of the registry",
    "BenchConfig.model": "to call and look at: jobs.bench --model URI",
    "BenchConfig.compare": "to call and look at: stock webdataset beside it",
    "ReportConfig.compare": "to call and look at: what changed against another run",
    "ReportConfig.output": "to call and look at: a self-contained HTML file",
}
"""What a later issue of the round asks for by name: knob, by its section where others have its
name, and the issue with its words. They come on top of `MOST_KNOBS`."""

SECTIONS = {
    name: value
    for name, value in vars(pipeline.config).items()
    if isinstance(value, type) and issubclass(value, Section) and value is not Section
}


def section_in(kind: object) -> type[Section] | None:
    """The section of an annotation: itself, or one side of `X | None`."""
    for each in (kind, *get_args(kind)):
        if isinstance(each, type) and issubclass(each, Section):
            return each
    return None


def knobs(section: type[Section]) -> list[str]:
    return [n for n, i in section.model_fields.items() if section_in(i.annotation) is None]


def named_as(section: str, knob: str) -> str | None:
    """The row of `NAMED` that a section's knob stands in."""
    return next((n for n in (knob, f"{section}.{knob}") if n in NAMED), None)


def test_the_number_of_knobs_that_no_issue_names_only_goes_down() -> None:
    told = {(n, s.model_fields[n].description) for s in SECTIONS.values() for n in knobs(s)}
    named = {
        (n, s.model_fields[n].description)
        for title, s in SECTIONS.items()
        for n in knobs(s)
        if named_as(title, n)
    }
    count = len(told - named)
    assert count <= MOST_KNOBS, "another knob? Let a constant with its reason do, or join two"
    assert count > MOST_KNOBS - 5, f"lower MOST_KNOBS to {count}"


def test_each_row_of_the_table_is_still_a_knob() -> None:
    rows = {named_as(title, name) for title, s in SECTIONS.items() for name in knobs(s)}
    assert sorted(set(NAMED) - rows) == []


def test_every_knob_says_what_it_is() -> None:
    dumb = [
        f"{section.__name__}.{name}"
        for section in SECTIONS.values()
        for name in knobs(section)
        if not section.model_fields[name].description
    ]
    assert dumb == []


def test_only_what_tracks_has_flags_of_tracking() -> None:
    tracking = [name for name, section in SECTIONS.items() if "tracking" in section.model_fields]
    assert sorted(tracking) == ["EncodeConfig", "TrainConfig"]


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_every_knob_is_read_from_its_own_section(section: type[Any]) -> None:
    assert [name for name in knobs(section) if name not in reads().get(section, set())] == []


@cache
def reads() -> dict[type[Section], set[str]]:
    """Which attributes of each section product code reads; bases and heirs share theirs."""
    found: dict[type[Section], set[str]] = {}
    for folder in ("pipeline", "jobs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text())
            for section, name in Reader(tree).found:
                found.setdefault(section, set()).add(name)
    shared = dict(found)
    for section in SECTIONS.values():
        # A function that takes a shared section reads it of every job that has it.
        bases = [found.get(base, set()) for base in section.__mro__]
        heirs = [] if section in JOBS else [f for s, f in found.items() if issubclass(s, section)]
        shared[section] = set().union(*bases, *heirs)
    return shared


JOBS = {section for section in SECTIONS.values() if (section.__doc__ or "").startswith("`jobs.")}


class Reader(ast.NodeVisitor):
    """Follows names annotated with a section, `self.x` set from them, and sections in sections.

    `found` holds (section, attribute) of each attribute that is read. A section's property reads
    what it is made of; a validator does not: checking a knob is no use of it.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.found: set[tuple[type[Section], str]] = set()
        self._names: list[dict[str, type[Section]]] = [{}]
        self._own: dict[str, type[Section]] = {}
        self.visit(tree)
        self.visit(tree)  # what `self.x` is may be said below where it is read

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for line in node.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                self._note(self._own, line.target.id, self._named(line.annotation))
        self._names.append({"self": SECTIONS[node.name]} if node.name in SECTIONS else {})
        self.generic_visit(node)
        self._names.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if any("validator" in ast.unparse(each) for each in node.decorator_list):
            return
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        # Of `A | B` both: the body is read once for each.
        for chosen in range(max([1, *(len(self._all(a.annotation)) for a in arguments)])):
            names = dict(self._names[-1])
            for argument in arguments:
                sections = self._all(argument.annotation)
                if sections:
                    names[argument.arg] = sections[min(chosen, len(sections) - 1)]
            self._names.append(names)
            self.generic_visit(node)
            self._names.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        for targets in node.targets:
            for target, value in _pairs(targets, node.value):
                section = self._type(value)
                if isinstance(target, ast.Name):
                    self._note(self._names[-1], target.id, section)
                elif isinstance(target, ast.Attribute):
                    self._note(self._own, target.attr, section)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        section = self._type(node.value)
        if section is not None and isinstance(node.ctx, ast.Load):
            self.found.add((section, node.attr))
        self.generic_visit(node)

    def _type(self, node: ast.expr) -> type[Section] | None:
        if isinstance(node, ast.Name):
            return self._names[-1].get(node.id)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr == "model_copy":
                return self._type(node.func.value)
            return self._named(node.func)
        if isinstance(node, ast.Attribute):
            above = self._type(node.value)
            if above is None:
                return self._own.get(node.attr)
            if node.attr in above.model_fields:
                return section_in(above.model_fields[node.attr].annotation)
            made = getattr(getattr(above, node.attr, None), "fget", None)
            return section_in(made.__annotations__.get("return")) if made else None
        return None

    def _named(self, node: ast.expr | None) -> type[Section] | None:
        return next(iter(self._all(node)), None)

    def _all(self, node: ast.expr | None) -> list[type[Section]]:
        names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name)] if node else []
        return [SECTIONS[name] for name in names if name in SECTIONS]

    def _note(
        self, where: dict[str, type[Section]], name: str, section: type[Section] | None
    ) -> None:
        if section is not None:
            where[name] = section


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    """`a, b = x, y` as (a, x), (b, y)."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        yield from zip(target.elts, value.elts, strict=True)
    else:
        yield target, value
