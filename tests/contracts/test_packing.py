"""Packed documents do not see each other: change one, and the losses of the others stay as they are."""

import pytest
import torch
import transformers

from lifelong.inherit import loss_head, predicted_nats

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
CAUSAL = {
    "llama": {}, "mistral": {"sliding_window": 6, "num_key_value_heads": 2}, "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8}, "gpt2": {}, "gpt_neox": {}, "olmo2": {},
}  # fmt: skip
MASKED = {"bert": {}, "roberta": {"pad_token_id": 1, "max_position_embeddings": 40}}
CASES = [("clm", name, extra) for name, extra in CAUSAL.items()] + [
    ("mlm", name, extra) for name, extra in MASKED.items()
]


def build(objective, model_type, extra):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, "max_position_embeddings": 32, **extra})
    auto = transformers.AutoModelForCausalLM if objective == "clm" else transformers.AutoModelForMaskedLM
    return auto.from_config(config).eval()


def packed_batch(objective):
    """Two rows of 24: documents of 9, 7 and 5 tokens and padding; a single document of 24."""
    ids = torch.randint(3, 50, (2, 24), generator=torch.Generator().manual_seed(1))
    segments = torch.ones(2, 24, dtype=torch.long)
    segments[0] = torch.tensor([1] * 9 + [2] * 7 + [3] * 5 + [0] * 3)
    positions = torch.arange(24).repeat(2, 1)
    positions[0] = torch.tensor([*range(9), *range(7), *range(5), *range(3)])
    labels = ids.clone()
    labels[positions == 0] = -100
    labels[segments == 0] = -100
    if objective == "mlm":
        labels[:, ::2] = -100
    return {"input_ids": ids, "labels": labels, "segment_ids": segments, "position_ids": positions}


@pytest.mark.parametrize(
    ("objective", "model_type", "extra"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_change_in_one_document_leaves_the_others_alone(objective, model_type, extra):
    model, batch = build(objective, model_type, extra), packed_batch(objective)
    before = predicted_nats(model, batch, objective)
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, 1:8] = 3 + (changed["input_ids"][0, 1:8] + 5) % 40
    after = predicted_nats(model, changed, objective)
    others = batch["segment_ids"][0] > 1
    assert torch.allclose(after[0][others], before[0][others], atol=1e-5)
    assert not torch.allclose(after[0][~others], before[0][~others], atol=1e-3)


@pytest.mark.parametrize(
    ("objective", "model_type", "extra"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_document_is_scored_as_if_it_stood_alone(objective, model_type, extra):
    model, batch = build(objective, model_type, extra), packed_batch(objective)
    together = predicted_nats(model, batch, objective)
    start = slice(9, 16)
    alone = {name: tensor[:1, start] for name, tensor in batch.items()}
    alone["segment_ids"] = torch.ones_like(alone["segment_ids"])
    assert torch.allclose(predicted_nats(model, alone, objective)[0], together[0, start], atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "model_type", "extra"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_loss_head_gives_the_stock_loss_and_leaves_no_trace(objective, model_type, extra):
    model, batch = build(objective, model_type, extra), packed_batch(objective)
    row = {name: tensor[1:] for name, tensor in batch.items()}
    stock = model(input_ids=row["input_ids"], labels=row["labels"])
    names = list(model.state_dict())
    with loss_head(model, objective):
        ours = model(**row)
        ours.loss.backward()
        assert list(model.state_dict()) == names
        assert model(input_ids=row["input_ids"]).logits.shape == stock.logits.shape
    assert abs(float(ours.loss.detach() - stock.loss.detach())) < 1e-5
    gradient = model.get_output_embeddings().weight.grad.clone()
    model.zero_grad()
    stock.loss.backward()
    assert torch.allclose(gradient, model.get_output_embeddings().weight.grad, atol=1e-5)
    assert "forward" not in model.__dict__
    assert "forward" not in model.get_output_embeddings().__dict__
