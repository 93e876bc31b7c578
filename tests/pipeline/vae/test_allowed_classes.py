"""A bundle says which class it needs; only the user's own word makes it be imported."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.errors import ModelError
from pipeline.registry.models import copy_bundle
from pipeline.vae import build_vae, load_bundle, save_bundle


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bundle of kind custom in a folder that is on the path, as the current one is."""
    path = "tests.pipeline.vae.test_custom:Patches"
    torch.manual_seed(0)
    vae = build_vae(
        ModelConfig(kind="custom", custom=path), PreprocessConfig(image_size=8, channels=1)
    )
    folder = tmp_path / "theirs"
    save_bundle(vae, folder, {})
    (folder / "evil.py").write_text("from pathlib import Path\nPath(__file__ + '.ran').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder, path


def test_a_bundle_of_a_class_that_nobody_named_is_refused_and_says_how_to_allow_it(
    theirs: Any,
) -> None:
    folder, path = theirs
    with pytest.raises(ModelError, match=f"--allow-custom {path}"):
        load_bundle(folder)
    with pytest.raises(ModelError, match="no part of this program"):
        load_bundle(folder, [f"{path}2"])


def test_a_class_that_was_named_is_built(theirs: Any) -> None:
    folder, path = theirs
    assert load_bundle(folder, [path]).digest


def test_another_digest_is_refused_before_a_file_of_the_bundle_is_read(theirs: Any) -> None:
    folder, path = theirs
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="another model lies there"):
        load_bundle(folder, [path], digest="0" * 64)


def test_only_the_files_that_a_bundle_names_are_copied(theirs: Any, tmp_path: Path) -> None:
    copy_bundle(str(theirs[0]), tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "bundle.json", "config.json", "model.safetensors", "preprocess.json",
    ]  # fmt: skip
