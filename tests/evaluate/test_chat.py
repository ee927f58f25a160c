"""Chat prompts: the rules by hand, templates that do and do not render, and a run of a chat model."""

from __future__ import annotations

import json
from itertools import combinations

import pytest
import torch
import transformers

from lifelong.errors import InputError
from lifelong.evaluate.chat import (
    FORMATS,
    NEW_TOKENS,
    ChatPrompt,
    answer_prompts,
    chat_prompts,
    check_template,
    end_of_turn,
    is_language,
    judged,
    prompt_ids,
    stop_words,
)
from lifelong.ledger.history import read_history
from lifelong.ledger.ledger import check_run, read_records
from lifelong.pipeline import run_recipe
from lifelong.plan import plan_recipe
from lifelong.recipe import parse_recipe
from lifelong.records import ChatScores
from lifelong.report import matrix_json, write_report
from lifelong.report.uncertainty import wilson_interval
from tests.support import Dies, recipe_data, run_cli, tiny_checkpoint

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory, cards):
    return tiny_checkpoint(tmp_path_factory.mktemp("chat") / "base", cards, TEMPLATE)


@pytest.fixture(scope="module")
def tokenizer(base):
    return transformers.AutoTokenizer.from_pretrained(base)


def chat_recipe(base, cards, **changes):
    data = recipe_data(cards, model={"checkpoint": str(base)}, inherit=None, replay=None)
    del data["tokenizer"]
    data["stages"] = [{**stage, "tokens": 600} for stage in data["stages"]]
    return parse_recipe({**data, **changes})


def test_there_are_forty_prompts_with_known_rules():
    prompts = chat_prompts()
    assert len(prompts) == len({prompt.ask for prompt in prompts}) == 40
    assert {prompt.format[0] for prompt in prompts if prompt.format} == set(FORMATS)
    assert {prompt.language for prompt in prompts} - {None} == {*stop_words(), "ru", "zh"}
    assert all(one.isdisjoint(other) for one, other in combinations(stop_words().values(), 2))


@pytest.mark.parametrize(
    ("check", "setting", "good", "bad"),
    [
        ("json", ["name", "age"], '```json\n{"name": "Ann", "age": 30}\n```', '{"name": "Ann"}'),
        ("json", ["name"], '{"name": 1}', 'Here it is: {"name": 1}'),
        ("json", 4, "[1, 2, 3, 4]", "[1, 2, 3]"),
        ("lines", 2, "Mars\n\nVenus", "Mars"),
        ("items", 3, "- a\n- b\n- c", "a\nb\nc"),
        ("items", 2, "1. a\n2) b", "1. a\n2. b\n3. c"),
        ("commas", 3, "cat, dog, cow", "cat and dog, cow"),
        ("words", 1, "Rome.", "It is Rome."),
        ("choice", ["yes", "no"], "No.", "No, it is hot."),
        ("number", True, "9", "nine"),
        ("upper", True, "HELLO, YOU 2!", "Hello"),
        ("lower", True, "a cat purrs.", "A cat purrs."),
        ("sentences", 2, "One here. Two 3.5 there!", "One only."),
        ("begins", "Because", "Because it is cold.", "We wear coats because"),
        ("ends", "done.", "The moon is round. done.", "Done"),
    ],
)
def test_a_format_is_kept_or_not(check, setting, good, bad):
    assert FORMATS[check](good, setting)
    assert not FORMATS[check](bad, setting)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "A baker is someone that bakes bread for the people of a town."),
        ("de", "Ein Baum ist eine große Pflanze, die sehr alt wird und nicht läuft."),
        ("fr", "Le chien est un animal qui vit avec les hommes."),
        ("es", "El mar es muy grande y los barcos van por el mar."),
        ("it", "Il mare è una distesa di acqua che bagna il paese."),
        ("ru", "Книга — это много страниц, например ISBN."),
        ("zh", "水是一种无色的液体 H2O。"),
    ],
)
def test_a_language_is_known_by_its_script_or_its_stop_words(code, text):
    others = [name for name in (*stop_words(), "ru", "zh") if name != code]
    assert is_language(text, code)
    assert not any(is_language(text, other) for other in others)
    assert not is_language("", code)


def test_an_answer_ends_at_the_first_token_that_stops(tokenizer):
    stop = tokenizer.eos_token_id
    yes, more = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("yes", " wave"))
    prompt = ChatPrompt("?", ("choice", ["yes"]), "en")
    whole = judged(prompt, [*yes, stop, *more, stop], frozenset([stop]), tokenizer)
    assert (whole.text, whole.stops, whole.format, whole.language) == ("yes", True, True, False)
    assert whole.tokens == len(yes) + 1
    endless = judged(prompt, [*yes, *more], frozenset([stop]), tokenizer)
    assert (endless.stops, endless.format, endless.tokens) == (False, False, len(yes) + len(more))


