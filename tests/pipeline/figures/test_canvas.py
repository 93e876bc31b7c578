from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from pipeline.figures.canvas import Canvas, Target, label_colors, natural_key, signed, to_pixels
from tests.support.pictures import figure_of, unreadable, words


def test_pixels_are_the_same_from_uint8_floats_and_tensors() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (2, 1, 4, 4), dtype=np.uint8)
    expected = np.repeat(np.moveaxis(levels / 255, 1, -1), 3, axis=-1)
    for images in (levels, levels / 255, torch.from_numpy(levels)):
        assert np.allclose(to_pixels(images), expected)


def test_numbers_sort_as_numbers_and_at_most_ten_labels_get_a_colour() -> None:
    assert sorted(["class10", "class9", "b2", "10", "9"], key=natural_key) == [
        "9", "10", "b2", "class9", "class10",
    ]  # fmt: skip
    labels = [f"c{i}" for i in range(12) for _ in range(i + 1)]
    shown, colors, hidden = label_colors(labels)
    assert shown == [f"c{i}" for i in range(2, 12)]
    assert hidden == 2
    assert len(set(colors.values())) == 10


def test_minus_is_a_minus_sign() -> None:
    assert signed(-1234.56) == "−1,234.6"


def test_a_canvas_leaves_matplotlibs_settings_as_they_were(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    with Canvas(3, 2, "headline", "a note") as canvas:
        canvas.axes(0.3, 0.1, 2, 1).plot([0, 1])
        canvas.save(tmp_path / "picture.png")
    assert dict(matplotlib.rcParams) == before


def test_long_notes_and_headlines_go_on_in_another_line(monkeypatch: pytest.MonkeyPatch) -> None:
    note = "of 292 training images: marginal KL <= 123.45 nats over all dimensions, mutual "
    note += "information >= 5.65 (can't show more than log N = 5.68)\n" + "x" * 300

    def draw(target: Target) -> None:
        with Canvas(4, 1, "A headline that is much longer than the picture is wide", note) as c:
            c.axes(0.2, 0.1, 3, 0.7)
            c.save(target)

    figure = figure_of(monkeypatch, draw)
    assert unreadable(figure) == []
    said = " ".join(words(figure))
    assert "longer than the picture is wide" in said
    assert "(can't show more than log N = 5.68)" in said
