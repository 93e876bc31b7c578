from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.edges.metrics import TABLE, RunMetrics


def values(metrics: RunMetrics) -> dict[tuple[str, str], float]:
    """(sample name, its label beside the run, or the run) -> value; no creation times."""
    text = generate_latest(metrics.registry).decode()
    return {
        (
            sample.name,
            min(sample.labels.items(), key=lambda pair: pair[0] == "run")[1],
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_replayed_steps_are_counted_once_and_a_dead_groups_seconds_stay():
    metrics = RunMetrics("r")
    metrics.update({"session": 1, "images": 100, "step_seconds_total": 10.0})
    metrics.update({"session": 2, "images": 60, "step_seconds_total": 3.0})
    metrics.update({"session": 2, "images": 120, "step_seconds_total": 7.0})
    found = values(metrics)
    assert found["vae_train_images_total", "r"] == 120
    assert found["vae_train_step_seconds_total", "r"] == 17.0


def test_labelled_counters_count_each_label_by_itself():
    metrics = RunMetrics("r")
    metrics.update({"session": 1, "bad_samples_total": {"truncated": 2, "checksum": 1}})
    metrics.update({"session": 1, "bad_samples_total": {"truncated": 5}})
    metrics.update({"session": 2, "bad_samples_total": {"truncated": 1}})
    found = values(metrics)
    assert found["vae_data_bad_samples_total", "truncated"] == 6
    assert found["vae_data_bad_samples_total", "checksum"] == 1


def test_a_continued_runs_counter_is_never_seen_at_zero():
    metrics = RunMetrics("r")
    assert not values(metrics)
    metrics.update({"images": 1_000_000})
    assert values(metrics) == {("vae_train_images_total", "r"): 1_000_000}


def test_names_are_of_one_form_and_units_are_said():
    names = [metric.name for metric in TABLE]
    assert len(set(names)) == len(names)
    assert all(name.startswith("vae_") and not name.endswith("_total") for name in names)
    assert all(metric.unit and metric.help.endswith(".") for metric in TABLE)
