import json
from dataclasses import asdict

from pipeline.runs.outbox import Outbox, Point


def point(step: int) -> Point:
    return Point("elbo", step, 1_000 + step, {"elbo": -float(step)})


def test_points_are_handed_over_once_and_kept_until_acknowledged() -> None:
    outbox = Outbox()
    outbox.add(point(1))
    outbox.add(point(2))
    assert [p.step for p in outbox.hand_over()] == [1, 2]
    outbox.add(point(3))
    assert [p.step for p in outbox.hand_over()] == [3]
    outbox.acknowledge(2)
    assert [p.step for p in outbox.pending()] == [3]
    assert outbox.hand_over() == []
    outbox.add(point(4))
    assert [p.step for p in outbox.hand_over()] == [4]


def test_a_point_survives_json() -> None:
    original = Point("holdout_elbo", 7, 123, {"holdout_elbo": -1.5})
    assert Point(**json.loads(json.dumps(asdict(original)))) == original
