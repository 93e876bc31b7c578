"""What a report's field says of itself: its families at `/metrics`, and its key in MLflow."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Protocol

from pipeline.runs.outbox import Series


@dataclass(frozen=True)
class Metric:
    """One family at `/metrics`, fed by a report's field `source`; `label` splits a mapping.

    A `per_restart` counter starts at 0 with each group of workers; the others hold the run's own
    totals, which a replay does not add to. They begin at 0 with the endpoint, or, with
    `since_first_start`, at what the run's storage knows of all starts before. `label` comes beside
    the label of what reports: a run's `run`, an encoding's `store`.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    help: str
    label: str | None = None
    per_restart: bool = False
    since_first_start: bool = False
    source: str = ""

    @property
    def series(self) -> str:
        """The name that Prometheus stores: counters get `_total` behind theirs."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


def counter(
    name: str,
    unit: str,
    meaning: str,
    *,
    label: str | None = None,
    per_restart: bool = False,
    since_first_start: bool = False,
) -> Metric:
    """What only grows."""
    return Metric(
        name=name,
        kind="counter",
        unit=unit,
        help=meaning,
        label=label,
        per_restart=per_restart,
        since_first_start=since_first_start,
    )


def gauge(name: str, unit: str, meaning: str, *, label: str | None = None) -> Metric:
    """What goes up and down."""
    return Metric(name, "gauge", unit, meaning, label)


@dataclass(frozen=True)
class Logged:
    """A field's key in MLflow, as part of the points of one series; `{}` stands for its label."""

    key: str
    series: Series = "elbo"


def metric(*rows: Metric, mlflow: Logged | None = None) -> Any:
    """A report's field, which feeds `rows` and is logged in MLflow; not known (None) at first."""
    declared = {"rows": rows, "mlflow": mlflow}
    if any(row.label for row in rows):
        return field(default_factory=dict, metadata=declared)
    return field(default=None, metadata=declared)


class Report(Protocol):
    """A frozen dataclass whose fields are all declared by `metric`."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def rows_of(report: type[Report]) -> tuple[Metric, ...]:
    """The families that a kind of report feeds, in the order of its fields."""
    return tuple(
        replace(row, source=each.name) for each in fields(report) for row in each.metadata["rows"]
    )


def mlflow_values(report: Report, series: Series) -> dict[str, float]:
    """What MLflow is given of a report, by its keys: the fields of one series that are known."""
    values: dict[str, float] = {}
    for each in fields(report):
        logged, value = each.metadata["mlflow"], getattr(report, each.name)
        if logged is None or logged.series != series or value is None:
            continue
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        values |= {logged.key.format(label): float(number) for label, number in parts}
    return values
