import json
from pathlib import Path

import mlflow.models
import pytest

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.errors import ModelError
from pipeline.registry.models import _parse, model_tags, save_pyfunc
from pipeline.vae import build_vae, save_bundle
from tests.support.small_store import small_vae


@pytest.mark.parametrize("uri", ["models:/@champion", "models:/vae@", "models:/vae", "vae/1"])
def test_a_uri_without_a_name_or_without_alias_and_version_is_refused(uri: str) -> None:
    with pytest.raises(ModelError, match="is neither models:/NAME@ALIAS nor models:/NAME/VERSION"):
        _parse(uri)


def test_a_uri_names_an_alias_or_a_version() -> None:
    assert _parse("models:/vae@champion") == ("vae", "champion", None)
    assert _parse("models:/vae/12") == ("vae", None, "12")


@pytest.mark.parametrize(
    ("crop", "judged"),
    [("center", "center"), ("random", "center"), ("pad", "pad"), ("stretch", "stretch")],
)
def test_a_versions_tags_say_how_the_images_are_cut_that_it_is_judged_by(
    crop: str, judged: str
) -> None:
    read = PreprocessConfig.model_validate({"image_size": 8, "channels": 1, "crop": crop})
    tags = model_tags(build_vae(ModelConfig(kind="mlp", width=8), read))
    assert json.loads(tags["preprocess"])["crop"] == judged


def test_the_signature_states_the_shapes_that_the_model_takes_and_gives(tmp_path: Path) -> None:
    save_bundle(small_vae(), tmp_path / "bundle")  # latents [3, 2, 2]
    save_pyfunc(str(tmp_path / "bundle"), tmp_path / "model")
    signature = mlflow.models.Model.load(str(tmp_path / "model")).signature
    assert [spec.shape for spec in signature.inputs] == [(-1, 1, 8, 8)]
    assert [spec.shape for spec in signature.outputs] == [(-1, 6, 2, 2)]
