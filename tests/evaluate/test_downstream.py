"""Fine-tuned copies: what a model sees, scores by hand, prompts, cards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from lifelong.errors import InputError, UnknownNameError
from lifelong.evaluate.downstream import (
    FineTuning,
    PromptedClassifier,
    _collate,
    _encoded,
    chosen_prompts,
    evaluate_tasks,
    read_prompts,
    scores_of,
)
from lifelong.evaluate.task import known_tasks, load_task, read_examples
from lifelong.report.downstream import caption, mean_and_deviation, tasks_details, tasks_table
from lifelong.stream.tokenize import train_tokenizer
from lifelong.stream.tokenizers.load import load_tokenizer


def write_task(folder: Path, name: str = "weather", rows: int = 24, **changes: str) -> Path:
    """Two classes that one word tells apart."""
    for split in ("train", "dev", "test"):
        lines = [
            json.dumps({"text": f"today we see {'sun' if i % 2 else 'rain'} over town {i % 7}", "label": "ny"[i % 2]})
            for i in range(rows)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    card = folder / f"{name}.yaml"
    data = {"name": name, "domain": "sky", "source": {s: [f"{s}.jsonl"] for s in ("train", "dev", "test")}, **changes}
    card.write_text(json.dumps(data))
    return card


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny causal model and its tokenizer."""
    folder = tmp_path_factory.mktemp("downstream")
    (folder / "t.jsonl").write_text(json.dumps({"text": "today we see sun and rain over town " * 30}) + "\n")
    (folder / "sky.yaml").write_text("name: sky\nsource: {files: [t.jsonl], valid: [t.jsonl], test: [t.jsonl]}\n")
    from lifelong.stream.cards.domain import load_domain

    tokenizer = train_tokenizer(
        [load_domain(folder / "sky.yaml")], kind="bpe", vocab_size=280, max_bytes=10_000, seed=0
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64,
    ))  # fmt: skip
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def test_a_copy_learns_an_easy_task_and_the_checkpoint_stays_as_it_is(checkpoint, tmp_path):
    before = (checkpoint / "model.safetensors").read_bytes()
    prompts = tmp_path / "prompts.safetensors"
    save_file({"sky": torch.randn(2, 32) * 0.02, "sea": torch.randn(2, 32) * 0.02}, prompts)
    task = load_task(write_task(tmp_path))
    settings = FineTuning(learning_rate=5e-3, epochs=4, patience=2, batch_size=8, seeds=2, length=32)
    (scores,) = evaluate_tasks(str(checkpoint), [task], settings, prompts=prompts)
    assert [(run.prompt, run.seed) for run in scores.runs] == [
        (p, s) for p in ("none", "right", "wrong") for s in (0, 1)
    ]
    assert max(run.macro_f1 for run in scores.runs) > 0.9
    assert all(run.micro_f1 == pytest.approx(run.accuracy) for run in scores.runs)
    assert (checkpoint / "model.safetensors").read_bytes() == before
    assert scores.num_classes == 2
    text = [str(cell) for row in tasks_details([scores]).rows for cell in row]
    assert all(word in text for word in ("none", "right", "wrong", "weather"))
    assert tasks_table([scores]).row_count == 3


def test_the_same_seed_gives_the_same_scores(checkpoint, tmp_path):
    task = load_task(write_task(tmp_path))
    settings = FineTuning(learning_rate=1e-3, epochs=1, seeds=1, examples=8, length=16)
    one, other = (evaluate_tasks(str(checkpoint), [task], settings) for _ in range(2))
    assert one == other
    assert one[0].examples["train"] == (8, 24)
    assert "Not all examples" in caption(one)


