import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from lifelong.errors import InputError
from lifelong.inherit import OnlineTarget, loss_head
from lifelong.inherit.distiller import Distiller, TeacherEarlyStop
from lifelong.inherit.schedule import make_schedule
from lifelong.inherit.teachers._weighted import MixtureTeacher, weights_by_domain
from lifelong.inherit.teachers.model import OnlineTeacher
from lifelong.lm.packed import packed_inputs
from tests.inherit.models import VOCAB, build, packed_batch

OBJECTIVES = ("clm", "mlm")
TAU = 2.0


def full_logits(model, batch, objective):
    """Plain transformers: all logits at the predicted positions, and their labels."""
    logits = model(**packed_inputs(model, batch, objective)).logits
    labels = batch["labels"]
    if objective == "clm":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits[labels != -100], labels[labels != -100], (labels != -100).nonzero()[:, 0]


def reference(model, mixed_of, batch, objective, alpha_B):
    """CE and KL from whole logits under autograd, each sequence with its own rate."""
    logits, labels, sequence = full_logits(model, batch, objective)
    with torch.no_grad():
        target = mixed_of(batch, sequence)
    ce = F.cross_entropy(logits, labels, reduction="none")
    kl = (torch.xlogy(target, target) - target * (logits / TAU).log_softmax(-1)).sum(-1)
    alpha = alpha_B.to(ce.dtype)[sequence]
    return ((1 - alpha) * ce + alpha * TAU**2 * kl).sum() / len(labels)


def ours(model, distiller, batch, objective, num_items=None):
    with loss_head(model, objective):
        inheritance = distiller.for_batch(batch, progress=0.0, step=0)
        return model(**batch, inheritance=inheritance, num_items=num_items).loss


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(one, other, tolerance):
    assert set(one) == set(other)
    for name in one:
        scale = max(1.0, float(other[name].abs().max()))
        assert float((one[name] - other[name]).abs().max()) < tolerance * scale, name


def distiller_of(teacher, alpha=0.6, **settings):
    return Distiller(teacher, make_schedule("constant", alpha=alpha), temperature=TAU, **settings)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("on", ["all", "replay"])
def test_gradient_of_a_whole_model_in_float64(objective, on):
    student = build(objective, 0, dtype=torch.float64)
    teacher = build(objective, 1, hidden_size=16, dtype=torch.float64).eval()
    batch = packed_batch(objective)
    plain = copy.deepcopy(student)

    def says(batch, _):
        return (full_logits(teacher, batch, objective)[0] / TAU).softmax(-1)

    loss = ours(student, distiller_of(OnlineTeacher(teacher, objective), on=on), batch, objective)
    loss.backward()
    alpha_B = torch.full((4,), 0.6) if on == "all" else batch["is_replay"] * 0.6  # a float32 number, as in ours
    expected = reference(plain, says, batch, objective, alpha_B)
    expected.backward()
    assert abs(float(loss.detach() - expected.detach())) < 1e-12
    assert_same_gradients(gradients(student), gradients(plain), 1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_any_split_into_micro_batches_gives_the_same_gradient(objective):
    student, batch = build(objective, 0), packed_batch(objective, rows=8)
    items = int((batch["labels"] != -100).sum())
    teachers = [OnlineTeacher(build(objective, seed), objective) for seed in (1, 2)]
    table = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]])

    def gradient(parts):
        model = copy.deepcopy(student)
        distiller = distiller_of(
            MixtureTeacher(teachers, weights_by_domain(table), objective), alpha=0.5, bernoulli=True
        )
        for rows in torch.arange(8).chunk(parts):
            part = {name: tensor[rows] for name, tensor in batch.items()}
            ours(model, distiller, part, objective, num_items=items).backward()
        return gradients(model)

    whole = gradient(1)
    for parts in (2, 4, 8):
        assert_same_gradients(gradient(parts), whole, 1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_teacher_does_not_look_into_the_next_document(objective):
    teacher, batch = OnlineTeacher(build(objective, 1), objective), packed_batch(objective, rows=1)
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, 1:8] = 3 + (changed["input_ids"][0, 1:8] + 5) % 40
    before, after = (teacher.targets(b)[0].hidden_NE for b in (batch, changed))
    labels = batch["labels"][:, 1:] if objective == "clm" else batch["labels"]
    segments = batch["segment_ids"][:, 1:] if objective == "clm" else batch["segment_ids"]
    first = segments[labels != -100] == 1
    assert first.any()
    assert not first.all()
    assert torch.allclose(before[~first], after[~first], atol=1e-5)
    assert not torch.allclose(before[first], after[first], atol=1e-3)


class Counting:
    """A teacher that counts what it is shown."""

    def __init__(self, teacher):
        self.teacher, self.shown, self.closed = teacher, [], False

    @property
    def cost(self):
        return self.teacher.cost

    def teaches(self, batch):
        return self.teacher.teaches(batch)

    def targets(self, batch):
        self.shown.append(len(batch["input_ids"]))
        return self.teacher.targets(batch)

    def close(self):
        self.closed = True


def test_a_teacher_whose_rate_is_zero_is_not_called_and_is_freed():
    teacher = Counting(OnlineTeacher(build("clm", 1), "clm"))
    distiller = Distiller(teacher, make_schedule("linear", alpha=0.0))
    assert distiller.for_batch(packed_batch("clm"), progress=0.0, step=0) is None
    assert teacher.shown == []
    assert teacher.closed
    teacher = Counting(OnlineTeacher(build("clm", 1), "clm"))
    distiller = Distiller(teacher, make_schedule("linear", alpha=1.0, until=0.3))
    assert distiller.for_batch(packed_batch("clm"), progress=0.29, step=0) is not None
    assert not teacher.closed
    assert distiller.for_batch(packed_batch("clm"), progress=0.3, step=1) is None
    assert teacher.closed
    assert teacher.shown == [4]
    assert distiller.cost.tokens == 4 * 24


