from dataclasses import fields, replace
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.latent_scale import LatentScale
from pipeline.latents.identity import AlsoEncoder, Content, EncodeOptions, Identity, View

OPTIONS = EncodeOptions(precision="fp32", content="sample")
IDENTITY = Identity("m" * 64, "p" * 64, (4, 2, 2), OPTIONS)
OTHER: dict[str, Any] = {
    "precision": "bf16", "batch_size": 63, "dtype": "float32", "content": "mean", "seed": 1,
    "flip": True, "columns": ("label",), "kinds": ("int64",), "where": "a > 1",
    "where_kinds": (("a", "double"),), "views": (View(32),), "crop": "pad", "resize": "bicubic",
    "also": (AlsoEncoder("a:B", "d" * 64, (("v", 3),)),), "tile": 64, "crops": 2,
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(EncodeOptions)])
def test_every_option_that_changes_a_byte_changes_the_identity(name: str) -> None:
    plain = replace(OPTIONS, where="a > 2" if name == "where_kinds" else "")
    changed = replace(IDENTITY, options=replace(plain, **{name: OTHER[name]}))
    assert changed.digest != IDENTITY.digest
    assert Identity.from_json(changed.to_json()) == changed


@pytest.mark.parametrize(
    "change",
    [
        {"model_digest": "n" * 64},
        {"preprocess_digest": "q" * 64},
        {"latent_shape": (4, 2, 1)},
        {"scale": LatentScale(scaling_factor=0.5)},
    ],
)
def test_another_model_preprocessing_or_shape_is_another_identity(change: dict[str, Any]) -> None:
    assert replace(IDENTITY, **change).digest != IDENTITY.digest


@pytest.mark.parametrize("content", ["moments", "mean"])
def test_a_seed_that_nothing_draws_with_splits_no_store(content: Content) -> None:
    one, other = (
        replace(IDENTITY, options=replace(OPTIONS, content=content, seed=seed)) for seed in (0, 9)
    )
    assert one.digest == other.digest


@pytest.mark.parametrize("column", ["key", "mean", "logvar_flipped", "position", "crop_box"])
def test_a_column_with_the_name_of_the_stores_own_is_refused(column: str) -> None:
    with pytest.raises(ConfigError, match=column):
        EncodeOptions(precision="fp32", columns=(column,))


@pytest.mark.parametrize(
    ("content", "flip", "names"),
    [
        ("moments", False, ("mean", "logvar")),
        ("moments", True, ("mean", "logvar", "mean_flipped", "logvar_flipped")),
        ("mean", True, ("mean", "mean_flipped")),
        ("sample", False, ("sample",)),
    ],
)
def test_the_tensors_follow_from_content_and_flip(
    content: Content, flip: bool, names: tuple[str, ...]
) -> None:
    assert EncodeOptions(precision="fp32", content=content, flip=flip).tensors == names


def test_buckets_keep_within_their_area_and_step_and_hold_the_square() -> None:
    for size, step in ((256, 64), (512, 64), (1024, 64), (64, 8), (100, 16)):
        shapes = View(size, step).shapes
        assert len(set(shapes)) == len(shapes) > 4
        for height, width in shapes:
            assert height % step == width % step == 0
            assert height * width <= size**2
            assert max(height, width) <= 4 * min(height, width)
            assert (width, height) in shapes
        square = size // step * step
        assert (square, square) in shapes
        # None that could be larger in either direction.
        assert all(max((h + step) * w, h * (w + step)) > size**2 for h, w in shapes)


def test_an_image_goes_to_the_bucket_that_is_nearest_to_its_own_proportions() -> None:
    view = View(256, 64)
    assert view.shape_for(3000, 3000) == (256, 256)
    assert view.shape_for(2000, 3000) == (192, 320)
    assert view.shape_for(3000, 2000) == (320, 192)
    assert view.shape_for(10, 5000) == (128, 512)
    assert View(256).shape_for(10, 5000) == (256, 256)
