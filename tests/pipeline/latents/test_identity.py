from dataclasses import fields, replace
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.latents.identity import Content, EncodeOptions, Identity

OPTIONS = EncodeOptions(precision="fp32", content="sample")
IDENTITY = Identity("m" * 64, "p" * 64, (4, 2, 2), OPTIONS)
OTHER: dict[str, Any] = {
    "precision": "bf16", "batch_size": 63, "dtype": "float32", "content": "mean", "seed": 1,
    "flip": True, "columns": ("label",), "kinds": ("int64",),
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(EncodeOptions)])
def test_every_option_that_changes_a_byte_changes_the_identity(name: str) -> None:
    changed = replace(IDENTITY, options=replace(OPTIONS, **{name: OTHER[name]}))
    assert changed.digest != IDENTITY.digest
    assert Identity.from_json(changed.to_json()) == changed


@pytest.mark.parametrize(
    "change",
    [{"model_digest": "n" * 64}, {"preprocess_digest": "q" * 64}, {"latent_shape": (4, 2, 1)}],
)
def test_another_model_preprocessing_or_shape_is_another_identity(change: dict[str, Any]) -> None:
    assert replace(IDENTITY, **change).digest != IDENTITY.digest


@pytest.mark.parametrize("content", ["moments", "mean"])
def test_a_seed_that_nothing_draws_with_splits_no_store(content: Content) -> None:
    one, other = (
        replace(IDENTITY, options=replace(OPTIONS, content=content, seed=seed)) for seed in (0, 9)
    )
    assert one.digest == other.digest


@pytest.mark.parametrize("column", ["key", "mean", "logvar_flipped", "position"])
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
