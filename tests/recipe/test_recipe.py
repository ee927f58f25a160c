import pytest

from lifelong.errors import InputError
from lifelong.recipe import load_recipe, parse_recipe
from lifelong.recipe.files import known_recipes

GOOD = {
    "name": "x",
    "model": {"family": "llama", "layers": 2},
    "tokenizer": {"train": {"vocab_size": "2k"}},
    "stages": [{"domain": "a", "tokens": "1.5M"}],
}


def test_counts_and_fractions_are_read():
    recipe = parse_recipe({**GOOD, "replay": {"share": "20%"}, "budget": {"a": "2%"}})
    assert recipe.stages[0].tokens == 1_500_000
    assert recipe.tokenizer.train.vocab_size == 2000
    assert recipe.replay.share == 0.2
    assert recipe.budget == {"a": 0.02}


def test_every_error_is_reported_at_once_with_path_and_nearest_name():
    data = {
        **GOOD,
        "sequence_lenght": 3,
        "objective": "mml",
        "stages": [{"domain": "a", "tokens": -1}, {"domian": "b", "tokens": 5}],
    }
    with pytest.raises(InputError) as caught:
        parse_recipe(data)
    text = str(caught.value)
    assert "errors\n" in text
    assert "sequence_lenght: unknown key; did you mean 'sequence_length'?" in text
    assert "objective: input should be 'clm' or 'mlm', not 'mml'" in text
    assert "stages[0].tokens: input should be greater than or equal to 1" in text
    assert "stages[1].domian: unknown key; did you mean 'domain'?" in text
    assert "stages[1].domain: is missing" in text


@pytest.mark.parametrize(("changes", "message"), [
    ({"model": {}}, "name either `checkpoint`"),
    ({"model": {"family": "lama"}}, "did you mean 'llama'"),
    ({"model": {"checkpoint": "$NO_SUCH_VARIABLE/x"}}, "environment variable NO_SUCH_VARIABLE"),
    ({"tokenizer": None}, "a randomly initialised model brings none"),
    ({"methods": [{"name": "ewcc"}]}, "there is no method 'ewcc'"),
    ({"budget": {"b": 0.1}}, "there is no stage or watched domain 'b'"),
    ({"inherit": {"on": "replay"}}, "there is no `replay:` section"),
    ({"inherit": {"alpha": 2}}, "inherit.alpha"),
])  # fmt: skip
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(InputError, match=message.replace("$", r"\$").replace("(", r"\(")):
        parse_recipe({key: value for key, value in {**GOOD, **changes}.items() if value is not None})


def test_overrides_reach_lists_and_remove_sections(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\nmodel: {family: llama}\ntokenizer: {train: {}}\nstages: [{domain: a, tokens: 1M}]\ninherit: {on: all}\n"
    )
    recipe = load_recipe(path, ["stages.0.tokens=2M", "inherit=null", "train.learning_rate=1e-3"])
    assert recipe.stages[0].tokens == 2_000_000
    assert recipe.inherit is None
    assert recipe.train["learning_rate"] == 1e-3
    for bad in ("stages.1.tokens=1", "name.x=1", "nothing"):
        with pytest.raises(InputError, match="--set"):
            load_recipe(path, [bad])


def test_a_recipe_survives_yaml(tmp_path):
    recipe = parse_recipe({**GOOD, "inherit": {"on": "new"}})
    path = tmp_path / "again.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe
    assert load_recipe(path).fingerprint == recipe.fingerprint


