"""Domains that are watched: measured from the base model on, never trained on, kept by the run folder alone."""

import contextlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lifelong.errors import ForgettingBudgetExceeded, InputError
from lifelong.ledger.history import read_history
from lifelong.ledger.ledger import check_run, read_records
from lifelong.metrics import compute_all
from lifelong.pipeline import extend_run, run_recipe
from lifelong.plan import plan_recipe
from lifelong.recipe import parse_recipe
from lifelong.recipe.recipe import NOTHING_WATCHED
from lifelong.records import LossMatrix, RunObserver
from lifelong.report.verdict import budget_rows, decision
from lifelong.report.write import markdown
from tests.support import Dies, recipe_data, run_cli, write_domain


@pytest.fixture(scope="module")
def base(cards, tmp_path_factory):
    """A checkpoint that knows the sea."""
    out = tmp_path_factory.mktemp("base") / "run"
    tokenizer = {"train": {"kind": "bpe", "vocab_size": 300}}
    data = recipe_data(cards, replay=None, inherit=None, tokenizer=tokenizer, evaluate={"tokens": 600, "samples": 0})
    data["stages"] = [{"domain": str(cards / "sea.yaml"), "tokens": 60_000}]
    run_recipe(parse_recipe(data), out)
    return out / "stages" / "00-sea" / "model"


def adapting(base, cards, **changes):
    """A recipe that adapts the checkpoint to the farm, and watches the sea and the law."""
    data = recipe_data(cards, inherit=None, replay=None, evaluate={"tokens": 600, "samples": 0})
    return {
        **data,
        "model": {"checkpoint": str(base)},
        "tokenizer": None,
        "stages": [{"domain": str(cards / "farm.yaml"), "tokens": 4000}],
        "watch": [str(cards / "sea.yaml"), str(cards / "law.yaml")],
        **changes,
    }


class Heard(RunObserver):
    def __init__(self):
        self.notes, self.probes = [], []

    def noted(self, text):
        self.notes.append(text)

    def probed(self, point):
        self.probes.append(point)


@pytest.fixture(scope="module")
def watched(base, cards, tmp_path_factory):
    out = tmp_path_factory.mktemp("watched") / "run"
    heard = Heard()
    evaluate = {"tokens": 600, "samples": 0, "probes": 2, "probe_tokens": 100}
    run_recipe(parse_recipe(adapting(base, cards, evaluate=evaluate)), out, heard)
    return out, heard


def test_watched_domains_have_rows_of_their_own(watched):
    out, heard = watched
    matrix = json.loads((out / "report" / "matrix.json").read_text())
    assert matrix["domains"] == ["farm"]
    assert matrix["watched"] == ["sea", "law"]
    assert len(matrix["watched_initial"]) == 2
    assert len(matrix["watched_nats_per_token"]) == 1
    rises = [
        now - before for before, now in zip(matrix["watched_initial"], matrix["watched_nats_per_token"][0], strict=True)
    ]
    assert rises[0] > 0.05  # the sea is forgotten
    assert matrix["metrics"]["base_forgetting"] == pytest.approx(sum(rises) / 2)
    assert matrix["metrics"]["worst_base_forgetting"] == max(rises)
    assert set(matrix["intervals"]) >= {"base_forgetting", "worst_base_forgetting"}
    assert {point.domain for point in heard.probes} == {"farm", "sea", "law"}


def test_the_ledger_does_not_take_them_for_domains_of_the_stream(watched):
    out, _ = watched
    assert check_run(out) == []
    initial, stage = read_records(out)
    assert set(initial.row) == set(stage.row) == {"farm"}
    assert stage.replay == {}
    assert "stages/00-farm/watched.json" in stage.files
    history = read_history(out)
    assert [loss.domain for loss in history.losses[0]] == ["farm"]
    assert LossMatrix.from_json(history.matrix.to_json()) == history.matrix


def test_the_report_shows_them(watched, monkeypatch, capsys):
    out, _ = watched
    page = (out / "report" / "index.html").read_text()
    assert 'id="Watched"' in page or 'id="watched"' in page
    assert "Watched, never trained on" in (out / "report" / "report.md").read_text()
    assert run_cli(monkeypatch, "report", out) == 0
    said = capsys.readouterr().out
    assert "watched, never trained on" in said
    assert "Lost sea +" in said


