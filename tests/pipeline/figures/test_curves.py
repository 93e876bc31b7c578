import pytest

from pipeline.figures import (
    Curve,
    GapPoint,
    RatePoint,
    draw_pull,
    draw_rate_distortion,
    draw_training_curves,
    to_png,
)
from tests.support.pictures import figure_of, unreadable, words

CURVE = Curve([0, 10, 20], [-300.0, -120.0, -101.5])


def test_training_curves_are_drawn_with_either_side_missing() -> None:
    assert to_png(draw_training_curves, {"elbo": CURVE, "kl": CURVE}, {"elbo": CURVE})
    assert to_png(draw_training_curves, {}, {"iwae_gap": CURVE})
    assert to_png(draw_training_curves, {"elbo": Curve([1], [float("nan")])}, {})


def test_the_two_pulls_and_the_rate_distortion_plane_are_drawn() -> None:
    positive = Curve([0, 1], [30.0, 20.0])
    assert to_png(draw_pull, positive, positive)
    assert to_png(draw_pull, positive, positive, best=GapPoint(1, 80.0, "annealing"))
    assert to_png(draw_rate_distortion, [RatePoint("beta 1", 25.0, 76.0)])
    points = [RatePoint("a", 10.0, 100.0), RatePoint("b", 30.0, 70.0)]
    assert to_png(draw_rate_distortion, points)


def test_pulls_whose_ends_lie_at_one_height_are_told_beside_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kl, gap = Curve([0, 300], [0.1, 1740.0]), Curve([0, 300], [5.0, 1741.0])
    best = GapPoint(300, 1745.1, "annealing")
    figure = figure_of(monkeypatch, draw_pull, kl, gap, best=best)
    assert unreadable(figure) == []
    assert "▲ to the posterior,\n≥ 1,745.1" in words(figure)
    low = Curve([0, 300], [0.1, 0.2])
    assert unreadable(figure_of(monkeypatch, draw_pull, low, low, best=best)) == []
