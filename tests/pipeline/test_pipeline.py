import json
import shutil

import pytest
import torch
import transformers

from lifelong.errors import ForgettingBudgetExceeded, InputError, Interrupted
from lifelong.evaluate.cards import evaluate_cards
from lifelong.ledger.history import read_history
from lifelong.ledger.ledger import check_run, read_records
from lifelong.pipeline import extend_run, run_recipe
from lifelong.recipe import parse_recipe
from lifelong.records import RunObserver
from lifelong.train import stage_trainer
from tests.support import Dies, recipe_data, write_domain


@pytest.fixture(scope="module")
def finished(cards, tmp_path_factory):
    """One run that all reading tests share; tests that change a run copy it."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run_recipe(parse_recipe(recipe_data(cards)), out)
    return out


def comparable(out):
    """What two runs must have in common: everything but clock times, the machine and what can be made again."""
    left_out = {".lock", ".cache", "report", "metrics.jsonl", "environment.json", "measured.json"}
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not left_out & set(path.relative_to(out).parts)
    }


def test_each_stage_learns_its_domain(finished):
    matrix = read_history(finished).matrix
    assert matrix.domains == ("sea", "farm")
    assert matrix.nats_per_token[0][0] < matrix.initial[0] - 0.5
    assert matrix.nats_per_token[1][1] < matrix.nats_per_token[0][1] - 0.5


def test_the_run_folder_is_what_the_contract_says(finished):
    for name in ("recipe.yaml", "environment.json", "ledger.jsonl", "stages/00-sea/model/config.json",
                 "stages/00-sea/model/model.safetensors", "stages/00-sea/model/tokenizer.json",
                 "stages/01-farm/expansion.json", "memory", "heldout", "report/matrix.json", "report/index.html",
                 "report/report.md", "report/domains.png"):  # fmt: skip
        assert (finished / name).exists(), name
    data = json.loads((finished / "report/matrix.json").read_text())
    assert {"domains", "stages", "initial", "nats_per_token", "bits_per_byte", "tokens", "metrics", "cost"} <= set(data)
    assert {"ap", "ap_plus", "forgetting", "bwt", "fwt"} <= set(data["metrics"])
    assert {"tokens", "flops", "teacher_flops", "seconds"} <= set(data["cost"])
    assert data["cost"]["teacher_flops"] > 0
    assert not (finished / ".work").exists()


def test_an_entry_of_the_matrix_is_recomputed_with_plain_transformers(finished, cards):
    """Only transformers and the contract's definition; nothing of ours but the figure to compare with."""
    folder = finished / "stages/01-farm/model"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    nats, tokens, num_bytes = 0.0, 0, 0
    for line in (cards / "sea.valid.jsonl").read_text().splitlines():
        text = json.loads(line)["text"]
        ids = [first, *tokenizer(text, add_special_tokens=False).input_ids]
        for start in range(0, len(ids) - 1, 31):
            window = torch.tensor([ids[start : start + 32]])
            with torch.no_grad():
                log_p = model(window).logits[0, :-1].double().log_softmax(-1)
            nats -= float(log_p.gather(1, window[0, 1:, None]).sum())
        tokens += len(ids) - 1
        num_bytes += len(text.encode())
        if tokens >= 600:
            break
    matrix = read_history(finished).matrix
    assert matrix.tokens[1][0] == tokens
    assert abs(nats / tokens - matrix.nats_per_token[1][0]) < 1e-5
    assert abs(nats / torch.log(torch.tensor(2.0)).item() / num_bytes - matrix.bits_per_byte[1][0]) < 1e-5


def test_the_growth_was_exact_and_is_recorded(finished):
    (expansion,) = [report for report in read_history(finished).expansions if report]
    assert expansion.passed
    assert expansion.max_logit_difference_float64 < 1e-10
    assert expansion.loss_difference < 1e-5
    assert expansion.target["hidden_size"] == 36


def test_replay_share_is_counted_in_the_curve(finished):
    points = [p for p in read_history(finished).train[1] if p.phase == "train"]
    replayed = sum(point.replay_tokens for point in points)
    assert abs(replayed / points[-1].tokens - 0.25) < 0.05
    assert points[0].alpha > 0
    assert points[-1].alpha == 0


