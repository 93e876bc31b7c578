import io

import torch
from PIL import Image

from pipeline.figures.curves import GapPoint
from pipeline.figures.history import draw_history
from pipeline.runs.history import Moment, Validation


def validation(step: int) -> Validation:
    terms = {"elbo": -100.0 + step, "log_likelihood": -90.0 + step, "kl": 10.0}
    return Validation(step, 7, terms | {"iwae_gap": 1.0, "active_units": 3})


def test_a_way_has_its_curves_its_pull_and_the_same_images_through_time() -> None:
    way = [validation(step) for step in (0, 10, 20)]
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    moments = [Moment(found, images, images) for found in way]
    course = torch.rand(20, 6, dtype=torch.float64)
    best = GapPoint(10, 3.0, "annealing")
    drawn = dict(draw_history(way, moments, course, chosen_step=10, best=best))
    assert list(drawn) == ["training_curves.png", "pull.png", "progress.png"]
    without = dict(draw_history(way, moments, course[:0], chosen_step=10))
    assert list(without) == ["training_curves.png", "progress.png"]
    assert without["training_curves.png"] != drawn["training_curves.png"]
    last = dict(draw_history(way, moments, course, chosen_step=20, best=best))
    assert last["training_curves.png"] != drawn["training_curves.png"]
    assert last["progress.png"] != drawn["progress.png"]
    assert all(Image.open(io.BytesIO(png)).width > 500 for png in drawn.values())


def test_one_validation_is_no_way() -> None:
    assert dict(draw_history([validation(0)], [], torch.empty(0, 6))) == {}
