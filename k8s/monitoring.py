"""Makes the dashboards and the table of metrics from pipeline/tracking/metric_table.py.

Run `python k8s/monitoring.py` after changing that table; a test fails until it was done.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.tracking.metric import Metric
from pipeline.tracking.metric_table import BUILD, ENCODING, OUTCOME, TRAINING

FOLDER = Path(__file__).parent / "base/monitoring"
BEGIN, END = "<!-- made by k8s/monitoring.py -->", "<!-- end -->"
_UNITS = {"seconds": "s", "bytes": "bytes"}
_RATES = {"seconds": "percentunit", "bytes": "Bps"}
_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 24


@dataclass(frozen=True)
class Panel:
    """One graph; `unit` is Grafana's name."""

    title: str
    query: str
    legend: str
    unit: str = "short"
    description: str = ""


_TRAINING_FIRST = (
    Panel("Images per second", "vae:train_images:rate5m", "{{run}} {{namespace}}"),
    Panel(
        "Goodput: share of time in new steps",
        "vae:goodput:share5m",
        "{{run}} {{namespace}}",
        "percentunit",
    ),
    Panel(
        "Data wait: share of step time",
        "vae:data_wait:share5m",
        "{{run}} {{namespace}}",
        "percentunit",
    ),
    Panel("ELBO, last batch (nats per image)", "vae:elbo:nats", "{{run}} {{namespace}}"),
    Panel("ELBO, hold-out (nats per image)", "vae:holdout_elbo:nats", "{{run}} {{namespace}}"),
    Panel("KL, last batch (nats per image)", "vae:kl:nats", "{{run}} {{namespace}}"),
)
_ENCODING_FIRST = (
    Panel("Images per second", "vae:encode_images:rate5m", "{{store}} {{namespace}}"),
)


def panel_of(row: Metric, label: str) -> Panel:
    """A counter's rate, a gauge's value, a time stamp's age."""
    names = (label, row.label) if row.label else (label,)
    # Two teams' runs of one name are two lines; without Kubernetes there is no such label.
    by = ", ".join(("namespace", *names))
    chosen = f'{row.series}{{{label}=~"${label}"}}'
    legend = " ".join(f"{{{{{name}}}}}" for name in (*names, "namespace"))
    unit = row.unit.split()[0]
    if row.kind == "counter":
        query = f"sum by ({by}) (rate({chosen}[$__rate_interval]))"
        return Panel(_title(row, "per second"), query, legend, _RATES.get(unit, "short"), row.help)
    if row.unit.startswith("seconds since"):
        query = f"time() - max by ({by}) ({chosen})"
        return Panel(_title(row, "age"), query, legend, "s", row.help)
    query = f"max by ({by}) ({chosen})"
    return Panel(_title(row, row.unit), query, legend, _UNITS.get(unit, "short"), row.help)


def dashboard(
    uid: str, title: str, label: str, first: Sequence[Panel], rows: Sequence[Metric]
) -> dict[str, Any]:
    """One Grafana dashboard: what matters first, then every metric of the table."""
    recorded = [
        Panel(p.title, f'{p.query}{{{label}=~"${label}"}}', p.legend, p.unit) for p in first
    ]
    panels = [*recorded, *(panel_of(row, label) for row in rows)]
    return {
        "uid": uid,
        "title": title,
        "tags": ["vae"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_datasource(), _variable(label, rows[0])]},
        "panels": [_graph(number, panel) for number, panel in enumerate(panels)],
    }


def dashboards() -> dict[str, dict[str, Any]]:
    """By file name."""
    return {
        "training.json": dashboard(
            "vae-training", "VAE training", "run", _TRAINING_FIRST, TRAINING
        ),
        "encoding.json": dashboard(
            "vae-encoding", "VAE encoding", "store", _ENCODING_FIRST, (*ENCODING, *OUTCOME)
        ),
    }


def table() -> str:
    """The metrics in Markdown."""
    lines = ["| metric | unit | labels | meaning |", "|---|---|---|---|"]
    for rows, label in ((TRAINING, "run"), (ENCODING, "store"), (OUTCOME, "store")):
        lines += [_line(row, label) for row in rows]
    return "\n".join([*lines, _line(BUILD, "run or store")])


def files() -> Iterator[tuple[Path, str]]:
    """Every file that is made, with its content."""
    for name, content in dashboards().items():
        yield FOLDER / "dashboards" / name, json.dumps(content, indent=1) + "\n"
    readme = FOLDER / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    yield readme, f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def _title(row: Metric, what: str) -> str:
    name = row.name.removeprefix("vae_").removesuffix("_timestamp_seconds").replace("_", " ")
    return f"{name} ({what})" if what not in ("1", "images/s") else name


def _line(row: Metric, label: str) -> str:
    labels = f"{label}, {row.label}" if row.label else label
    return f"| `{row.series}` | {row.unit} | {labels} | {row.help} |"


def _graph(number: int, panel: Panel) -> dict[str, Any]:
    across = _COLUMNS // _WIDTH
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {
            "x": number % across * _WIDTH,
            "y": number // across * _HEIGHT,
            "w": _WIDTH,
            "h": _HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [{"refId": "A", "expr": panel.query, "legendFormat": panel.legend}],
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus"}


def _variable(label: str, row: Metric) -> dict[str, Any]:
    return {
        "name": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": f"label_values({row.series}, {label})",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    for path, content in files():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
