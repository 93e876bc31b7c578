import re
import shlex
from pathlib import Path

import pytest

from jobs.command import parse_flags, validate
from pipeline.config import TrainConfig

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "pipeline/recipes").glob("*.yaml"))


def header(recipe: Path) -> dict[str, str]:
    return dict(re.findall(r"^# (\w+): (.+)$", recipe.read_text(), re.MULTILINE))


def test_there_are_the_four_recipes_that_the_readme_names() -> None:
    names = {recipe.stem for recipe in RECIPES}
    assert names == {"digits", "mnist-mlp", "photos-64", "imagenet-256-f8"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipes_own_command_is_a_valid_training(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    said = header(recipe)
    assert {"command", "time", "number"} <= said.keys()
    vae, job, *words = shlex.split(said["command"])
    assert (vae, job) == ("vae", "train")
    assert words[:2] == ["--recipe", recipe.stem]
    values, _ = parse_flags(TrainConfig, words, "jobs.train")
    config = validate(TrainConfig, values)
    assert config.run
    assert re.search(r"\d|not measured", said["number"])
