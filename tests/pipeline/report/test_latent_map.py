import io
import math
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.figures.canvas import label_names
from pipeline.report.latent_map import (
    _ATLAS_BYTES,
    Encoded,
    _atlas,
    draw_map,
    spread,
    steps_of,
)
from pipeline.report.map_markup import map_html
from tests.support.small_store import small_vae


def encoded(count: int) -> Encoded:
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=drawn)
    with torch.inference_mode():
        means = small_vae().encode(images).mean
    return Encoded("images", images, means, [str(n) for n in range(count)], None)


def test_the_ways_between_marked_images_are_what_the_model_decodes_there() -> None:
    vae, given = small_vae(), encoded(40)
    drawn = draw_map(vae, given)
    assert len(set(drawn.marked)) == 24
    assert drawn.ways is not None
    sheet = np.asarray(Image.open(io.BytesIO(drawn.ways.data)))
    pairs = list(combinations(drawn.marked, 2))
    for number in (0, 23, 275):
        a, b = pairs[number]
        for step in (0, 3, drawn.steps - 1):
            place = number * drawn.steps + step
            row, column = divmod(place, drawn.ways.columns)
            found = sheet[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8, 0]
            share = step / (drawn.steps - 1)
            latent = (1 - share) * given.means[a] + share * given.means[b]
            with torch.inference_mode():
                wanted = vae.decode(latent[None])[0, 0] * 255
            assert np.abs(found - wanted.numpy()).max() <= 1


def test_marks_lie_far_apart_and_points_on_one_another_are_marked_once() -> None:
    square = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.5], [0.5, 0.5]])
    assert spread(square, 5)[0] in (4, 5)
    assert sorted(spread(square, 24))[:4] == [0, 1, 2, 3]
    assert len(spread(square, 24)) == 5
    assert spread(np.zeros((0, 2)), 24) == []


@pytest.mark.parametrize("side", [8, 64, 256, 1024])
def test_a_way_has_its_ends_and_something_between_however_large_images_are(side: int) -> None:
    steps = steps_of(24, 3 * side**2)
    assert 3 <= steps <= 9
    assert steps == 9 or side > 64
    assert math.comb(24, 2) * (steps - 2) <= max(276, 30_000_000 // (3 * side**2))


def test_a_sheet_of_noise_stays_within_its_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (276 * 9, 64, 64, 3), dtype=np.uint8)
    made = _atlas(noise, 54, _ATLAS_BYTES["ways"])
    assert made.media == "image/jpeg"
    assert len(made.data) <= _ATLAS_BYTES["ways"]
    assert Image.open(io.BytesIO(made.data)).size == (54 * 64, 46 * 64)


def test_one_image_is_a_map_without_ways() -> None:
    drawn = draw_map(small_vae(), encoded(1))
    assert drawn.marked == [0]
    assert drawn.ways is None


def test_the_colours_that_the_legend_explains_are_seen_also_where_every_image_is_marked() -> None:
    labels = ["cats", "dogs", "cats", "dogs", "cats"]
    page = map_html(draw_map(small_vae(), replace(encoded(5), labels=labels)))
    rings = re.findall(r'<g class="mark"><circle [^>]* stroke="(#\w+)"/>', page)
    assert len(rings) == 5
    legend = re.findall(r'fill="(#\w+)"/></svg> (\w+)', page)
    assert Counter(rings) == {color: labels.count(name) for color, name in legend}


def test_images_without_a_label_are_grey_beside_those_that_have_one() -> None:
    assert label_names([None, None]) is None
    labels = label_names(["cats", None, "dogs", 3])
    page = map_html(draw_map(small_vae(), replace(encoded(4), labels=labels)))
    assert re.findall(r'fill="(#\w+)"/></svg> \(no label\)', page) == ["#94a4a2"]
    assert '"labels": ["cats", "(no label)", "dogs", "3"]' in page
