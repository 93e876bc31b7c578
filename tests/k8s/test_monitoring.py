"""The committed dashboards and tables are what the generator makes, and Grafana can place them."""

import itertools
import re
from pathlib import Path

import pytest
import yaml

from k8s.monitoring import FOLDER, dashboards, files
from pipeline.tracking.metric_table import ENCODING, OUTCOME, TRAINING
from tests.k8s.manifests import build, of_kind


@pytest.mark.parametrize(("path", "content"), list(files()), ids=lambda each: str(each)[-24:])
def test_what_is_committed_is_what_the_table_says(path: Path, content: str) -> None:
    assert path.read_text() == content, "run `python k8s/monitoring.py`"


@pytest.mark.parametrize("name", ["training.json", "encoding.json"])
def test_no_panel_covers_another_one_and_numbers_are_unique(name: str) -> None:
    panels = dashboards()[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
        assert one["x"] + one["w"] <= 24


def test_every_metric_of_the_table_is_on_a_dashboard() -> None:
    shown = [p["targets"][0]["expr"] for d in dashboards().values() for p in d["panels"]]
    for row in (*TRAINING, *ENCODING, *OUTCOME):
        assert any(f"{row.series}{{" in query for query in shown), row.name


SUBJECTS = ("run", "store", "name", "cronjob")


def test_runs_of_one_name_in_two_namespaces_are_two_lines_with_two_names() -> None:
    for each in dashboards().values():
        for panel in each["panels"]:
            (target,) = panel["targets"]
            for labels in re.findall(r" by \(([^)]*)\)", target["expr"]):
                assert "namespace" in labels.split(", "), target["expr"]
            assert "{{namespace}}" in target["legendFormat"], panel["title"]
    rules = yaml.safe_load((FOLDER / "rules.yaml").read_text())["spec"]["groups"]
    for rule in [rule for group in rules for rule in group["rules"]]:
        for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", rule["expr"]):
            # ... and what is told of says what it is.
            told, *of = labels.split(", ")
            assert (told, of) in [("namespace", [name]) for name in SUBJECTS], rule


def test_a_job_that_a_rule_looks_for_is_one_that_a_monitor_makes() -> None:
    """The operator calls a PodMonitor's job NAMESPACE/NAME."""
    monitors = of_kind(build("gpu"), "PodMonitor")
    jobs = [f"{each['metadata']['namespace']}/{each['metadata']['name']}" for each in monitors]
    wanted = set(re.findall(r'job=~"([^"]*)"', (FOLDER / "rules.yaml").read_text()))
    assert wanted
    for pattern in wanted:
        assert any(re.fullmatch(pattern, job) for job in jobs), pattern


def test_a_panel_takes_a_variable_of_several_values_as_an_expression() -> None:
    """All of them is `.*`, and two are `one|two`: no series is called so."""
    for each in dashboards().values():
        several = [v["name"] for v in each["templating"]["list"] if v.get("multi")]
        assert several
        for panel in each["panels"]:
            (target,) = panel["targets"]
            for name in several:
                assert re.search(rf'=~"\${name}"', target["expr"]), target["expr"]
