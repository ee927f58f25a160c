"""The recipe that `init` writes loads, fits the memory it was given, and gives up what does not fit in order."""

from __future__ import annotations

import pytest
import transformers
import yaml

from lifelong.errors import InputError
from lifelong.plan import plan_recipe
from lifelong.plan.draft import RATES, ROOM, DraftInputs, Machine, draft_recipe, fitting
from lifelong.recipe.files import load_recipe, parse_recipe
from lifelong.schema import Yaml
from tests.support import run_cli, tiny_checkpoint

ROOMY = Machine("cpu", 8 << 30, bfloat16=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory, cards):
    return str(tiny_checkpoint(tmp_path_factory.mktemp("draft") / "base", cards))


def parsed(text):
    recipe = parse_recipe(yaml.load(text, Loader=Yaml))
    return recipe, list(recipe.watch or ()), {name: f"{allowed:.0%}" for name, allowed in recipe.budget.items()}


def test_the_draft_is_a_recipe_that_plans_to_what_it_says(base, cards):
    law, town = (str(cards / f"{name}.yaml") for name in ("law", "town"))
    text = draft_recipe(DraftInputs(base, [law, town], watch=[str(cards / "sea.yaml")], machine=ROOMY))
    recipe, watch, budget = parsed(text)
    assert recipe.model.checkpoint == base
    assert [stage.domain for stage in recipe.stages] == [law, town]
    assert 1_000 < recipe.stages[0].tokens < 60_000  # one pass over what there is
    assert (watch, budget) == ([str(cards / "sea.yaml")], {"sea": "2%"})
    assert recipe.replay is not None
    assert recipe.inherit is not None
    assert recipe.carry_optimizer
    assert recipe.train["learning_rate"] == RATES["unknown"]
    assert "not in the checkpoint" in text
    memory = plan_recipe(recipe).stages[0].memory
    assert f"{memory.total / 2**30:.2f} GiB of 8.0 free" in text
    assert memory.total < ROOM * ROOMY.free


def test_old_text_is_trained_on_and_needs_no_teacher(base, cards):
    law, sea = (str(cards / f"{name}.yaml") for name in ("law", "sea"))
    recipe, watch, _ = parsed(draft_recipe(DraftInputs(base, [law], old=[sea], machine=ROOMY)))
    assert recipe.stages[0].together_with == (sea,)
    assert recipe.inherit is None
    assert watch  # text that is installed with Python is there on every machine


@pytest.mark.parametrize(("tokens", "kind"), [(10**5, "young"), (10**9, "overtrained")])
def test_the_rate_follows_the_tokens_that_the_base_has_seen(base, cards, tokens, kind):
    text = draft_recipe(DraftInputs(base, [str(cards / "law.yaml")], base_tokens=tokens, machine=ROOMY))
    assert parsed(text)[0].train["learning_rate"] == RATES[kind]
    assert f"{kind.capitalize()} base" in text


def test_less_memory_takes_smaller_batches_then_checkpointing_then_the_teacher():
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=256, num_hidden_layers=8, num_attention_heads=2,
        max_position_embeddings=512,
    )  # fmt: skip

    def settings(free):
        fit = fitting(config, "clm", Machine("cpu", int(free), bfloat16=False), 10_000_000, teacher=True)
        assert fit.memory is None or fit.memory.total <= ROOM * free
        return fit

    roomy = settings(64 << 30)
    assert (roomy.length, roomy.rows, roomy.accumulation, roomy.checkpointing, roomy.teacher) == (
        256,
        64,
        1,
        False,
        True,
    )
    assert roomy.memory is not None
    small = settings(roomy.memory.total / ROOM / 4)
    assert small.rows < 64
    assert small.rows * small.accumulation == 64
    assert (small.checkpointing, small.teacher) == (False, True)
    least = [settings(2**exponent) for exponent in (26, 25, 24.5, 24, 23.5, 23, 22)]
    # what is given up is never taken back as memory shrinks
    order = [(fit.memory is None, not fit.teacher, fit.checkpointing) for fit in least]
    assert order == sorted(order)
    assert (False, False, True) in order
    assert (False, True, False) in order or (False, True, True) in order
    assert order[-1][0]


def test_a_gpu_trains_in_bfloat16_on_longer_rows(base, cards):
    text = draft_recipe(DraftInputs(base, [str(cards / "law.yaml")], machine=Machine("cuda", 8 << 30, bfloat16=True)))
    recipe = parsed(text)[0]
    assert recipe.train["bf16"] is True
    assert "use_cpu" not in recipe.train
    assert recipe.sequence_length == 512  # the positions of the base


def test_the_command_writes_a_file_once(base, cards, tmp_path, monkeypatch, capsys):
    named = ("init", base, "--domain", cards / "law.yaml", "--old", cards / "sea.yaml", "--out", tmp_path / "r.yaml")
    assert run_cli(monkeypatch, *named) == 0
    assert load_recipe(tmp_path / "r.yaml").stages[0].together_with == (str(cards / "sea.yaml"),)
    before = (tmp_path / "r.yaml").read_bytes()
    assert run_cli(monkeypatch, *named) == 2
    assert "already exists" in capsys.readouterr().err
    assert (tmp_path / "r.yaml").read_bytes() == before
    assert run_cli(monkeypatch, "init", base, "--domain", cards / "law.yaml", "--base-tokens", "many") == 2
    with pytest.raises(InputError, match="no such file"):
        draft_recipe(DraftInputs(base, [str(tmp_path / "none.yaml")], machine=ROOMY))