def test_padding_does_not_change_what_the_model_says(checkpoint):
    tokenizer = load_tokenizer(checkpoint)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
    model.config.pad_token_id = 0
    prompt = torch.randn(2, 32)
    classifier = PromptedClassifier(model, prompt, "clm").eval()
    texts = ["today we see sun", "rain", "town over rain and sun today we see sun over town"]
    rows = [{"ids": ids, "label": 0} for ids in _encoded(texts, tokenizer, 40, 2)]
    assert all(row["ids"][1:3] == [-1, -1] for row in rows)
    with torch.no_grad():
        together = classifier(**_collate(rows, "clm")).logits
        alone = torch.cat([classifier(**_collate([row], "clm")).logits for row in rows])
        embeddings = model.get_input_embeddings()(torch.tensor([row["ids"] for row in rows[:1]]).clamp(min=0))
        embeddings[0, 1:3] = prompt
        plain = model(inputs_embeds=embeddings).logits
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together[:1], plain, atol=1e-5)


def test_a_masked_model_is_read_at_its_first_token(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, num_labels=2,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    classifier = PromptedClassifier(model, None, "mlm").eval()
    rows = [{"ids": list(range(5, 12)), "label": 0}, {"ids": [5, 9], "label": 1}]
    with torch.no_grad():
        together = classifier(**_collate(rows, "mlm")).logits
        plain = torch.cat([model(torch.tensor([row["ids"]])).logits for row in rows])
    assert torch.allclose(together, plain, atol=1e-5)


def test_scores_by_hand():
    # class 0: 2 of 2 found, 1 wrong; class 1: 1 of 2 found; class 2: never there, never said
    scores = scores_of([0, 0, 0, 1], [0, 0, 1, 1], 3)
    assert scores["accuracy"] == 0.75
    assert scores["macro_f1"] == pytest.approx((0.8 + 2 / 3 + 0) / 3)
    assert scores["micro_f1"] == pytest.approx(0.75)
    assert mean_and_deviation([0.5, 0.7]) == "60.0 ± 14.1"
    assert mean_and_deviation([0.5]) == "50.0"


def test_the_wrong_prompt_is_the_next_domains(tmp_path):
    task = load_task(write_task(tmp_path))
    prompts = {name: torch.zeros(1, 4) for name in ("air", "sky", "wood")}
    chosen = chosen_prompts(task, prompts)
    assert list(chosen) == ["none", "right", "wrong"]
    assert chosen["right"] is prompts["sky"]
    assert chosen["wrong"] is prompts["wood"]
    assert list(chosen_prompts(task, {"air": torch.zeros(1, 4)})) == ["none"]
    assert list(chosen_prompts(task, {"sky": torch.zeros(1, 4)})) == ["none", "right"]


def test_shipped_cards_are_whole():
    assert {"acl-arc", "chemprot", "mnli", "hyperpartisan", "amazon-stars"} <= set(known_tasks())
    for name in known_tasks():
        task = load_task(name)
        assert task.name == name
        assert task.licence


@pytest.mark.slow
@pytest.mark.parametrize("name", ["acl-arc", "chemprot", "mnli", "hyperpartisan", "amazon-stars"])
def test_shipped_tasks_can_be_read(name, lifelong_data):
    task = load_task(name)
    sizes = {split: read_examples(task, split).available for split in ("train", "dev", "test")}
    assert min(sizes.values()) >= 60
    assert len(set(read_examples(task, "train").labels)) >= 2


def test_bad_input_is_one_clear_error(checkpoint, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'chemprot'"):
        load_task("chemprott")
    with pytest.raises(InputError, match="lable_field: unknown key; did you mean 'label_field'"):
        load_task(write_task(tmp_path, lable_field="x"))
    task = load_task(write_task(tmp_path))
    (tmp_path / "dev.jsonl").write_text('{"text": "a", "label": 3}\n')
    with pytest.raises(InputError, match=r"dev\.jsonl"):
        read_examples(task, "dev")
    with pytest.raises(InputError, match="epochs must be at least 1"):
        FineTuning(epochs=0)
    narrow = tmp_path / "narrow.safetensors"
    save_file({"sky": torch.zeros(1, 4)}, narrow)
    with pytest.raises(InputError, match="width 4 for a model of width 32"):
        evaluate_tasks(
            str(checkpoint), [load_task(write_task(tmp_path))], FineTuning(seeds=1, epochs=1), prompts=narrow
        )
    (tmp_path / "bad.safetensors").write_text("no")
    with pytest.raises(InputError, match="no readable safetensors"):
        read_prompts(tmp_path / "bad.safetensors")
