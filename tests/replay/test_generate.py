"""Text that models write: what is stored of it equals what the model says, and nothing depends on rounds or kills."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lifelong.errors import InputError
from lifelong.inherit.cache import joined_rows
from lifelong.inherit.sparse import TauSampler, take_rows
from lifelong.plugins import plugin_names
from lifelong.replay import generate
from lifelong.replay.generate import StreamShape, Writing, check_writer, stream_blocks, stream_shape, write_round
from lifelong.replay.settings import GenerateSection
from lifelong.stream.collator import Collator, PackedRow
from tests.expand.models import VOCAB, tiny

TAU = 1 / 10
RECURRENT = {"qwen3-next", "qwen3-5"}
CAUSAL = [
    name
    for name in plugin_names("lifelong.expand.families")
    if name not in ("bert", "roberta", "distilbert", "electra", "eurobert", "modernbert", "nomic-bert")
]
FEW = ("llama", "gpt2", "opt", "gemma3", "olmo3", "qwen3-next")


def settings(length=32, block=16, batch=3, streams=3, **changes):
    shape = StreamShape(streams * length // block, length, batch, block)
    fields = {
        "seed": 5, "starts": [np.array([1], np.int32)], "end_ids": frozenset({2}), "vocab_size": VOCAB,
        "scheme": TauSampler(TAU), **changes,
    }  # fmt: skip
    return Writing(shape, fields.pop("section", GenerateSection(tokens=streams * length)), **fields)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = tiny("llama")
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(0.4)  # some certain tokens, a long tail, and ends of texts
    return made.double()


def exact(model, blocks, length, temperature=1.0):
    """Distributions of the predicted tokens of each block by packed forward passes in float64, [n, V]."""
    rows = [PackedRow(block=block, domain_id=0, is_replay=True, mask_key=0) for block in blocks]
    batch = Collator("clm", length, pad_id=0)(rows)
    with torch.no_grad():
        logits = model(**generate.packed_inputs(model, batch, "clm")).logits[:, :-1]
    predicted = batch["labels"][:, 1:] >= 0
    return [(part[keep] / temperature).softmax(1).numpy() for part, keep in zip(logits, predicted, strict=True)]


def dense(rows, scheme, vocab=VOCAB):
    """Stored entries as probabilities, [n, V]."""
    table = np.zeros((len(rows.counts), vocab))
    values = np.full(len(rows.ids), scheme.unit)
    values[rows.coded] = scheme.values(rows.codes)
    table[np.repeat(np.arange(len(rows.counts)), rows.counts), rows.ids] = values
    return table


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in FEW else [pytest.mark.slow]) for name in CAUSAL]
)
def test_every_causal_family_writes_what_it_computes_on_whole_rows_or_is_refused(family):
    if family in RECURRENT:
        with pytest.raises(InputError, match="packed documents"):
            check_writer(tiny(family))
    else:
        check_writer(tiny(family))


def test_a_model_that_computes_something_else_token_by_token_is_refused(monkeypatch):
    monkeypatch.setattr(generate, "position_offset", lambda _: 3)  # wrong places while writing, right ones when packed
    with pytest.raises(InputError, match="token by token"):
        check_writer(tiny("gpt2"))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("length", "block"), [(32, 32), (48, 16)])
def test_what_is_stored_is_what_the_model_says_of_the_block(model, length, block, temperature):
    writing = settings(length, block, target_temperature=temperature)
    made = write_round(model, writing, 0, Collator("clm", block, pad_id=0))
    blocks = list(made.blocks(block))
    assert len(made.targets) == len(blocks) == 3 * length // block
    assert made.starts_BL.sum() > 3, "some text has ended and another begun"
    for rows, p in zip(made.targets, exact(model, blocks, block, temperature), strict=True):
        stored = dense(rows, writing.scheme)
        head = p >= TAU + 1e-6
        assert np.abs(stored - p)[head].max(initial=0) <= (1 - TAU) / 255 + 1e-6  # one step of the rounding
        assert set(np.unique(stored[p < TAU - 1e-6]).round(6)) <= {0.0, TAU}
        assert np.abs(stored.sum(1) - 1).max() <= TAU + head.sum(1).max() / 255


def test_what_is_stored_is_unbiased_over_seeds(model):
    """z of every token over the rows of many seeds, by the sampler's own variance p (tau - p) and that of the rounding."""
    total, variance = np.zeros(VOCAB), np.zeros(VOCAB)
    for seed in range(6):
        writing = settings(32, 16, batch=12, streams=12, seed=seed)
        made = write_round(model, writing, 0, Collator("clm", 16, pad_id=0))
        for rows, p in zip(made.targets, exact(model, list(made.blocks(16)), 16), strict=True):
            total += (dense(rows, writing.scheme) - p).sum(0)
            step = (1 - TAU) / 255
            variance += np.where(p < TAU, p * (TAU - p), step**2 / 4).sum(0)
    z = total / np.sqrt(variance)
    assert variance.min() > 0.5, "every token was in doubt often enough"
    assert np.abs(z).max() < 4.5
    assert (z**2).mean() < 1.6


