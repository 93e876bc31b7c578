"""Each alert fires in its own sickness alone, ends with it, and is silent in a healthy week."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.tracking.metric_table import TABLE
from tests.k8s.worlds import (
    DAY,
    ENDS,
    FALLS_ILL,
    HEALTHY,
    IS_SICK,
    SICK,
    Sickness,
    World,
    always,
    during,
    stamps,
    week,
)
from tests.servers.prometheus import missing_programs

FOLDER = Path(__file__).parents[2] / "k8s/base/monitoring"
RULES = yaml.safe_load((FOLDER / "rules.yaml").read_text())["spec"]
ALERTS = {
    rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule
}
FOREIGN = {
    "up", "kuberay_job_deployment_status", "kuberay_job_info",
    "kuberay_job_execution_duration_seconds", "kube_cronjob_status_active",
    "kube_cronjob_status_last_schedule_time", "kube_cronjob_status_last_successful_time",
    "kube_cronjob_spec_suspend",
}  # fmt: skip

ALERTS_FIRING = 'ALERTS{alertstate="firing"}'
FIRING = f"count by (alertname) ({ALERTS_FIRING})"
# Of those that say neither which run, store or job they are about, nor which night.
NAMELESS = FIRING.replace("}", ',run="",store="",name="",cronjob=""}')


def series(world: World, minutes: int, step: int = 1) -> list[dict[str, str]]:
    """In promtool's notation; where a series ends, Prometheus is told so (stale).

    Each is of a namespace, as on every cluster: what compares two of them must keep it.
    """
    found = []
    for name, values in world.items():
        words, was_there = [], False
        for minute in range(0, minutes + 1, step):
            value = values(minute)
            words.append(("stale" if was_there else "_") if value is None else f"{value:.12g}")
            was_there = value is not None
        metric, _, labels = name.removesuffix("}").partition("{")
        if "namespace=" not in labels:
            labels = ",".join(filter(None, [labels, 'namespace="vae"']))
        found.append({"series": f"{metric}{{{labels}}}", "values": " ".join(words)})
    return found


def question(expression: str, minute: int, expected: set[str]) -> dict[str, Any]:
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)]
    return {"expr": expression, "eval_time": f"{minute}m", "exp_samples": samples}


def asked(tests: list[dict[str, Any]], folder: Path) -> tuple[int, str]:
    """promtool's code and words; rules are evaluated as often as there are samples."""
    rules, file = folder / "rules.yml", folder / "tests.yml"
    rules.write_text(yaml.safe_dump(RULES))
    whole = {
        "rule_files": [str(rules)], "evaluation_interval": tests[0]["interval"], "tests": tests,
    }  # fmt: skip
    file.write_text(yaml.dump(whole, Dumper=yaml.CDumper))
    found = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    return found.returncode, found.stdout + found.stderr


def sickness(case: Sickness, alert: str) -> dict[str, Any]:
    """That `alert` and no other fires, says what it is about, and is over afterwards."""
    return {
        "interval": "1m",
        "input_series": series(case.world(), ENDS),
        "promql_expr_test": [
            question(FIRING, FALLS_ILL - 1, set()),
            question(FIRING, IS_SICK, {alert}),
            question(NAMELESS, IS_SICK, set()),
            question(FIRING, ENDS, set()),
        ],
    }


def at_four(world: World, expected: set[str], folder: Path) -> tuple[int, str]:
    test = {
        "interval": "1m",
        "input_series": series(world, IS_SICK),
        "promql_expr_test": [question(FIRING, IS_SICK, expected)],
    }
    return asked([test], folder)


@pytest.fixture(autouse=True)
def _promtool() -> None:
    if missing_programs():
        pytest.skip("Prometheus is not installed: `make servers` installs it")


