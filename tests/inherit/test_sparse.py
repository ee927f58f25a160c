import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lifelong.errors import InputError, UnknownNameError
from lifelong.inherit.entries import Codebook, decode, encode
from lifelong.inherit.sparse import RandomSampling, TauSampler, TopK, scheme_from_json, scheme_to_json

V = 257


def distributions(rows, seed=0, scale=2.0, vocab=V):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(rows, vocab, generator=generator)).softmax(1)


def dense(rows, scheme, vocab=V):
    """Sparse rows as a matrix `[C, V]`."""
    values = np.full(len(rows.ids), scheme.unit)
    values[rows.coded] = scheme.values(rows.codes)
    matrix = np.zeros((len(rows.counts), vocab))
    matrix[np.repeat(np.arange(len(rows.counts)), rows.counts), rows.ids] = values
    return matrix


@pytest.mark.parametrize("scheme", [TauSampler(1 / 20), TauSampler(1 / 7), RandomSampling(50)])
def test_sampled_targets_are_unbiased_rounding_included(scheme):
    """|mean - p| < 4 sigma for every token, sigma from the scheme's own variance; 8-bit rounding included."""
    p = distributions(3)
    p[1] = 1 / V  # flat: nothing is kept exactly
    p[2] = torch.nn.functional.one_hot(torch.tensor(5), V) * 0.97 + 0.03 / V  # nearly sure
    draws, rng = 6000, np.random.default_rng(0)
    total = np.zeros((3, V))
    for _ in range(draws // 50):
        rows = scheme.sparsify(p.repeat(50, 1), rng)
        total += dense(rows, scheme).reshape(50, 3, V).sum(0)
    mean, exact = total / draws, p.double().numpy()
    if isinstance(scheme, TauSampler):
        step = (1 - scheme.tau) / 255
        variance = np.where(exact >= scheme.tau, step**2 / 4, exact * np.clip(scheme.tau - exact, 0, None))
    else:
        variance = exact * (1 - exact) / scheme.draws
    assert float(np.max(np.abs(mean - exact) - 4.5 * np.sqrt(variance / draws))) < 1e-7
    assert float(np.mean(((mean - exact) / np.sqrt(variance / draws + 1e-18)) ** 2)) < 1.3


def test_tau_sampler_keeps_what_is_likely_and_names_no_token_twice():
    p = distributions(64, scale=3.0)
    scheme = TauSampler(1 / 20)
    rows = scheme.sparsify(p, np.random.default_rng(1))
    owner = np.repeat(np.arange(64), rows.counts)
    kept = {(int(r), int(i)) for r, i in zip(owner[rows.coded], rows.ids[rows.coded], strict=True)}
    assert kept == {(int(r), int(i)) for r, i in (p >= 1 / 20).nonzero()}
    assert len(set(zip(owner.tolist(), rows.ids.tolist(), strict=True))) == len(rows.ids)
    assert rows.counts.max() <= 21
    exact = p.double().numpy()[owner[rows.coded], rows.ids[rows.coded]]
    assert np.abs(scheme.values(rows.codes) - exact).max() <= (1 - 1 / 20) / 255 + 1e-7


def test_top_k_is_what_the_paper_stores():
    p = distributions(8)
    plain, scaled = (TopK(5, renormalise=flag).sparsify(p, np.random.default_rng(0)) for flag in (False, True))
    values, ids = p.topk(5, 1)
    assert (plain.ids == ids.reshape(-1).numpy()).all()
    assert np.allclose(TopK(5).values(plain.codes), values.reshape(-1), rtol=1e-3)
    assert np.allclose(TopK(5).values(scaled.codes).reshape(8, 5).sum(1), 1, atol=2e-3)


def test_a_token_on_the_edge_of_a_block_of_the_vocabulary():
    p = torch.zeros(4, 130)
    p[:, 63], p[:, 64], p[:, 129] = 0.04, 0.04, 0.92
    scheme, total = TauSampler(1 / 20), np.zeros((4, 130))
    rng = np.random.default_rng(0)
    for _ in range(30):
        rows = scheme.sparsify(p.repeat(100, 1), rng)
        total += dense(rows, scheme, 130).reshape(100, 4, 130).sum(0)
    assert np.abs(total.mean(0) / 3000 - p[0].numpy()).max() < 4 * 0.05 / np.sqrt(12000)
    assert set(np.flatnonzero(total.sum(0))) == {63, 64, 129}


SCHEMES = [TauSampler(1 / 20), TopK(7), TopK(1, renormalise=True), RandomSampling(50), RandomSampling(255)]


@pytest.mark.parametrize("scheme", SCHEMES)
@given(seed=st.integers(0, 10**6), rows=st.integers(0, 20), vocab=st.sampled_from([8, 70, 600]), scale=st.sampled_from([0.1, 3.0, 30.0]))  # fmt: skip
def test_encoding_round_trip(scheme, seed, rows, vocab, scale):
    p = distributions(rows, seed, scale, vocab)
    rng = np.random.default_rng(seed)
    parts = [scheme.sparsify(p, rng), scheme.sparsify(p[: rows // 2], rng)]
    book = Codebook.for_rows(parts, vocab)
    ids, probabilities, tokens = decode([encode(part, scheme, book) for part in parts], scheme, book)
    assert tokens.tolist() == [rows, rows // 2]
    matrix = np.zeros((len(ids), vocab))
    row, column = np.nonzero(ids >= 0)
    matrix[row, ids[row, column]] = probabilities[row, column]
    expected = np.concatenate([dense(part, scheme, vocab) for part in parts])
    assert np.array_equal(matrix.astype(np.float32), expected.astype(np.float32))
    assert (probabilities[ids < 0] == 0).all()


def test_ids_of_a_vocabulary_of_24_bits():
    from lifelong.inherit.sparse import SparseRows

    ids = np.array([0, 2**24 - 1, 5, 2**24 - 2, 7_654_321])
    rows = SparseRows(
        np.array([2, 0, 3]), ids, np.array([True, False, False, True, False]), np.array([3, 250], np.uint8)
    )
    book = Codebook.for_rows([rows], 2**24)
    wide = Codebook(np.arange(2**24, dtype=np.uint32), (1, 8, 16, 24))  # the widest differences there are
    for codes in (book, wide):
        found, _, _ = decode([encode(rows, TauSampler(), codes)], TauSampler(), codes)
        assert [sorted(row[row >= 0].tolist()) for row in found] == [[0, 2**24 - 1], [], sorted(ids[2:].tolist())]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_go_through_json(scheme):
    assert scheme_from_json(scheme_to_json(scheme)) == scheme


def test_impossible_settings_are_refused():
    for make, message in (
        (lambda: TopK(0), "top-k"),
        (lambda: TopK(300), "top-k"),
        (lambda: TauSampler(1.0), "tau"),
        (lambda: TauSampler(0.001), "tau"),
        (lambda: RandomSampling(0), "random sampling"),
        (lambda: TopK(20).check(10), "20 entries are asked for, the vocabulary has only 10"),
    ):
        with pytest.raises(InputError, match=message):
            make()
    with pytest.raises(UnknownNameError, match="did you mean 'top-k'"):
        scheme_from_json({"name": "topk"})
