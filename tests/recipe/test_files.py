"""Recipes that are another one with changes, and where recipes lie."""

import pytest
import yaml

from lifelong.errors import InputError
from lifelong.plugins import shipped_folder
from lifelong.recipe import load_recipe
from lifelong.recipe.files import find_recipe, known_recipes, merge, read_with_base, recipe_file, recipe_names

SHIPPED = recipe_names([shipped_folder("recipes")])


def read(path):
    return yaml.safe_load(path.read_text())


@pytest.fixture
def folder(tmp_path):
    size = tmp_path / "recipes" / "tiny"
    size.mkdir(parents=True)
    (size / "plain.yaml").write_text(
        "name: tiny-plain\nseed: 1\ntrain: {a: 1, b: 2}\nstages: [{domain: x}, {domain: y}]\n"
    )
    (size / "more.yaml").write_text("base: plain\ntrain: {b: 3, c: 4}\nstages: {1: {tokens: 5}}\nseed: null\n")
    (size / "most.yaml").write_text("base: more\nname: own\ntrain: {a: null}\n")
    return size


def test_changes_are_merged_over_the_base(folder):
    plain = read_with_base(folder / "more.yaml", read, [])
    assert plain == {
        "name": "tiny-more",
        "train": {"a": 1, "b": 3, "c": 4},
        "stages": [{"domain": "x"}, {"domain": "y", "tokens": 5}],
    }
    assert read_with_base(folder / "most.yaml", read, [])["train"] == {"b": 3, "c": 4}
    assert read_with_base(folder / "most.yaml", read, [])["name"] == "own"


def test_a_base_that_leads_back_is_refused(folder):
    (folder / "plain.yaml").write_text("base: most\n")
    with pytest.raises(InputError, match=r"leads back to itself: .*most\.yaml -> .*plain\.yaml"):
        read_with_base(folder / "most.yaml", read, [])


def test_an_entry_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="2 is not an index of the base's list; valid are 0 to 1"):
        merge({"stages": [1, 2]}, {"stages": {2: 3}}, "x.yaml")


def test_a_name_is_found_in_its_size_and_the_sizes_are_offered(folder):
    folders = [folder.parent]
    assert recipe_names(folders) == ["tiny/more", "tiny/most", "tiny/plain"]
    assert recipe_file("tiny/more", folders) == folder / "more.yaml"
    with pytest.raises(InputError, match="comes in several sizes: tiny/more"):
        recipe_file("more", folders)
    with pytest.raises(InputError, match="did you mean 'tiny/more'"):
        recipe_file("tiny/mor", folders)


@pytest.fixture(autouse=True)
def _data(monkeypatch):
    monkeypatch.setenv("LIFELONG_DATA", "data")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_whole_and_has_a_name_of_its_own(name):
    assert name in known_recipes()
    recipe = load_recipe(name)
    assert recipe.name
    size, _, method = name.rpartition("/")
    text = find_recipe(name).read_text()
    assert f"lifelong run {name}" in text or f"lifelong run {method} --size" in text, size


def test_a_recipe_of_any_size_is_that_of_a_size_with_its_bases(folder):
    overlays = folder.parent / "any-size"
    overlays.mkdir()
    (overlays / "less.yaml").write_text("sizes: [tiny]\nbase: more\ntrain: {b: null}\n")
    folders = [folder.parent]
    assert "tiny/less" in recipe_names(folders)
    assert not [name for name in recipe_names(folders) if name.startswith("any-size")]
    path = recipe_file("tiny/less", folders)
    plain = read_with_base(path, read, folders, home=folder)
    assert (plain["name"], plain["train"]) == ("tiny-less", {"a": 1, "c": 4})
    with pytest.raises(InputError, match="there is no recipe 'small/less'"):
        recipe_file("small/less", folders)


def test_no_two_recipes_share_a_run_folder():
    names = [load_recipe(name).name for name in SHIPPED]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("size", ["tiny", "small", "elle-base"])
def test_a_size_has_every_method(size):
    everything = {
        "sequential", "replay", "ewc", "mas", "a-gem", "gem", "si", "logits-kd", "pnn", "lora", "joint", "elle",
        "elle-published", "ki", "ours", "final-size", "equal-extra-tokens",
    }  # fmt: skip
    assert everything <= {name.split("/")[1] for name in SHIPPED if name.startswith(f"{size}/")}
