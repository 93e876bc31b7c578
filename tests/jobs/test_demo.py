from pathlib import Path

import pytest

from jobs.demo import DemoConfig, named_after, train_config


@pytest.mark.parametrize(
    ("folder", "name"),
    [("/data/_my photos (2)", "my-photos-2"), ("/", "images"), ("/" + "x" * 90, "x" * 40)],
)
def test_a_demo_of_a_folder_of_any_name_is_a_run_that_can_be_named(folder: str, name: str) -> None:
    assert named_after(Path(folder)) == name
    place = Path("runs/demo") / f"{name}-12"
    config = train_config(DemoConfig(images=folder), place, "dataset")
    assert config.run == f"{name}-12"