def test_extending_needs_no_card_of_what_is_watched(watched, cards, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(watched[0], out)
    hidden = cards / "hidden"
    hidden.mkdir()
    for name in ("sea", "law"):
        (cards / f"{name}.yaml").rename(hidden / f"{name}.yaml")
    try:
        extend_run(out, cards / "town.yaml", tokens=1000)
    finally:
        for name in ("sea", "law"):
            (hidden / f"{name}.yaml").rename(cards / f"{name}.yaml")
        hidden.rmdir()
    matrix = read_history(out).matrix
    assert matrix.watched == ("sea", "law")
    assert all(value is not None for row in matrix.watched_nats_per_token for value in row)
    assert matrix.domains == ("farm", "town")


def test_a_killed_run_ends_in_the_same_bytes(watched, base, cards, tmp_path):
    recipe = parse_recipe(
        adapting(base, cards, evaluate={"tokens": 600, "samples": 0, "probes": 2, "probe_tokens": 100})
    )
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe, tmp_path / "run", Dies(0, 4))
    run_recipe(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "ledger.jsonl").read_bytes() == (watched[0] / "ledger.jsonl").read_bytes()


def test_a_watched_domain_may_join_later(watched, cards, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(watched[0], out)
    names = [str(cards / f"{name}.yaml") for name in ("sea", "law", "town")]
    extend_run(out, cards / "farm.yaml", tokens=1000, overrides=[f"watch=[{', '.join(names)}]"])
    matrix = read_history(out).matrix
    assert matrix.watched == ("sea", "law", "town")
    assert matrix.watched_initial[2] is None
    assert matrix.watched_nats_per_token[0][2] is not None  # measured before the stage with which it joined
    assert check_run(out) == []


# --- budgets ------------------------------------------------------------------------------------------------------


def test_a_budget_of_a_watched_domain_counts_from_the_base(base, cards, tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(adapting(base, cards, budget={"sea": "1%"})))
    assert run_cli(monkeypatch, "run", recipe, "--out", tmp_path / "run") == 3
    message = capsys.readouterr().err
    assert "Do not ship: sea: perplexity rose by" in message
    assert "there was no memory to replay" in message
    assert "inherit={teacher: previous}" in message
    assert [record.name for record in read_records(tmp_path / "run")] == ["initial"]


def test_a_domain_that_the_base_knew_is_protected_before_its_own_stage(base, cards, tmp_path):
    """The base knows the sea; a stage on the farm loses it, and the stage on the sea is still to come."""
    stages = [{"domain": str(cards / f"{name}.yaml"), "tokens": 4000} for name in ("farm", "sea")]
    data = adapting(base, cards, watch=None, stages=stages, budget={"sea": "5%"})
    with pytest.raises(ForgettingBudgetExceeded, match="sea: perplexity rose by"):
        run_recipe(parse_recipe(data), tmp_path / "run")


def test_a_watched_budget_raises_the_share_of_replay(base, cards, tmp_path):
    """The watched sea is over its budget from the first probe on, though nothing in the memory is."""
    replay = {"memory_tokens": 2000, "share": 0.1, "probes": 4, "min_share": 0.05, "max_share": 0.6}
    stages = [{"domain": str(cards / "law.yaml"), "tokens": 4000}]
    begun = parse_recipe(adapting(base, cards, stages=stages, replay=replay, watch=[str(cards / "sea.yaml")]))
    run_recipe(begun, tmp_path / "begun")
    shares = {}
    for name, budget in (("watched", ["budget={sea: 0.1%}"]), ("not", ["watch=null", "budget={law: 100%}"])):
        out = Path(shutil.copytree(tmp_path / "begun", tmp_path / name))
        with contextlib.suppress(ForgettingBudgetExceeded):
            extend_run(out, cards / "farm.yaml", tokens=6000, overrides=budget)
        (mix,) = [*out.glob("rejected/01-farm*/mix.json"), *out.glob("stages/01-farm/mix.json")]
        shares[name] = [segment["share"] for segment in json.loads(mix.read_text())]
    assert shares["watched"][-1] > 0.1 > shares["not"][-1]


# --- words --------------------------------------------------------------------------------------------------------


def history_of(watched, **changes):
    history = read_history(watched[0])
    matrix = replace(history.matrix, **changes.pop("matrix", {}))
    return replace(history, matrix=matrix, **changes)


def test_the_decision_is_one_line(watched):
    kept = {"watched_initial": (1.0, 2.0), "watched_nats_per_token": ((1.004, 2.01),)}
    budget = {**read_history(watched[0]).recipe, "budget": {"sea": 0.02, "law": 0.02}}
    ship = decision(history_of(watched, matrix=kept, recipe=budget))
    assert ship.startswith("Learned farm ")
    assert ship.endswith("Kept sea +0.4% (budget 2.0%), law +1.0% (budget 2.0%). Ship it.")
    assert "\n" not in ship
    lost = {"watched_initial": (1.0, 2.0), "watched_nats_per_token": ((1.5, 2.01),)}
    over = history_of(watched, matrix=lost, recipe=budget)
    assert decision(over).endswith("Lost sea +64.9% (budget 2.0%). Do not ship: sea is over its budget.")
    assert [row.state for row in budget_rows(over)] == ["BROKEN", "kept"]
    assert decision(history_of(watched, matrix=kept)).endswith("yours to say (`budget:`).")
    worse = {**kept, "nats_per_token": ((9.0,),)}
    assert "Do not ship: farm did not get better." in decision(history_of(watched, matrix=worse, recipe=budget))
    rejected = history_of(watched, matrix=kept, recipe=budget, rejected=("01-town",))
    assert "Do not ship: 01-town exceeded the forgetting budget" in decision(rejected)
    blind = {"watched": (), "watched_initial": (), "watched_nats_per_token": ()}
    assert decision(history_of(watched, matrix=blind)).endswith("name it in `watch:`.")
    assert f"**{ship}**" in markdown(history_of(watched, matrix=kept, recipe=budget))


def test_forgetting_counts_from_the_base():
    matrix = LossMatrix(("a", "b"), ("00-a", "01-b"), (0, 1), (1.0, 5.0), ((2.0, 5.0), (2.5, 1.0)))
    assert compute_all(matrix)["forgetting"] == pytest.approx(1.5)
    from_random = replace(matrix, initial=(7.0, 7.0))
    assert compute_all(from_random)["forgetting"] == pytest.approx(0.5)
    assert compute_all(matrix)["base_forgetting"] is None


def test_who_watches_nothing_is_told(base, cards, tmp_path):
    blind = parse_recipe(adapting(base, cards, watch=None))
    assert NOTHING_WATCHED in plan_recipe(blind).warnings
    heard = Heard()
    run_recipe(blind, tmp_path / "run", heard)
    assert NOTHING_WATCHED in heard.notes
    assert NOTHING_WATCHED not in plan_recipe(parse_recipe(adapting(base, cards))).warnings


def test_a_domain_that_is_watched_and_learned_is_in_both_places(base, cards, tmp_path):
    heard = Heard()
    data = adapting(base, cards, watch=[str(cards / "farm.yaml")])
    matrix = run_recipe(parse_recipe(data), tmp_path / "run", heard).matrix
    assert matrix.watched == matrix.domains == ("farm",)
    assert matrix.watched_nats_per_token == matrix.nats_per_token
    assert any(note.startswith("farm is watched and learned") for note in heard.notes)


def test_what_is_watched_costs_what_evaluation_costs(base, cards):
    few, many = (parse_recipe(adapting(base, cards, watch=watch)) for watch in (None, adapting(base, cards)["watch"]))
    evaluated = [plan_recipe(recipe).stages[0].evaluation_flops for recipe in (few, many)]
    assert evaluated[1] == pytest.approx(3 * evaluated[0])


def test_a_recipe_that_watches_nothing_is_what_it_was(cards):
    plain = parse_recipe(recipe_data(cards)).to_plain()
    assert "watch" not in plain


BAD = [
    ({"watch": ["nowhere"]}, "there is no domain 'nowhere'"),
    ({"watch": []}, r"watch: .*at least 1"),
    ({"watch": ["code", "code"]}, "names a domain twice"),
    ({"budget": {"lew": "2%"}}, r"budget: there is no stage or watched domain 'lew'.* 'law'"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD)
def test_bad_input_is_one_message_before_a_folder(base, cards, tmp_path, changes, reason):
    with pytest.raises(InputError, match=reason):
        run_recipe(parse_recipe(adapting(base, cards, **changes)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_text_that_the_tokenizer_cannot_represent_is_refused(cards, tmp_path):
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), "."]  # fmt: skip
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    model = tmp_path / "model"
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(model)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(model)
    write_domain(tmp_path, "farm")
    for split in ("train", "valid", "test"):
        (tmp_path / f"greek.{split}.jsonl").write_text(json.dumps({"text": "αβγ δεζ ηθι " * 20}) + "\n")
    (tmp_path / "greek.yaml").write_text(
        "name: greek\nsource: {files: [greek.train.jsonl], valid: [greek.valid.jsonl], test: [greek.test.jsonl]}\n"
    )
    data = adapting(model, tmp_path, objective="mlm", watch=[str(tmp_path / "greek.yaml")])
    with pytest.raises(InputError, match=r"watch: \d+% of the tokens of 'greek' are '\[UNK\]'"):
        run_recipe(parse_recipe(data), tmp_path / "run")
    assert math.isfinite(run_recipe(parse_recipe({**data, "watch": None}), tmp_path / "other").matrix.initial[0])