def test_text_is_drawn_from_the_whole_distribution(model):
    """First tokens of many streams against the model's own probabilities (chi squared), and at another temperature."""
    for temperature in (1.0, 2.0):
        section = GenerateSection(tokens=4000, temperature=temperature)
        writing = settings(2, 2, batch=2000, streams=2000, scheme=None, section=section)
        second = write_round(model, writing, 0, Collator("clm", 2, pad_id=0)).ids_BL[:, 1]
        with torch.no_grad():
            p = (model(torch.tensor([[1]])).logits[0, 0] / temperature).softmax(0).numpy()
        expected = 2000 * p
        often = expected >= 5
        found = np.bincount(second, minlength=VOCAB)
        chi = ((found - expected)[often] ** 2 / expected[often]).sum()
        assert chi < often.sum() + 5 * np.sqrt(2 * often.sum())


def test_truncation_leaves_the_most_probable_tokens():
    p = torch.tensor([[0.5, 0.1, 0.3, 0.1]])
    of = generate._truncated
    assert of(p, GenerateSection(tokens=1)) is p
    assert torch.equal(of(p, GenerateSection(tokens=1, top_k=2)), torch.tensor([[0.5, 0.0, 0.3, 0.0]]))
    assert (of(p, GenerateSection(tokens=1, top_p=0.6)) > 0).tolist() == [[True, False, True, False]]
    assert (generate._drawn(torch.tensor([[0.0, 1.0, 0.0]]), np.array([0.0])) == 1).all()


def test_rounds_are_functions_of_their_number_and_leave_the_model_alone(model, tmp_path):
    collator, writing = Collator("clm", 16, pad_id=0), settings(32, 16, batch=2, streams=5)
    model.train()
    flags = [parameter.requires_grad for parameter in model.parameters()]
    later = write_round(model, writing, 1, collator)
    write_round(model, writing, 0, collator)
    again = write_round(model, writing, 1, collator)
    assert model.training
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    model.eval()
    later.save(tmp_path / "1.npz")
    read = generate.Round.load(tmp_path / "1.npz")
    for other in (again, read):
        assert (later.ids_BL == other.ids_BL).all()
        for one, two in zip(later.targets, other.targets, strict=True):
            assert all((getattr(one, name) == getattr(two, name)).all() for name in ("counts", "ids", "coded", "codes"))
    assert write_round(model, replace(writing, scheme=None), 1, collator).targets == ()
    assert len(write_round(model, writing, 2, collator).ids_BL) == 1


def test_a_document_begins_with_the_first_tokens_of_a_card_and_after_every_end(model):
    starts = [np.array([1, 7, 8], np.int32), np.array([1, 9, 9], np.int32)]
    ends = frozenset(range(2, 60, 4))
    made = write_round(
        model, settings(48, 48, starts=starts, end_ids=ends, scheme=None), 0, Collator("clm", 48, pad_id=0)
    )
    begun = set()
    for ids, is_start in zip(made.ids_BL, made.starts_BL, strict=True):
        for place in np.flatnonzero(is_start):
            begun.add(tuple(ids[place : place + 3].tolist()))
            assert place == 0 or ids[place - 1] in ends
        assert is_start[1 + np.flatnonzero(np.isin(ids[:-1], list(ends)))].all()
    assert {(1, 7, 8), (1, 9, 9)} <= begun


@given(st.lists(st.booleans(), min_size=24, max_size=24), st.sampled_from([4, 8, 12, 24]))
def test_blocks_of_a_stream_are_its_tokens_with_every_document_at_its_offset(flags, length):
    starts_L = np.array([True, *flags[1:]])
    ids_L = np.arange(24, dtype=np.int32)
    blocks = list(stream_blocks(ids_L, starts_L, length))
    assert np.concatenate([block.ids for block in blocks]).tolist() == ids_L.tolist()
    begins = np.maximum.accumulate(np.where(starts_L, np.arange(24), 0))
    for number, block in enumerate(blocks):
        assert block.starts[0] == 0
        assert len(block.starts) == len(block.offsets)
        for start, offset in zip(block.starts, block.offsets, strict=True):
            place = number * length + int(start)
            assert offset == place - begins[place]


def test_rows_can_be_taken_in_any_order():
    draw = np.random.default_rng(0)
    scheme = TauSampler(TAU)
    p = torch.from_numpy(draw.dirichlet(np.full(40, 0.1), 6))
    parts = [scheme.sparsify(p[:4], draw), scheme.sparsify(p[4:], draw)]
    rows = joined_rows(parts, scheme)
    table = dense(rows, scheme, 40)
    assert (dense(take_rows(rows, np.array([5, 0, 3])), scheme, 40) == table[[5, 0, 3]]).all()
    assert len(take_rows(rows, np.zeros(0, np.int64)).ids) == 0


def test_streams_have_the_context_of_the_model_and_fill_their_blocks():
    config = tiny("llama").config  # 64 positions
    shape = stream_shape(GenerateSection(tokens=1000), config, 16)
    assert (shape.blocks, shape.length, shape.streams, shape.cut_blocks) == (62, 64, 16, 46)
    assert shape.rounds * shape.batch_size >= shape.streams
    assert stream_shape(GenerateSection(tokens=1000, length=40, batch_size=4), config, 16).length == 32
    assert stream_shape(GenerateSection(tokens=20), config, 16).tokens == 16
    assert stream_shape(GenerateSection(**{"tokens": 64, "from": "every"}), config, 16, 1).blocks == 2
    for section, message in (
        ({"tokens": 15}, "too few for one block of sequence_length 16"),
        ({"tokens": 40, "from": "every"}, "shared by 3 models"),
        ({"tokens": 400, "length": 8}, "must be between sequence_length 16 and the model's 64 positions"),
        ({"tokens": 400, "length": 65}, "must be between"),
    ):
        with pytest.raises(InputError, match=message):
            stream_shape(GenerateSection(**section), config, 16, 2)
