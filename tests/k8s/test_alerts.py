"""Each alert fires in its own sickness and in no other world, by promtool's own evaluation."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.tracking.metric_table import TABLE
from tests.servers.prometheus import missing_programs

FOLDER = Path(__file__).parents[2] / "k8s/base/monitoring"
RULES = yaml.safe_load((FOLDER / "rules.yaml").read_text())["spec"]
ALERTS = {
    rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule
}
FOREIGN = {
    "up", "kuberay_job_deployment_status", "kube_cronjob_status_active",
    "kube_cronjob_status_last_schedule_time", "kube_cronjob_status_last_successful_time",
}  # fmt: skip

RUN, STORE = '{run="r"}', '{store="s"}'
# Values a minute, for four hours, in promtool's notation: 0+60x240 is 0, 60, 120 ...
HEALTHY = {
    'up{job="vae-runs",run="r"}': "1x240",
    f"vae_train_images_total{RUN}": "0+6000x240",
    f"vae_train_step_seconds_total{RUN}": "0+58x240",
    f"vae_train_data_wait_seconds_total{RUN}": "0+2x240",
    'vae_run_seconds_total{run="r",state="productive"}': "0+56x240",
    f"vae_train_last_step_timestamp_seconds{RUN}": "0+60x240",
    f"vae_train_nonfinite_steps_total{RUN}": "0x240",
    f"vae_train_bad_images_total{RUN}": "0x240",
    f"vae_train_step{RUN}": "0+100x240",
    f"vae_train_target_steps{RUN}": "30000x240",
    f"vae_checkpoint_step{RUN}": "0+100x240",
    f"vae_checkpoint_every_steps{RUN}": "500x240",
    f"vae_train_restarts_total{RUN}": "0x240",
    f"vae_train_start{RUN}": "1x240",
    f"vae_holdout_active_units{RUN}": "0x30 20x210",
    f"vae_holdout_step{RUN}": "0+100x240",
    'vae_train_nats{run="r",term="elbo"}': "-200+0.1x240",
    'vae_train_nats{run="r",term="kl"}': "20x240",
    'vae_holdout_nats{run="r",term="elbo"}': "-200+0.1x240",
    f"vae_tracking_unsent_points{RUN}": "3 8 2 9 1 4 7 0x234",
    'kuberay_job_deployment_status{name="j",deployment_status="Running"}': "1x240",
    'kuberay_job_deployment_status{name="j",deployment_status="Failed"}': "0x240",
    'kube_cronjob_status_last_schedule_time{cronjob="nightly"}': "60x240",
    'kube_cronjob_status_last_successful_time{cronjob="nightly"}': "1200x240",
    'kube_cronjob_status_active{cronjob="nightly"}': "0x240",
    f"vae_encode_images_total{STORE}": "0+1000x240",
    f"vae_encode_images_left{STORE}": "300000-1000x240",
    f"vae_encode_last_shard_timestamp_seconds{STORE}": "0+60x240",
    f"vae_encode_quarantined_shards_total{STORE}": "0x240",
    f"vae_encode_last_success_timestamp_seconds{STORE}": "60x240",
    f"vae_encode_last_end_timestamp_seconds{STORE}": "60x240",
    f"vae_encode_last_lost_shards{STORE}": "0x240",
}
GONE = "_x240"
# By alert: worlds, told by the series (a part of their name) that differ from the healthy one.
SICK: dict[str, list[dict[str, str]]] = {
    "VaeStalled": [{"vae_train_last_step_timestamp_seconds": "0+60x200 12000x40"}],
    "VaeRunUnreachable": [
        # The exporter died: all of its series are stale, and only `up` is left to tell.
        {"up": "1x200 0x40"}
        | dict.fromkeys(["vae_train", "vae_run", "vae_holdout", "vae_checkpoint"], GONE),
    ],
    "VaeJobFailed": [{'name="j",deployment_status="Failed"': "0x200 1x40"}],
    "VaeThroughputDrop": [{"vae_train_images_total": "0+6000x200 1200000+3000x40"}],
    "VaeDataStarvation": [{"vae_train_data_wait_seconds_total": "0+20x240"}],
    "VaeNonFinite": [{"vae_train_nonfinite_steps_total": "0x235 3+3x5"}],
    "VaeNoCheckpoint": [{"vae_checkpoint_step": "0+100x200 20000x40"}],
    "VaeRestartStorm": [
        {"vae_train_restarts_total": "0x200 1 2 3 4 5x36"},
        {"vae_train_start": "1x200 2 3 4 5 6x36"},
    ],
    "VaePosteriorCollapse": [
        {"vae_holdout_active_units": "0x240"},
        {"vae_holdout_active_units": "20x150 3x90"},
    ],
    "VaeDivergence": [{'vae_train_nats{run="r",term="elbo"}': "-200x210 -201-5x30"}],
    "VaeBadImages": [{"vae_train_bad_images_total": "0+4x240"}],
    "VaeTrackingBacklog": [{"vae_tracking_unsent_points": "0+12x240"}],
    "VaeEncodeStalled": [{"vae_encode_last_shard_timestamp": "0+60x200 12000x40"}],
    "VaeEncodeOverdue": [{"encode_last_success": "-90000x240", "last_end": "-90000x240"}],
    "VaeEncodeFailed": [
        {"last_end": "60x200 12060x40"},
        {"encode_last_success": GONE},
    ],
    "VaeNightlyFailed": [
        {"last_schedule_time": "60x200 12000x40"},
        {"last_successful_time": GONE},
    ],
    "VaeQuarantine": [
        {"vae_encode_last_lost_shards": "0x230 1x10"},
        {"vae_encode_quarantined_shards_total": "0x230 2x10"},
    ],
}  # fmt: skip


def series(changes: dict[str, str]) -> list[dict[str, str]]:
    values = dict(HEALTHY)
    for part, other in changes.items():
        touched = [name for name in values if part in name]
        assert touched, part
        values |= dict.fromkeys(touched, other)
    return [{"series": name, "values": numbers} for name, numbers in values.items()]


def verdict(changes: dict[str, str], expected: set[str], folder: Path) -> tuple[int, str]:
    """promtool's code and words on whether exactly `expected` fire after four hours."""
    rules, tests = folder / "rules.yml", folder / "tests.yml"
    rules.write_text(yaml.safe_dump(RULES))
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)]
    question = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": "4h",
        "exp_samples": samples,
    }
    test = {"interval": "1m", "input_series": series(changes), "promql_expr_test": [question]}
    tests.write_text(yaml.safe_dump({"rule_files": [str(rules)], "tests": [test]}))
    found = subprocess.run(["promtool", "test", "rules", tests], capture_output=True, text=True)
    return found.returncode, found.stdout + found.stderr


