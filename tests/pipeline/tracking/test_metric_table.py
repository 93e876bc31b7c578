from pipeline.tracking.metric_table import TABLE


def test_names_are_of_one_form_and_units_are_said() -> None:
    names = [metric.name for metric in TABLE]
    assert len(set(names)) == len(names)
    assert all(name.startswith("vae_") and not name.endswith("_total") for name in names)
    assert all(metric.unit and metric.help.endswith(".") for metric in TABLE)


def test_seconds_and_bytes_are_the_only_units_of_time_and_size_and_stand_in_the_name() -> None:
    for metric in TABLE:
        for unit in ("seconds", "bytes"):
            if metric.unit.split()[0] == unit:
                assert metric.name.endswith(f"_{unit}"), metric.name
