"""Recipes are locked: a change of one, or of a default that it rests on, shows as a change of its golden file.

`python -m tests.test_recipes` writes the golden files anew.
"""

from pathlib import Path

import pytest

from jdiff.data import Latents
from jdiff.experiment import from_json, load_recipe, to_json
from jdiff.train.trainer import assemble

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
# A study is a script beside the recipes: it runs by itself and defines no experiment.
FILES = sorted((ROOT / "experiments").glob("*.py"))
RECIPES = [path for path in FILES if "\nexperiment = " in path.read_text()]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_as_recorded(recipe):
    assert load_recipe(recipe) == from_json((GOLDEN / f"{recipe.stem}.json").read_text())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_say_how_to_run_them_and_fit_together(recipe):
    assert f"jdiff train experiments/{recipe.name}" in recipe.read_text()
    experiment = load_recipe(recipe)
    assert assemble(experiment, 0 if isinstance(experiment.data, Latents) else 3).abstract.params


def test_what_is_no_recipe_is_a_study():
    studies = [path for path in FILES if path not in RECIPES]
    assert all(f"python experiments/{path.name}" in path.read_text() for path in studies)


def test_golden_files_belong_to_recipes():
    assert [path.stem for path in sorted(GOLDEN.glob("*.json"))] == [path.stem for path in RECIPES]


if __name__ == "__main__":
    for path in RECIPES:
        (GOLDEN / f"{path.stem}.json").write_text(to_json(load_recipe(path)))