def test_check_finds_a_flipped_byte_and_a_foreign_file(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    assert check_run(out) == []
    weights = out / "stages/00-sea/model/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    (out / "stages/00-sea/notes.txt").write_text("mine")
    findings = "\n".join(check_run(out))
    assert "model.safetensors: its content differs from what was committed" in findings
    assert "notes.txt: does not belong" in findings


def test_check_finds_a_changed_ledger(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    ledger = out / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"domain":"sea"', '"domain":"see"'))
    assert "ledger.jsonl:" in check_run(out)[0]


@pytest.mark.parametrize(("stage", "step"), [pytest.param(0, 6, marks=pytest.mark.slow), (1, 10)])
def test_a_killed_run_continues_to_the_same_bits(finished, cards, tmp_path, monkeypatch, stage, step):
    monkeypatch.setattr(stage_trainer, "SECONDS_BETWEEN_SAVES", 0.0)
    recipe = parse_recipe(recipe_data(cards))
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe, tmp_path / "run", Dies(stage, step))
    assert list((tmp_path / "run/.work").glob("*/train-checkpoints/checkpoint-*"))
    run_recipe(recipe, tmp_path / "run")
    assert comparable(tmp_path / "run") == comparable(finished)
    assert check_run(tmp_path / "run") == []


def test_a_request_to_stop_saves_and_ends_with_interrupted(cards, tmp_path):
    class Asker(RunObserver):
        def stepped(self, point):
            import os
            import signal

            if point.step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="saved"):
        run_recipe(parse_recipe(recipe_data(cards)), tmp_path / "run", Asker())
    assert list((tmp_path / "run/.work").glob("*/train-checkpoints/checkpoint-*/stage_state.json"))


def test_a_finished_run_does_nothing_when_asked_again(finished, cards):
    before = (finished / "ledger.jsonl").read_bytes()
    run_recipe(parse_recipe(recipe_data(cards)), finished)
    assert (finished / "ledger.jsonl").read_bytes() == before


def test_another_recipe_is_refused_and_the_difference_named(finished, cards):
    with pytest.raises(InputError, match=r"belongs to another recipe; different: replay.share"):
        run_recipe(parse_recipe(recipe_data(cards, replay={"memory_tokens": 2000, "share": 0.5})), finished)


def test_a_folder_with_other_files_is_refused(cards, tmp_path):
    (tmp_path / "holiday.jpg").write_text("")
    with pytest.raises(InputError, match="holds other files and no ledger"):
        run_recipe(parse_recipe(recipe_data(cards)), tmp_path)


def test_a_finished_run_learns_one_more_domain_without_the_old_corpora(finished, cards, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    elsewhere = tmp_path / "new"
    elsewhere.mkdir()
    card = write_domain(elsewhere, "law")
    hidden = cards.rename(cards.with_name("gone"))
    try:
        result = extend_run(out, str(card), tokens=3000, overrides=["stages.2.expand.layers=4"])
    finally:
        hidden.rename(cards)
    assert result.matrix.domains == ("sea", "farm", "law")
    assert result.matrix.nats_per_token[0][2] is None
    assert result.matrix.nats_per_token[1][2] > result.matrix.nats_per_token[2][2]
    assert all(value is not None for value in result.matrix.nats_per_token[2])
    assert check_run(out) == []


def test_masked_language_models_run_too(cards, tmp_path):
    data = recipe_data(cards, objective="mlm", model={"checkpoint": str(tmp_path / "bert")})
    data["stages"][0]["tokens"] = 30_000
    del data["stages"][1]["expand"]
    from lifelong.stream.cards.domain import load_domain
    from lifelong.stream.tokenize import train_tokenizer

    tokenizer = train_tokenizer(
        [load_domain(str(cards / "sea.yaml")), load_domain(str(cards / "farm.yaml"))], vocab_size=320
    )
    tokenizer.save_pretrained(tmp_path / "bert")
    del data["tokenizer"]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=320, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    matrix = run_recipe(parse_recipe(data), tmp_path / "run").matrix
    assert matrix.nats_per_token[0][0] < matrix.initial[0] - 0.3


STAND_INS = {
    "gpt2": {"n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "qwen3": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
              "head_dim": 12, "intermediate_size": 40, "max_position_embeddings": 32},
}  # fmt: skip


@pytest.mark.parametrize("model_type", STAND_INS)
def test_a_checkpoint_with_its_own_tokenizer_is_a_start(model_type, cards, tmp_path):
    """Small local stand-ins for the hub checkpoints of the adapt-* recipes; the first stage has a teacher."""
    from lifelong.stream.cards.domain import load_domain
    from lifelong.stream.tokenize import train_tokenizer

    tokenizer = train_tokenizer([load_domain(str(cards / f"{name}.yaml")) for name in ("sea", "farm")], vocab_size=320)
    tokenizer.save_pretrained(tmp_path / "start")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=320, bos_token_id=0, eos_token_id=0, **STAND_INS[model_type]
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "start")
    data = recipe_data(cards, model={"checkpoint": str(tmp_path / "start")})
    del data["tokenizer"]
    data["stages"][1].pop("expand")
    if model_type == "qwen3":
        data["stages"][1]["expand"] = {"layers": 3}
    result = run_recipe(parse_recipe(data), tmp_path / "run")
    assert result.matrix.nats_per_token[0][0] < result.matrix.initial[0]
    assert result.cost.teacher_flops > 0
    assert read_history(tmp_path / "run").train[0][0].alpha > 0


