"""docs/recipes.md repeats what the recipes' own headers say: one source, and a test between."""

import re
from typing import Any

import pytest

from tests.docs.blocks import ROOT
from tests.jobs.test_recipes import RECIPES, header

README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs/recipes.md").read_text()
SECTIONS = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipes_command_time_and_number_are_those_of_its_file(recipe: Any) -> None:
    said, section = header(recipe), SECTIONS[recipe.stem]
    assert f"\n{said['command']}\n" in section
    assert f"\n- time: {said['time']}\n" in section
    assert f"\n- number: {said['number']}\n" in section


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_the_readmes_number_is_a_part_of_the_recipes(recipe: Any) -> None:
    (row,) = re.findall(rf"^\| `{recipe.stem}` \| (.+) \| (.+) \|$", README, re.M)
    number, time = row
    said = header(recipe)
    assert number in said["number"]
    assert time in said["time"]


def test_the_page_has_a_section_for_each_recipe_and_no_other() -> None:
    assert sorted(SECTIONS) == sorted(recipe.stem for recipe in RECIPES)