@pytest.fixture(autouse=True)
def _promtool() -> None:
    if missing_programs():
        pytest.skip("Prometheus is not installed: `make servers` installs it")


def test_the_rules_are_what_prometheus_can_load(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(RULES))
    command = ["promtool", "check", "rules", "--lint-fatal", tmp_path / "rules.yml"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_nothing_fires_in_a_healthy_world(tmp_path: Path) -> None:
    code, said = verdict({}, set(), tmp_path)
    assert code == 0, said


def test_a_head_that_still_waits_for_its_workers_is_not_called_unreachable(tmp_path: Path) -> None:
    silent = {"up": "0x240"} | dict.fromkeys(["vae_train", "vae_holdout", "vae_checkpoint"], GONE)
    code, said = verdict(silent, set(), tmp_path)
    assert code == 0, said


def test_a_night_that_still_lasts_is_not_called_failed(tmp_path: Path) -> None:
    lasting = {"last_schedule_time": "60x200 12000x40", "cronjob_status_active": "0x200 1x40"}
    code, said = verdict(lasting, set(), tmp_path)
    assert code == 0, said


@pytest.mark.parametrize(
    ("alert", "changes"), [(alert, case) for alert, cases in SICK.items() for case in cases]
)
def test_each_alert_fires_in_its_own_sickness_and_no_other_one_does(
    alert: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    code, said = verdict(changes, {alert}, tmp_path)
    assert code == 0, said
    assert verdict(changes, set(), tmp_path)[0] != 0, "promtool saw no difference"


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
