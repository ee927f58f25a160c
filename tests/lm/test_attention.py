"""Attention by document, and the form in which FlashAttention is given packed rows."""

import copy

import numpy as np
import pytest
import torch
import transformers
from transformers import AttentionInterface

from lifelong.errors import InputError
from lifelong.lm.attention import (
    BY_DOCUMENT,
    attend_by_document,
    attend_like,
    check_attention,
    document_mask,
    training_attention,
)
from lifelong.lm.head import loss_head, predicted_nats
from lifelong.lm.packed import block_mask, document_bounds, packed_inputs, packing_of
from lifelong.recipe import parse_recipe
from lifelong.recipe.check import check_recipe

SEGMENTS = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 2, 3, 3]])


def llama(**settings):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, **settings)
    return transformers.LlamaForCausalLM(config).eval()


def packed_batch():
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 0, 0, 1]])
    ids = (torch.arange(16).view(2, 8) * 7 + 3) % 40
    labels = ids.masked_fill(positions == 0, -100)
    return {"input_ids": ids, "labels": labels, "position_ids": positions, "segment_ids": SEGMENTS}


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("causal", [True, False])
def test_it_is_the_masked_attention_of_whole_rows(causal, window):
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = causal, 2
    query, key, value = (torch.randn(2, heads, 8, 4, dtype=torch.float64) for heads in (4, 2, 2))
    known, _ = attend_by_document(
        module, query, key, value, block_mask(SEGMENTS, torch.float64, causal=causal, window=window)
    )
    found, _ = attend_by_document(module, query, key, value, document_mask(SEGMENTS, window))
    torch.testing.assert_close(found, known)


