import io

from PIL import Image

from pipeline.figures.evaluation import draw_evaluation
from tests.support.digit_findings import evaluated
from tests.support.digit_models import TRAINED_ON, digits_vae, images


def test_an_evaluation_draws_every_picture_once_each_wide_enough_to_print() -> None:
    measured, findings = evaluated()
    first = images()[0][TRAINED_ON : TRAINED_ON + 64]
    pictures = dict(draw_evaluation(digits_vae(), measured, findings, first, 0))
    assert list(pictures) == [
        "reconstructions.png",
        "samples.png",
        "samples_mixture.png",
        "interpolations.png",
        "traversals.png",
        "latent_means.png",
        "aggregated_posterior.png",
        "kl_per_dimension.png",
    ]
    for data in pictures.values():
        image = Image.open(io.BytesIO(data))
        assert image.width >= 800
