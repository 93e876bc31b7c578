import math

import pytest

from pipeline.evaluation.comparison import Difference
from pipeline.figures import draw_comparison, to_png
from tests.support.pictures import figure_of, unreadable, words

PHOTOS = {  # two models of photographs, of which a bar of four digits says that they are equal
    "photos/betas-1": {
        "elbo": -51702.31, "iwae": -51520.8, "kl": 240.1, "posterior_gap": 1745.1,
        "active_units": 64, "reconstruction_psnr": 17.91, "sample_psnr_to_nearest": 12.3,
        "neighbour_agreement": 0.0625, "marginal_kl": 3.1, "mixture_gain": 0.2,
    },
    "photos/betas-4": {
        "elbo": -51997.04, "iwae": -51800.2, "kl": 140.2, "posterior_gap": 1402.0,
        "active_units": 64, "reconstruction_psnr": 16.02, "sample_psnr_to_nearest": 12.9,
        "neighbour_agreement": None, "marginal_kl": 1.1, "mixture_gain": -0.1,
    },
}  # fmt: skip


def test_absent_numbers_and_a_single_image_are_shown_as_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = {"vae": {"elbo": -101.0, "gap": 2.0}, "autoencoder": {"elbo": -800.0, "gap": None}}
    assert "—" in words(figure_of(monkeypatch, draw_comparison, table))
    single = {"autoencoder": {"elbo": Difference(-699.0, -math.inf, math.inf)}}
    assert unreadable(figure_of(monkeypatch, draw_comparison, table, differences=single)) == []
    assert to_png(draw_comparison, {"vae": {"elbo": float("nan")}})


def test_large_numbers_are_told_apart_and_which_is_better_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apart = {"photos/betas-4": {"elbo": Difference(-294.73, -350.1, -239.4)}}
    figure = figure_of(monkeypatch, draw_comparison, PHOTOS, differences=apart)
    assert unreadable(figure) == []
    told = words(figure)
    assert {"−51,702.31", "−51,997.04   −294.73", "ELBO, higher is better"} <= set(told)
    said = " ".join(told)
    assert "photos/betas-1 has the higher ELBO: by 294.73 nats, 95% from 239.40 to 350.10" in said
    unsure = {"photos/betas-4": {"elbo": Difference(-294.73, -650.1, 60.0)}}
    said = " ".join(words(figure_of(monkeypatch, draw_comparison, PHOTOS, differences=unsure)))
    assert "neither has the higher ELBO" in said


def test_many_models_with_long_names_stand_in_lines_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = PHOTOS["photos/betas-1"]
    many = {f"models:/a-name-that-is-not-short-at-all-{n}@candidate": row for n in range(6)}
    assert unreadable(figure_of(monkeypatch, draw_comparison, many)) == []