def test_bernoulli_runs_the_teacher_on_a_share_and_is_unbiased():
    objective, batch = "clm", packed_batch("clm", rows=4)
    student, teacher = build(objective, 0), build(objective, 1)
    distiller = distiller_of(OnlineTeacher(teacher, objective), alpha=0.4, bernoulli=True)
    losses = []
    with loss_head(student, objective), torch.no_grad():
        for step in range(400):
            inheritance = distiller.for_batch(batch, progress=0.0, step=step)
            losses.append(float(student(**batch, inheritance=inheritance).loss))
    plain = float(ours(student, distiller_of(OnlineTeacher(teacher, objective), alpha=0.4), batch, objective).detach())
    spread = torch.tensor(losses).std() / 400**0.5
    assert abs(sum(losses) / 400 - plain) < 4 * float(spread)
    assert abs(distiller.cost.tokens / (400 * 96) - 0.4) < 0.05


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_mixture_runs_only_active_teachers_and_mixes_probabilities(objective):
    student, batch = build(objective, 0, dtype=torch.float64), packed_batch(objective, rows=6)
    models = [build(objective, seed, hidden_size=16, dtype=torch.float64).eval() for seed in (1, 2, 3)]
    # domain 0: the first alone; domain 1: two of them, three to one; domain 2: nobody
    table = torch.tensor([[2.0, 0.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    counting = [Counting(OnlineTeacher(model, objective)) for model in models]
    teacher = MixtureTeacher(counting, weights_by_domain(table), objective)
    plain = copy.deepcopy(student)

    def says(batch, sequence):
        weights = (table / table.sum(1, keepdim=True).clamp(min=1))[batch["domain_ids"]][sequence].double()
        return sum(
            weights[:, j : j + 1] * (full_logits(model, batch, objective)[0] / TAU).softmax(-1)
            for j, model in enumerate(models)
        )

    loss = ours(student, distiller_of(teacher, alpha=0.5), batch, objective)
    expected = reference(plain, says, batch, objective, 0.5 * (batch["domain_ids"] < 2))
    assert abs(float(loss.detach() - expected.detach())) < 1e-12
    loss.backward()
    expected.backward()
    assert_same_gradients(gradients(student), gradients(plain), 1e-12)
    assert [part.shown for part in counting] == [[4], [2], []]
    teacher.close()
    assert all(part.closed for part in counting)


def test_weights_of_a_mixture_are_not_negative():
    teacher = MixtureTeacher([OnlineTeacher(build("clm"), "clm")], lambda batch: -torch.ones(4, 1), "clm")
    with pytest.raises(InputError, match="numbers >= 0"):
        teacher.teaches(packed_batch("clm"))


def test_padding_of_a_teachers_vocabulary_has_probability_zero():
    student, teacher = build("clm", 0), build("clm", 1, vocab_size=VOCAB + 14)
    batch = packed_batch("clm")
    with pytest.raises(InputError, match="the teacher has a vocabulary of 64 tokens, the student of 50"):
        ours(student, distiller_of(OnlineTeacher(teacher, "clm")), batch, "clm")
    loss = ours(student, distiller_of(OnlineTeacher(teacher, "clm", vocab_size=VOCAB)), batch, "clm")
    smaller = build("clm", 1, vocab_size=VOCAB + 14)
    smaller.resize_token_embeddings(VOCAB)
    assert torch.allclose(loss, ours(student, distiller_of(OnlineTeacher(smaller, "clm")), batch, "clm"), atol=1e-6)


def test_early_stop_ends_at_the_first_check_and_stays_ended():
    student_nats = iter([2.0, 1.9, 5.0])  # equal is not better
    looks = []

    def nats():
        looks.append(1)
        return next(student_nats)

    def fresh():
        return Distiller(
            Counting(OnlineTeacher(build("clm", 1), "clm")),
            make_schedule("constant", alpha=1.0, until=1.0),
            surpassed=TeacherEarlyStop(2.0, nats, 4),
        )

    distiller = fresh()
    batch = packed_batch("clm")
    for step in range(8):
        for _ in range(2):  # two micro-batches of a step look once
            assert distiller.for_batch(batch, progress=step / 20, step=step) is not None
    assert len(looks) == 1  # none at step 0
    resumed = fresh()
    resumed.load_state_dict(distiller.state_dict())
    assert resumed.for_batch(batch, progress=0.4, step=8) is None
    assert resumed.teacher is None
    assert resumed.alpha(0.5) == 0
    assert resumed.for_batch(batch, progress=0.6, step=12) is None
    assert len(looks) == 2
    again = fresh()
    again.load_state_dict(resumed.state_dict())
    assert again.teacher is None
    assert again.cost.tokens == distiller.cost.tokens == 8 * 2 * 96


def test_the_target_of_a_frozen_teacher_keeps_no_graph():
    teacher = OnlineTeacher(build("clm", 1), "clm")
    (target,) = teacher.targets(packed_batch("clm"))
    assert isinstance(target, OnlineTarget)
    assert not target.hidden_NE.requires_grad
    assert not target.weight_VE.requires_grad
    assert not teacher.model.training
