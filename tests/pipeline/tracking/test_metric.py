"""A report's field says once what Prometheus and MLflow call it."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.tracking.metric import Logged, counter, gauge, metric, mlflow_values, rows_of


@dataclass(frozen=True)
class Weather:
    """A report of two measurements and a mapping."""

    rain: float | None = metric(counter("weather_rain", "mm", "Fallen."), mlflow=Logged("rain"))
    wind: float | None = metric(gauge("weather_wind", "m/s", "Now."))
    heat: Mapping[str, float] = metric(
        gauge("weather_heat", "K", "By place.", label="place"),
        mlflow=Logged("heat/{}", "holdout_elbo"),
    )


def test_each_family_is_fed_by_its_field_and_a_counter_is_stored_as_a_total() -> None:
    rows = rows_of(Weather)
    assert [(row.source, row.series) for row in rows] == [
        ("rain", "weather_rain_total"), ("wind", "weather_wind"), ("heat", "weather_heat"),
    ]  # fmt: skip


def test_nothing_is_known_at_first_and_what_is_not_known_is_not_logged() -> None:
    assert Weather() == Weather(rain=None, wind=None, heat={})
    assert mlflow_values(Weather(), "elbo") == {}


def test_a_series_gets_its_own_fields_and_a_mapping_a_key_for_each_label() -> None:
    now = Weather(rain=0.0, wind=3.0, heat={"roof": 290, "cellar": 281})
    assert mlflow_values(now, "elbo") == {"rain": 0.0}
    assert mlflow_values(now, "holdout_elbo") == {"heat/roof": 290.0, "heat/cellar": 281.0}