def test_files_that_are_not_recipes_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(InputError, match="a recipe is a mapping"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(InputError, match=":1: not valid YAML"):
        load_recipe(tmp_path / "broken.yaml")
    with pytest.raises(InputError, match="did you mean 'quickstart'"):
        load_recipe("quickstrat")


def test_what_is_no_utf8_on_the_command_line_is_no_value():
    with pytest.raises(InputError, match=r"--set 'name=\\udcff': .* is not a valid YAML value"):
        load_recipe("quickstart", ["name=\udcff"])


@pytest.mark.parametrize("name", known_recipes())
def test_shipped_recipes_are_valid(name, monkeypatch):
    """Every shipped recipe, its cards and its growth; hub checkpoints cannot be planned without a network."""
    from lifelong.stream.cards.domain import load_domain
    from lifelong.train.arguments import check_train_section

    monkeypatch.setenv("LIFELONG_DATA", "data")
    recipe = load_recipe(name)
    assert recipe.name == name.replace("/", "-")
    assert recipe.description
    assert check_train_section(recipe.train) == []
    for stage in recipe.stages:
        load_domain(stage.domain)


def test_all_train_keys_are_known_by_their_own_names():
    from lifelong.train.arguments import check_train_section

    assert check_train_section({"gradient_accumulation_steps": 2, "bf16": True}) == []


def _with_shares(tmp_path, shares):
    path = tmp_path / "shares.yaml"
    path.write_text(
        "name: r\nmodel: {family: llama}\ntokenizer: {train: {}}\nstages:\n"
        f"  - {{domain: python-stdlib, tokens: 1M}}\n  - domain: licences\n    tokens: 2M\n    together_with: {shares}\n"
    )
    return path


@pytest.mark.parametrize(("shares", "message"), [
    ("{python-stdlib: 1.2}", r"line 8: stages\[1\].together_with.python-stdlib: input should be less than 1"),
    ("{python-stdlib: 0}", r"line 8: stages\[1\].together_with.python-stdlib: input should be greater than 0"),
    ("{python-stdlib: .nan}", r"line 8: stages\[1\].together_with.python-stdlib: .*number"),
    ("{python-stdlib: 0.7, bio: 0.4}", r"line 6: stages\[1\]: together_with: the shares sum to 1.1"),
    ("{licences: 0.2}", r"line 6: stages\[1\]: together_with: 'licences' is the stage's own domain"),
])  # fmt: skip
def test_shares_that_cannot_be_are_refused_with_file_and_line(shares, message, tmp_path):
    with pytest.raises(InputError, match=rf"shares.yaml: 1 error\n  {message}"):
        load_recipe(_with_shares(tmp_path, shares))


def test_an_unknown_card_of_a_share_is_named_with_its_line(tmp_path):
    from lifelong.recipe.check import check_recipe

    recipe = load_recipe(_with_shares(tmp_path, "{python-stdlibb: 20%}"))
    assert (recipe.stages[1].own_tokens, recipe.to_plain()["stages"][1]["together_with"]) == (
        1_600_000, {"python-stdlibb": 0.2},
    )  # fmt: skip
    message = r"line 8: stages\[1\].together_with.python-stdlibb: there is no domain .*; did you mean 'python-stdlib'"
    with pytest.raises(InputError, match=message):
        check_recipe(recipe)


@pytest.mark.parametrize(("replay", "changes", "message"), [
    ({"weights": {"licence": 2}}, {}, r"replay.weights.licence: there is no replayed domain .* 'licences'"),
    ({"weights": {"licences": 2}, "mix": "adaptive"}, {}, "replay.weights: `mix: adaptive` moves the weights"),
    ({"weights": {"licences": 2}}, {"budget": {"licences": 0.1}}, "replay.weights: `mix: budget` moves the weights"),
])  # fmt: skip
def test_replay_weights_that_cannot_be_are_refused(replay, changes, message):
    from lifelong.recipe.check import check_recipe

    stages = [{"domain": name, "tokens": "1k"} for name in ("licences", "python-stdlib")]
    with pytest.raises(InputError, match=message):
        check_recipe(parse_recipe({**GOOD, "stages": stages, "replay": replay, **changes}))
    with pytest.raises(InputError, match=r"replay.weights.a: input should be greater than 0"):
        parse_recipe({**GOOD, "replay": {"weights": {"a": 0}}})