def test_an_echo_of_the_question_is_not_in_its_language(tokenizer):
    prompt = ChatPrompt("Was ist das und wie ist es?", None, "de")
    for text, spoken in ((prompt.ask, False), (f"{prompt.ask} Das ist ein Baum.", True)):
        assert judged(prompt, tokenizer(text)["input_ids"], frozenset(), tokenizer).language is spoken


def test_answers_are_those_of_one_prompt_at_a_time_without_a_cache(base, tokenizer):
    """Batches, padding in front and the cache change nothing: greedy answers token by token, from the whole text."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base).double().eval()
    prompts = [chat_prompts()[0], chat_prompts()[36]]
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id
    scores = answer_prompts(model, tokenizer, stage=3, prompts=prompts)
    for prompt, answer in zip(prompts, scores.answers, strict=True):
        ids = prompt_ids(tokenizer, prompt.ask)
        start = len(ids)
        while len(ids) < start + NEW_TOKENS and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer == judged(prompt, ids[start:], frozenset([tokenizer.eos_token_id]), tokenizer)
    assert scores.stage == 3
    assert scores.prompt_tokens == sum(len(prompt_ids(tokenizer, prompt.ask)) for prompt in prompts)
    assert ChatScores.from_json(json.loads(json.dumps(scores.to_json()))) == scores


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for m in messages %}{{ m.content", "does not render"),
        ("{{ messages[0].role }}", "leaves out the question"),
    ],
)
def test_a_template_that_does_not_render_is_refused_before_anything_is_trained(
    template, reason, cards, tmp_path, monkeypatch, capsys
):
    recipe = chat_recipe(tiny_checkpoint(tmp_path / "base", cards, template), cards)
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    for verb in (("run", tmp_path / "r.yaml", "--out", tmp_path / "run"), ("plan", tmp_path / "r.yaml")):
        assert run_cli(monkeypatch, *verb) == 2
        message = capsys.readouterr().err
        assert reason in message
        assert "evaluate: {chat: off}" in message
    assert not (tmp_path / "run").exists()
    plan_recipe(parse_recipe({**recipe.to_plain(), "evaluate": {"chat": "off"}}))


def test_a_model_without_room_for_the_prompts_is_refused(tokenizer):
    with pytest.raises(InputError, match="the model has 20 positions"):
        check_template(tokenizer, 20)


def test_a_chat_model_is_asked_before_and_after_every_stage(base, cards, tmp_path):
    recipe = chat_recipe(base, cards)
    planned = plan_recipe(recipe)
    assert any("nothing protects that" in warning for warning in planned.warnings)
    unasked = plan_recipe(chat_recipe(base, cards, evaluate={"tokens": 600, "chat": "off"}))
    assert planned.stages[0].evaluation_flops > unasked.stages[0].evaluation_flops
    run_recipe(recipe, tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe, tmp_path / "killed", Dies(1, 2))
    run_recipe(recipe, tmp_path / "killed")
    assert (tmp_path / "run/ledger.jsonl").read_bytes() == (tmp_path / "killed/ledger.jsonl").read_bytes()
    assert check_run(tmp_path / "run") == []
    history = read_history(tmp_path / "run")
    assert [scores.stage for scores in history.chat] == [-1, 0, 1]
    assert "initial/chat.json" in read_records(tmp_path / "run")[0].files
    assert read_records(tmp_path / "run")[1].cost["chat"]["flops"] > 0
    last = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run/stages/01-farm/model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run/stages/01-farm/model")
    assert answer_prompts(last, tokenizer, stage=1).rates == history.chat[-1].rates
    assert matrix_json(history)["chat"]["initial"]["stops"][1] == 40
    page = write_report(history, tmp_path / "report").read_text()
    assert "keeps the format" in page
    assert "nothing protects that" in page
    assert "| 01-farm |" in (tmp_path / "report/report.md").read_text().partition("answers in the language")[2]
    protected = chat_recipe(base, cards, replay={"memory_tokens": 1000})
    assert not any("nothing protects" in warning for warning in plan_recipe(protected).warnings)


def test_runs_that_are_not_asked_are_what_they_were(base, cards, tmp_path):
    """No template, no key in the recipe, no file: the fingerprint of a recipe that says nothing stays what it was."""
    plain = chat_recipe(base, cards)
    assert "chat" not in plain.to_plain()["evaluate"]
    assert chat_recipe(base, cards, evaluate={"tokens": 600, "chat": "auto"}).fingerprint == plain.fingerprint
    off = chat_recipe(base, cards, evaluate={"tokens": 600, "chat": "off"})
    assert off.fingerprint != plain.fingerprint
    run_recipe(off, tmp_path / "off")
    assert parse_recipe(off.to_plain()) == off
    assert not list((tmp_path / "off").rglob("chat.json"))
    assert not read_history(tmp_path / "off").chat
    with pytest.raises(InputError, match=r"evaluate\.chat"):
        chat_recipe(base, cards, evaluate={"chat": "never"})


def test_wilson_intervals_are_those_of_the_literature():
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for passed, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)):  # fmt: skip
        bounds = wilson_interval(passed, count)
        assert (bounds.low, bounds.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
