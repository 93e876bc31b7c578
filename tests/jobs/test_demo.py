import shutil
from pathlib import Path

import pytest

from jobs.demo import label_column, named_after, train_config, write_digits
from pipeline.config import DemoConfig, PackConfig
from pipeline.packing.pack import pack


@pytest.mark.parametrize(
    ("folder", "name"),
    [("/data/_my photos (2)", "my-photos-2"), ("/", "images"), ("/" + "x" * 90, "x" * 40)],
)
def test_a_demo_of_a_folder_of_any_name_is_a_run_that_can_be_named(folder: str, name: str) -> None:
    assert named_after(Path(folder)) == name
    place = Path("runs/demo") / f"{name}-12"
    config = train_config(DemoConfig(images=folder), place, "dataset")
    assert config.run == f"{name}-12"


def test_a_folder_without_sub_folders_has_no_labels_to_encode(tmp_path: Path) -> None:
    write_digits(tmp_path / "images", range(20))
    (tmp_path / "flat").mkdir()
    for path in (tmp_path / "images").rglob("*.png"):
        shutil.copy(path, tmp_path / "flat")
    packed = {
        name: pack(PackConfig(source=(str(tmp_path / name),), output=f"{tmp_path}/of-{name}"))
        for name in ("images", "flat")
    }
    assert label_column(packed["images"].dataset) == ("label",)
    assert label_column(packed["flat"].dataset) == ()


def test_the_demo_of_photographs_trains_as_their_recipe_says() -> None:
    config = train_config(DemoConfig(images="photos"), Path("runs/demo/photos-1"), "dataset")
    assert (config.image_size, config.model.latent_size) == (64, 16)
    assert train_config(DemoConfig(), Path("runs/demo/d-1"), "dataset").image_size == 8
