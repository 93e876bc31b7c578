import io

import torch
from PIL import Image

from pipeline.figures.history import draw_history
from pipeline.runs.history import Moment, Validation


def validation(step: int) -> Validation:
    terms = {"elbo": -100.0 + step, "log_likelihood": -90.0 + step, "kl": 10.0}
    return Validation(step, 7, terms | {"posterior_gap": 1.0, "active_units": 3})


def test_a_way_has_its_curves_its_pull_and_the_same_images_through_time():
    way = [validation(step) for step in (0, 10, 20)]
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    moments = [Moment(found, images, images) for found in way]
    drawn = dict(draw_history(way, moments))
    assert list(drawn) == ["training_curves.png", "pull.png", "progress.png"]
    assert all(Image.open(io.BytesIO(png)).width > 500 for png in drawn.values())


def test_one_validation_is_no_way():
    assert dict(draw_history([validation(0)], [])) == {}
