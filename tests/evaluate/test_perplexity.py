"""The evaluation against the contract's definition, computed again with transformers alone."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from lifelong.errors import InputError
from lifelong.evaluate.perplexity import evaluate_domain, masked_windows, windows
from lifelong.stream.masking import evaluation_mask

VOCAB, T, PAD, MASK = 61, 12, 1, 4
LENGTHS = (30, 2, 12, 13, 23, 1, 24, 5)


class Documents:
    """Held-out documents in memory."""

    domain = "made-up"

    def __init__(self, lengths: tuple[int, ...] = LENGTHS) -> None:
        rng = np.random.default_rng(0)
        self.rows = [rng.integers(5, VOCAB, size=n).astype(np.int32) for n in lengths]

    def __len__(self) -> int:
        return len(self.rows)

    def ids(self, index: int) -> np.ndarray:
        return self.rows[index]

    def num_bytes(self, index: int) -> int:
        return 3 * len(self.rows[index])

    def key(self, index: int) -> str:
        return hashlib.sha256(self.rows[index].tobytes()).hexdigest()


def causal_model(family: str):
    torch.manual_seed(0)
    if family == "llama":
        config = LlamaConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.5,
        )  # fmt: skip
        return LlamaForCausalLM(config)
    config = GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=16, initializer_range=0.5)
    return GPT2LMHeadModel(config)


def masked_model(family: str):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 16, "initializer_range": 0.5, "pad_token_id": PAD,
    }  # fmt: skip
    return BertForMaskedLM(BertConfig(**sizes)) if family == "bert" else RobertaForMaskedLM(RobertaConfig(**sizes))


def evaluate(model, documents, objective="clm", **settings):
    mask_id = MASK if objective == "mlm" else None
    return evaluate_domain(
        model, documents, objective=objective, sequence_length=T, pad_id=PAD, mask_id=mask_id, **settings
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_causal_loss_equals_plain_transformers(family):
    model, documents = causal_model(family).eval(), Documents()
    expected = []
    for index in range(len(documents)):
        ids, nats = torch.tensor(documents.ids(index)).long(), 0.0
        for start in range(0, len(ids) - 1, T - 1):
            window = ids[start : start + T][None]
            with torch.no_grad():
                log_p = model(input_ids=window).logits[0, :-1].double().log_softmax(-1)
            nats -= float(log_p.gather(1, window[0, 1:, None]).sum())
        expected.append(nats)
    loss = evaluate(model, documents)
    assert loss.document_tokens == tuple(n - 1 for n in LENGTHS)
    assert loss.document_nats == pytest.approx(expected, abs=1e-5)
    assert loss.nats == pytest.approx(math.fsum(expected), abs=1e-4)
    assert loss.nats_per_token == pytest.approx(math.fsum(expected) / sum(n - 1 for n in LENGTHS), abs=1e-5)
    assert loss.bits_per_byte == pytest.approx(math.fsum(expected) / math.log(2) / (3 * sum(LENGTHS)), abs=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_masked_loss_equals_plain_transformers(family):
    model, documents = masked_model(family).eval(), Documents()
    nats = tokens = 0
    for index in range(len(documents)):
        ids = torch.tensor(documents.ids(index)).long()
        chosen = torch.from_numpy(evaluation_mask(documents.key(index), len(ids)))
        for start in range(0, len(ids), T):
            part, hidden = ids[start : start + T], chosen[start : start + T]
            with torch.no_grad():
                logits = model(input_ids=part.masked_fill(hidden, MASK)[None]).logits[0].double()
            nats -= float(logits.log_softmax(-1)[hidden].gather(1, part[hidden, None]).sum())
            tokens += int(hidden.sum())
    loss = evaluate(model, documents, "mlm")
    assert loss.tokens == tokens > 5
    assert loss.nats_per_token == pytest.approx(nats / tokens, abs=1e-5)


def test_batches_documents_and_training_mode_do_not_matter():
    model, documents = causal_model("llama"), Documents()
    model.model.layers[0].self_attn.attention_dropout = 0.5
    model.train()
    one = evaluate(model, documents, batch_tokens=1)
    assert model.training
    many = evaluate(model, documents, batch_tokens=10_000)
    assert many.document_nats == pytest.approx(one.document_nats, abs=1e-5)
    alone = Documents()
    alone.rows = [documents.rows[4]]
    assert evaluate(model, alone).nats == pytest.approx(one.document_nats[4], abs=1e-5)


def test_a_split_that_predicts_nothing_is_refused():
    with pytest.raises(InputError, match="predicts no token"):
        evaluate(causal_model("llama"), Documents((1, 1)))


@given(st.integers(1, 60), st.integers(2, 17))
def test_windows_predict_every_token_once_from_its_own_window(length, sequence_length):
    ids = np.arange(100, 100 + length, dtype=np.int32)
    parts = list(windows(ids, 0, sequence_length))
    predicted = [int(label) for part in parts for label in part.labels if label != -100]
    assert predicted == list(range(101, 100 + length))
    assert all(len(part.ids) <= sequence_length for part in parts)
    assert all(part.labels[0] == -100 for part in parts)
    assert all(a.ids[-1] == b.ids[0] for a, b in itertools.pairwise(parts))


@given(st.integers(1, 60), st.integers(2, 17))
def test_masked_windows_cover_the_document_and_hide_what_they_ask_for(length, sequence_length):
    ids = np.arange(100, 100 + length, dtype=np.int32)
    parts = list(masked_windows(ids, 0, sequence_length, "some document", mask_id=MASK))
    shown = np.concatenate([part.ids for part in parts])
    asked = np.concatenate([part.labels for part in parts])
    assert np.array_equal(np.where(asked != -100, asked, shown), ids)
    assert np.array_equal(shown == MASK, asked != -100)
    assert asked[0] == -100