def test_a_hub_checkpoint_that_cannot_be_reached_is_one_message(tmp_path):
    from lifelong.plan import plan_recipe
    from lifelong.recipe import load_recipe

    with pytest.raises(InputError, match="checkpoint 'openai-community/gpt2'"):
        run_recipe(load_recipe("adapt-gpt2"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="checkpoint 'Qwen/Qwen3"):
        plan_recipe(load_recipe("adapt-qwen3"))


def test_an_exceeded_budget_rejects_the_stage(cards, tmp_path):
    data = recipe_data(cards, budget={str(cards / "sea.yaml"): 0.0001}, replay=None, inherit=None)
    data["budget"] = {"sea": "0.01%"}
    data["stages"][0]["domain"] = "sea"
    data["stages"][1]["domain"] = "farm"
    import os

    os.environ["LIFELONG_DOMAINS"] = str(cards)
    try:
        with pytest.raises(ForgettingBudgetExceeded, match="sea: perplexity rose by"):
            run_recipe(parse_recipe(data), tmp_path / "run")
    finally:
        del os.environ["LIFELONG_DOMAINS"]
    assert [record.name for record in read_records(tmp_path / "run")] == ["initial", "00-sea"]
    assert list((tmp_path / "run/rejected").glob("01-farm-*/model/model.safetensors"))


def test_evaluating_a_run_gives_the_matrix_again(finished, cards):
    (loss,) = evaluate_cards(
        str(finished), [str(cards / "sea.yaml")], tokens=600, sequence_length=32, objective="clm", split="valid"
    )
    assert loss.nats_per_token == read_history(finished).matrix.nats_per_token[1][0]


BAD = [
    ({"train": {"learning_rat": 1e-3, "output_dir": "x"}}, ["train.learning_rat", "did you mean 'learning_rate'", "train.output_dir: is decided by"]),
    ({"stages": [{"domain": "nowhere", "tokens": 100}]}, ["there is no domain 'nowhere'"]),
    ({"methods": [{"name": "l2", "strenght": 1}]}, ["methods.l2.strenght", "did you mean 'strength'"]),
    ({"model": {"checkpoint": "missing/folder"}, "tokenizer": None}, ["missing/folder"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "messages"), BAD)
def test_bad_input_is_refused_before_anything_is_written(cards, tmp_path, changes, messages):
    data = {key: value for key, value in recipe_data(cards, **changes).items() if value is not None}
    with pytest.raises(InputError) as caught:
        run_recipe(parse_recipe(data), tmp_path / "run")
    for message in messages:
        assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_smaller_target_is_refused_at_once(cards, tmp_path):
    data = recipe_data(cards)
    data["stages"][1]["expand"] = {"layers": 1}
    with pytest.raises(InputError, match=r"stages\[1\].expand: layers: 1 is smaller than the model's 2"):
        run_recipe(parse_recipe(data), tmp_path / "run")


def test_a_vocabulary_that_does_not_fit_is_refused(cards, tmp_path, finished):
    source = shutil.copytree(finished / "stages/00-sea/model", tmp_path / "model")
    config = json.loads((source / "config.json").read_text())
    other = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**{**config, "vocab_size": 100, "tie_word_embeddings": True})
    )
    other.save_pretrained(source)
    data = recipe_data(cards, model={"checkpoint": str(source)})
    del data["tokenizer"], data["stages"][1]["expand"]
    with pytest.raises(
        InputError, match=r"room for 100; use the model's own tokenizer, or grow it first: lifelong expand"
    ):
        run_recipe(parse_recipe(data), tmp_path / "run")


def test_the_result_does_not_depend_on_how_a_step_is_cut_into_micro_batches(cards, finished, tmp_path):
    data = recipe_data(cards)
    data["train"] = {**data["train"], "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    split = run_recipe(parse_recipe(data), tmp_path / "run").matrix
    whole = read_history(finished).matrix
    for one, other in zip(split.nats_per_token, whole.nats_per_token, strict=True):
        assert one == pytest.approx(other, abs=2e-3)
    first = [read_history(out).train[0][0].loss for out in (tmp_path / "run", finished)]
    assert first[0] == pytest.approx(first[1], abs=1e-5)