def test_no_number_of_the_square_of_a_row_is_held():
    """Of all that is computed with, nothing is as large as one row's mask."""
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            for value in found if isinstance(found, tuple) else (found,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return found

    tokens, model = 1024, llama()
    segments = (torch.arange(tokens) // 128 + 1)[None]
    batch = {
        "input_ids": torch.arange(tokens)[None] % 40,
        "position_ids": torch.arange(tokens)[None] % 128,
        "segment_ids": segments,
    }
    packed_inputs(model, batch, "clm")
    assert model.config._attn_implementation == BY_DOCUMENT
    with torch.no_grad(), Sizes():
        model(**packed_inputs(model, batch, "clm"))
    assert largest < tokens * tokens


def test_ordinary_calls_are_those_of_sdpa():
    batch, stock = packed_batch(), llama()
    model = llama()
    assert packing_of(model, "clm", 4096) == "documents"
    assert packing_of(model, "clm", 8) == "positions"
    for given in ({"input_ids": batch["input_ids"]}, packed_inputs(stock, batch, "clm")):
        assert torch.equal(model(**given).logits, stock(**given).logits)
    assert "attn" not in str(model.config.to_diff_dict())


def test_a_layer_of_another_kind_keeps_whole_rows():
    model = llama()
    model.config.layer_types = ["chunked_attention"] * 2
    assert packing_of(model, "clm", 4096) == "positions"
    assert model.config._attn_implementation == "sdpa"


@pytest.fixture
def flash(monkeypatch):
    """What FlashAttention does with bounds, on a CPU."""
    seen = []

    def varlen(module, query, key, value, attention_mask, **settings):
        assert attention_mask is None
        assert query.shape[0] == 1
        bounds, longest = settings.pop("cu_seq_lens_q"), settings.pop("max_length_q")
        lengths = bounds.diff()
        assert bounds.dtype == torch.int32
        assert int(lengths.max()) <= longest
        assert torch.equal(settings.pop("cu_seq_lens_k"), bounds)
        seen.append(bounds.tolist())
        segments = torch.repeat_interleave(torch.arange(len(lengths)), lengths.long())
        return attend_by_document(module, query, key, value, document_mask(segments[None]))

    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", varlen)
    return seen


def test_flash_attention_is_given_one_row_with_bounds(flash):
    batch, model, stock = packed_batch(), llama(), llama()
    model.config._attn_implementation_internal = "flash_attention_2"
    assert packing_of(model, "clm") == "flat"
    torch.testing.assert_close(
        predicted_nats(model, batch, "clm"), predicted_nats(stock, batch, "clm"), atol=1e-5, rtol=0
    )
    assert flash[-1] == [0, 3, 7, 8, 13, 14, 16]
    with loss_head(model, "clm"), loss_head(stock, "clm"):
        torch.testing.assert_close(model(**batch).loss, stock(**batch).loss)


def test_bounds_separate_rows_that_begin_with_the_same_number():
    assert document_bounds(np.ones((3, 4), dtype=np.int64)).tolist() == [0, 4, 8, 12]


def test_attention_that_mixes_documents_is_refused_with_what_works(monkeypatch):
    monkeypatch.setitem(
        AttentionInterface._global_mapping,
        "flash_attention_2",
        lambda module, query, key, value, mask, **_: attend_by_document(module, query, key, value, None),
    )
    model = llama()
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(InputError, match=r"flat: .* still passes. Choose `model.attn_implementation: sdpa`"):
        packing_of(model, "clm")


def test_attention_is_that_of_training_alone():
    model = llama()
    for asked in ("auto", "sdpa"):
        with training_attention(model, asked, half=False):
            assert model.config._attn_implementation == "sdpa"
    with training_attention(model, "flex", half=False):
        assert model.config._attn_implementation == "flex_attention"
        teacher = llama()
        attend_like(teacher, model)
        assert teacher.config._attn_implementation == "flex_attention"
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes them")
def test_what_is_not_here_is_refused_before_a_run():
    data = {
        "name": "attention",
        "model": {"family": "llama", "layers": 1, "hidden_size": 16, "heads": 2, "attn_implementation": "flex"},
        "tokenizer": {"train": {"kind": "bpe", "vocab_size": 300}},
        "objective": "clm",
        "sequence_length": 16,
        "stages": [{"domain": "python-stdlib", "tokens": 1000}],
    }
    with pytest.raises(InputError, match=r"attn_implementation: flex has gradients on a GPU alone; auto and sdpa"):
        check_recipe(parse_recipe(data))
    lines = list(check_attention("flash", llama(), half=False, causal=True))
    assert "needs a CUDA GPU and the package flash-attn (pip install flash-attn)" in lines[0]
    assert "half precision alone: add `train: {bf16: true}`" in lines[1]


def test_a_masked_model_is_not_trained_with_flex():
    lines = list(check_attention("flex", llama(), half=False, causal=False))
    assert "causal models alone" in lines[-1]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_long_row_trains_by_document(checkpointing):
    """The first step of a run finds the way, with the loss head in place, and gradient checkpointing computes it again."""
    tokens, model, stock = 600, llama(max_position_embeddings=600).train(), llama(max_position_embeddings=600).train()
    place = torch.arange(tokens)[None] % 150
    ids = (torch.arange(tokens)[None] * 7 + 3) % 40
    batch = {"input_ids": ids, "labels": ids.masked_fill(place == 0, -100), "position_ids": place}
    batch["segment_ids"] = torch.arange(tokens)[None] // 150 + 1
    if checkpointing:
        model.train()
        # as Trainer does: the newer name where the installed transformers has it
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    with loss_head(model, "clm"):
        model(**batch).loss.backward()
    assert model.config._attn_implementation == BY_DOCUMENT
    stock(input_ids=ids, position_ids=place, labels=batch["labels"], use_cache=False).loss.backward()
    for one, two in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=1e-5, rtol=1e-4)


def test_a_copy_of_a_model_that_trains_by_document_does_so_too():
    model = llama()
    assert packing_of(model, "clm", 4096) == "documents"
    assert packing_of(copy.deepcopy(model), "clm", 4096) == "documents"
