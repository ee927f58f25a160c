"""Teachers with other vocabularies: the loss against whole tables of probabilities, mass that has no place, refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lifelong.errors import InputError
from lifelong.inherit import CachedTarget, OnlineTarget, ki_loss
from lifelong.inherit.distiller import Distiller
from lifelong.inherit.mapped import MappedTeacher
from lifelong.inherit.schedule import make_schedule
from lifelong.inherit.teachers._teacher import TeacherCost
from lifelong.inherit.teachers._weighted import MixtureTeacher, weights_by_domain
from lifelong.inherit.teachers.model import OnlineTeacher
from lifelong.lm.loss import ki_loss_parts
from lifelong.lm.targets import MappedMass
from tests.inherit.models import VOCAB, build, packed_batch

N, D, U = 7, 5, 9
maps = st.lists(st.integers(-1, U - 1), min_size=2, max_size=6).filter(
    lambda ids: len({i for i in ids if i >= 0}) == sum(i >= 0 for i in ids) > 0
)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(student_NU, teacher_NV, ids_V, labels, alpha, tau):
    """(1 - a) CE + a tau^2 sum over tokens with a place of t (log t - log p), token by token."""
    loss = torch.zeros((), dtype=torch.float64)
    for n in range(len(labels)):
        log_p, log_soft = student_NU[n].log_softmax(0), (student_NU[n] / tau).log_softmax(0)
        t = (teacher_NV[n] / tau).softmax(0)
        kl = sum(t[v] * (t[v].log() - log_soft[place]) for v, place in enumerate(ids_V) if place >= 0)
        loss = loss - (1 - alpha) * log_p[labels[n]] + alpha * tau**2 * kl
    return loss / len(labels)


@given(maps, st.sampled_from([1.0, 2.0]), st.integers(0, 99))
def test_the_loss_is_the_kl_over_tokens_with_a_place(ids, tau, seed):
    """Value and gradients, and the mass: what has a place and what has none are one together."""
    hidden, weight = drawn(seed, N, D).requires_grad_(), drawn(seed + 1, U, D).requires_grad_()
    hidden_T, weight_T = drawn(seed + 2, N, D), drawn(seed + 3, len(ids), D)
    labels = torch.arange(N) % U
    mass = MappedMass()
    target = OnlineTarget(hidden_T, weight_T, vocab_size=len(ids), student_ids_V=torch.tensor(ids), mass=mass)
    loss = ki_loss(hidden, weight, labels, targets=target, alpha=0.6, temperature=tau, chunk_tokens=3)
    expected = by_hand(hidden @ weight.T, hidden_T @ weight_T.T, ids, labels, 0.6, tau)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-9)
    ours, theirs = (torch.autograd.grad(value, (hidden, weight), retain_graph=True) for value in (loss, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    probabilities = (hidden_T @ weight_T.T / tau).softmax(1)
    placed = probabilities[:, torch.tensor(ids) >= 0].sum()
    assert mass.rows == N
    assert mass.unmapped + float(placed) == pytest.approx(N)


@given(maps, st.integers(0, 99))
def test_whole_targets_from_a_cache_are_what_the_teacher_says(ids, seed):
    """All of a distribution as entries: the same loss as online, the same mass without a place."""
    hidden, weight = drawn(seed, N, D), drawn(seed + 1, U, D)
    hidden_T, weight_T = drawn(seed + 2, N, D), drawn(seed + 3, len(ids), D)
    labels = torch.arange(N) % U
    online = MappedMass()
    target = OnlineTarget(hidden_T, weight_T, vocab_size=len(ids), student_ids_V=torch.tensor(ids), mass=online)
    entries = torch.arange(len(ids)).expand(N, -1)
    cached = MappedTeacher(_Says(CachedTarget(entries, (hidden_T @ weight_T.T).softmax(1))), torch.tensor(ids), U, "x")
    ones = torch.ones(1, 1, dtype=torch.long)
    known = ones * next(i for i in ids if i >= 0)
    (entry,) = cached.targets({"input_ids": known, "labels": ones * -100, "segment_ids": ones})
    results = [ki_loss_parts(hidden, weight, labels, targets=t, alpha=0.6) for t in (target, entry)]
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-9)
    assert cached.mass.unmapped == pytest.approx(online.unmapped)


class _Says:
    """A teacher with one answer."""

    def __init__(self, target):
        self.target, self.cost = target, TeacherCost()

    def teaches(self, batch):
        return torch.ones(len(batch["input_ids"]), dtype=torch.bool)

    def targets(self, batch):
        return [self.target]

    def close(self):
        pass


def renumbered(objective, seed):
    """A teacher, and the same one with its tokens in another order, behind a map that puts them back."""
    plain = build(objective, seed)
    order = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(seed))
    other = build(objective, seed)
    with torch.no_grad():
        embeddings = (other.get_input_embeddings().weight, other.get_output_embeddings().weight)
        for weight in {id(weight): weight for weight in embeddings}.values():  # tied ones once
            weight.copy_(weight[order].clone())
        if (bias := getattr(other.get_output_embeddings(), "bias", None)) is not None:
            bias.copy_(bias[order].clone())
    return OnlineTeacher(plain, objective), MappedTeacher(
        OnlineTeacher(other, objective, vocab_size=VOCAB), order, VOCAB, f"teacher {seed}"
    )


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_a_renumbered_teacher_teaches_the_same(objective):
    """Alone and routed by domain, in a whole model's forward."""
    from lifelong.inherit import loss_head

    student, batch = build(objective, 5), packed_batch(objective)
    pairs = [renumbered(objective, seed) for seed in (1, 2)]
    route = weights_by_domain(torch.eye(2))
    batch = {**batch, "domain_ids": torch.arange(len(batch["input_ids"])) % 2}
    for plain, mapped in (*pairs, tuple(MixtureTeacher(each, route, objective) for each in zip(*pairs, strict=True))):
        found = []
        for teacher in (plain, mapped):
            distiller = Distiller(teacher, make_schedule("constant", alpha=0.7), temperature=2.0)
            with loss_head(student, objective):
                inheritance = distiller.for_batch(batch, progress=0.0, step=0)
                found.append(student(**batch, inheritance=inheritance, num_items=None).loss)
        torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    rows = [rows for rows, _ in distiller.cost.mapped.values()]
    assert sum(rows) == 3 * int((batch["labels"] != -100).sum())  # each alone, and once between them