def test_the_rules_are_what_prometheus_can_load(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(RULES))
    command = ["promtool", "check", "rules", "--lint-fatal", str(tmp_path / "rules.yml")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_line_for_a_prometheus_without_the_operator_makes_a_file_that_it_loads(
    tmp_path: Path,
) -> None:
    readme = (FOLDER / "README.md").read_text()
    (line,) = re.findall(r"^python -c .*rules\.yaml > vae-rules\.yml$", readme, re.MULTILINE)
    made = tmp_path / "vae-rules.yml"
    line = line.replace("python", sys.executable, 1).replace("vae-rules.yml", str(made))
    subprocess.run(["bash", "-c", line], cwd=FOLDER.parents[2], check=True)
    found = subprocess.run(["promtool", "check", "rules", made], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert yaml.safe_load(made.read_text()) == RULES


def test_promtool_sees_when_another_alert_fires_than_was_expected(tmp_path: Path) -> None:
    stalled = SICK["VaeStalled"][0].world()
    assert at_four(stalled, {"VaeStalled"}, tmp_path)[0] == 0
    assert at_four(stalled, set(), tmp_path)[0] != 0
    assert at_four(HEALTHY, {"VaeStalled"}, tmp_path)[0] != 0


def test_nothing_fires_in_a_healthy_week(tmp_path: Path) -> None:
    """Nights, a one-off encoding, a finished and a stopped training, and one that goes on."""
    minutes, step = 7 * DAY, 2
    ever = f"count by (alertname) (count_over_time({ALERTS_FIRING}[7d]))"
    test = {
        "interval": f"{step}m",
        "input_series": series(week(), minutes, step),
        "promql_expr_test": [question(ever, minutes, set())],
    }
    code, said = asked([test], tmp_path)
    assert code == 0, said


def test_a_head_that_still_waits_for_its_workers_is_not_called_unreachable(tmp_path: Path) -> None:
    silent = {name: values for name, values in HEALTHY.items() if 'run="r"' not in name}
    code, said = at_four(silent | {'up{job="vae/vae-runs",run="r"}': always(0)}, set(), tmp_path)
    assert code == 0, said


def test_a_run_that_died_pages_with_its_name_where_discovery_named_it(tmp_path: Path) -> None:
    """As `metrics.json` does, by file discovery; a static target pages nobody."""
    dies = during(0, FALLS_ILL, always(1), always(0), always(0))
    silent = {name: values for name, values in HEALTHY.items() if 'run="r"' not in name}
    static = silent | {'up{job="vae-runs",instance="host:9465"}': dies}
    code, said = at_four(static, set(), tmp_path)
    assert code == 0, said
    named = 'ALERTS{alertname="VaeRunUnreachable",alertstate="firing",run="v1"}'
    test = {
        "interval": "1m",
        "input_series": series(static | {'up{job="vae-runs",run="v1"}': dies}, IS_SICK),
        "promql_expr_test": [question(f"count by (alertname) ({named})", IS_SICK,
                                      {"VaeRunUnreachable"})],
    }  # fmt: skip
    code, said = asked([test], tmp_path)
    assert code == 0, said


def test_a_night_that_still_lasts_is_not_called_failed(tmp_path: Path) -> None:
    label = '{cronjob="nightly",namespace="vae"}'
    lasting = {
        f"kube_cronjob_status_last_successful_time{label}": stamps(always(-DAY)),
        f"kube_cronjob_status_active{label}": always(1),
    }
    code, said = at_four(HEALTHY | lasting, set(), tmp_path)
    assert code == 0, said


def test_a_night_that_was_suspended_after_it_failed_is_at_rest(tmp_path: Path) -> None:
    label = '{cronjob="nightly",namespace="vae"}'
    failed = {f"kube_cronjob_status_last_successful_time{label}": stamps(always(-DAY))}
    code, said = at_four(HEALTHY | failed, {"VaeNightlyFailed"}, tmp_path)
    assert code == 0, said
    suspended = {f"kube_cronjob_spec_suspend{label}": always(1)}
    code, said = at_four(HEALTHY | failed | suspended, set(), tmp_path)
    assert code == 0, said


def test_a_store_that_nobody_expects_again_is_never_overdue(tmp_path: Path) -> None:
    old = {"vae_encode_last_success": stamps(always(-30 * DAY)),
           "vae_encode_last_end": stamps(always(-30 * DAY))}  # fmt: skip
    world = Sickness(old).world()
    assert at_four(world, {"VaeEncodeOverdue"}, tmp_path)[0] == 0
    unexpected = {name: v for name, v in world.items() if "expected_seconds" not in name}
    code, said = at_four(unexpected, set(), tmp_path)
    assert code == 0, said


@pytest.mark.parametrize("alert", SICK)
def test_each_alert_fires_in_its_own_sickness_alone_and_ends_with_it(
    alert: str, tmp_path: Path
) -> None:
    code, said = asked([sickness(case, alert) for case in SICK[alert]], tmp_path)
    assert code == 0, said


def test_every_alert_has_a_sickness_a_severity_and_a_section_that_says_what_to_do() -> None:
    assert set(SICK) == set(ALERTS)
    headings = re.findall(r"^### (\w+)$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["runbook"].endswith(f"README.md#{name.lower()}")


def test_the_rules_speak_of_metrics_that_there_are() -> None:
    records = {
        rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule
    }
    known = {metric.series for metric in TABLE} | records | FOREIGN
    for group in RULES["groups"]:
        for rule in group["rules"]:
            expression = re.sub(r'"[^"]*"', "", rule["expr"])
            words = re.findall(r"\b(?:vae|kube|up)[a-z0-9_:]*", expression)
            assert words, rule
            assert set(words) <= known, rule