def test_the_sums_survive_a_resumption():
    mapped = renumbered("clm", 1)[1]
    mapped.mass.add(torch.tensor([0.25, 0.5]))
    first = Distiller(mapped, make_schedule("constant", alpha=1.0))
    second = Distiller(renumbered("clm", 1)[1], make_schedule("constant", alpha=1.0))
    second.load_state_dict(first.state_dict())
    second.teacher.mass.add(torch.tensor([0.25]))
    assert second.cost.mapped == {"teacher 1": (3, 1.0)}
    second.close()
    assert second.cost.mapped == {"teacher 1": (3, 1.0)}


def test_teacher_with_incompatible_tokens_is_refused():
    batch = packed_batch("clm")
    some = torch.arange(VOCAB)
    some[batch["input_ids"][0, 0]] = -1
    teacher = MappedTeacher(OnlineTeacher(build("clm"), "clm", vocab_size=VOCAB), some, VOCAB, "models/x")
    with pytest.raises(InputError, match=r"teacher models/x: \d+ of \d+ tokens of a batch are not in its vocabulary"):
        teacher.targets(batch)
    with pytest.raises(InputError, match="two of its tokens the same id"):
        MappedTeacher(OnlineTeacher(build("clm"), "clm"), torch.zeros(VOCAB, dtype=torch.long), VOCAB, "x")
    with pytest.raises(InputError, match=f"names token {VOCAB}"):
        MappedTeacher(OnlineTeacher(build("clm"), "clm"), torch.arange(1, VOCAB + 1), VOCAB, "x")
    hidden, weight, labels = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(2, dtype=torch.long)
    for ids, message in (([0, 1], "its vocabulary has 3"), ([0, 1, 4], "names token 4")):
        target = OnlineTarget(hidden, torch.zeros(3, 3), vocab_size=3, student_ids_V=torch.tensor(ids))
        with pytest.raises(InputError, match=message):
            ki_loss(hidden, weight, labels, targets=target, alpha=0.5)


def test_padding_unknown_to_the_teacher_does_not_matter():
    batch = packed_batch("clm")
    pad = batch["input_ids"][batch["segment_ids"] == 0]
    unused = next(i for i in range(VOCAB) if not bool((batch["input_ids"][batch["segment_ids"] > 0] == i).any()))
    assert len(pad)
    batch["input_ids"] = torch.where(batch["segment_ids"] == 0, unused, batch["input_ids"])
    ids = torch.arange(VOCAB)
    ids[unused] = -1
    MappedTeacher(OnlineTeacher(build("clm"), "clm", vocab_size=VOCAB), ids, VOCAB, "x").targets(batch)
