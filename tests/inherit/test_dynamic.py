"""Rates from the student's uncertainty and teachers by competence, against plain formulas in float64."""

import copy
import math

import numpy as np
import pytest
import torch

from lifelong.errors import InputError
from lifelong.inherit.distiller import Distiller
from lifelong.inherit.dynamic import label_probabilities, most_competent
from lifelong.inherit.schedule import make_schedule
from lifelong.inherit.settings import InheritSection
from lifelong.inherit.sparse import TauSampler
from lifelong.inherit.teachers._weighted import MixtureTeacher, weights_by_domain
from lifelong.inherit.teachers.model import OnlineTeacher
from lifelong.ledger.history import read_history
from lifelong.lm.flops import head_flops_per_token
from lifelong.lm.head import loss_head, sequence_means
from lifelong.lm.loss import CachedTarget, OnlineTarget
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from tests.inherit.models import VOCAB, build, packed_batch
from tests.inherit.test_teachers import TAU, assert_same_gradients, full_logits, gradients, ours, reference
from tests.support import recipe_data, write_domain

OBJECTIVES = ("clm", "mlm")


def dynamic(teacher, objective, alpha=0.8, **settings):
    return Distiller(teacher, make_schedule("dynamic", alpha=alpha), temperature=TAU, objective=objective, **settings)


def rates_of(student, batch, objective, alpha):
    """alpha times the mean entropy of the student's predictions of each sequence over log V."""
    with torch.no_grad():
        logits, _, sequence = full_logits(student, batch, objective)
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1) / math.log(VOCAB)
    return alpha * sequence_means(entropy, sequence, len(batch["input_ids"]))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("on", ["all", "replay"])
def test_the_gradient_is_that_of_the_formula(objective, on):
    student = build(objective, 0, dtype=torch.float64)
    with torch.no_grad():
        student.get_output_embeddings().weight.mul_(40)  # a student that is sure of some sequences
    teacher = build(objective, 1, dtype=torch.float64).eval()
    batch, plain = packed_batch(objective), copy.deepcopy(student)
    alpha_B = rates_of(student, batch, objective, 0.8) * (1.0 if on == "all" else batch["is_replay"])
    assert float(alpha_B.max() - alpha_B.min()) > 1e-3

    def says(batch, _):
        return (full_logits(teacher, batch, objective)[0] / TAU).softmax(-1)

    loss = ours(student, dynamic(OnlineTeacher(teacher, objective), objective, on=on), batch, objective)
    loss.backward()
    expected = reference(plain, says, batch, objective, alpha_B)
    expected.backward()
    assert abs(float(loss.detach() - expected.detach())) < 1e-6
    assert_same_gradients(gradients(student), gradients(plain), 1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_split_of_a_step_changes_it(objective):
    student, batch = build(objective, 0), packed_batch(objective, rows=8)
    items = int((batch["labels"] != -100).sum())
    teachers = [OnlineTeacher(build(objective, seed), objective) for seed in (1, 2)]
    table = torch.tensor([[1.0, 1.0], [0.5, 0.5], [0.0, 0.0]])

    def gradient(parts):
        model = copy.deepcopy(student)
        distiller = dynamic(MixtureTeacher(teachers, weights_by_domain(table), objective), objective)
        for rows in torch.arange(8).chunk(parts):
            part = {name: tensor[rows] for name, tensor in batch.items()}
            ours(model, distiller, part, objective, num_items=items).backward()
        return gradients(model)

    whole = gradient(1)
    for parts in (2, 8):
        assert_same_gradients(gradient(parts), whole, 1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_most_competent_teacher_has_a_sequence_alone_and_what_is_asked_is_paid(objective):
    student, batch = build(objective, 0), packed_batch(objective)
    models = [build(objective, seed) for seed in (1, 2)]
    for model in models:
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(30)
    teacher = MixtureTeacher(
        [OnlineTeacher(model, objective) for model in models], weights_by_domain(torch.ones(3, 2)), objective
    )
    distiller = dynamic(teacher, objective, student_head_flops=head_flops_per_token(student))
    inheritance = distiller.for_batch(batch, progress=0.0, step=0)
    means = []
    for model in models:
        logits, labels, sequence = full_logits(model, batch, objective)
        p = (logits / TAU).softmax(-1).gather(1, labels[:, None])[:, 0]
        means.append(sequence_means(p, sequence, 4))
    best = torch.stack(means).argmax(0)[sequence]
    for place, target in enumerate(inheritance.targets):
        assert torch.equal(target.weight_N.bool(), best == place)
    assert distiller.cost.flops == pytest.approx(batch["input_ids"].numel() * 3 * 2 * VOCAB * 32)


def test_a_teacher_without_weight_on_a_sequence_is_not_chosen():
    hidden = torch.eye(4)
    weight = torch.eye(4) * 5
    labels, sequence = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1, 1])
    good = OnlineTarget(hidden, weight, weight_N=torch.tensor([1.0, 1.0, 0.0, 0.0]))
    bad = OnlineTarget(hidden, -weight, weight_N=torch.tensor([0.3, 0.3, 0.3, 0.3]))
    first, second = most_competent([good, bad], labels, sequence, 1.0)
    assert first.weight_N.tolist() == [1, 1, 0, 0]
    assert second.weight_N.tolist() == [0, 0, 1, 1]


def test_a_token_that_a_teacher_of_another_vocabulary_lacks_has_probability_0():
    hidden, weight = torch.randn(3, 4), torch.randn(3, 4)
    target = OnlineTarget(hidden, weight, student_ids_V=torch.tensor([5, -1, 2]), vocab_size=3)
    p = (hidden @ weight.T).softmax(-1)
    found = label_probabilities(target, torch.tensor([5, 2, 7]))
    assert torch.allclose(found, torch.stack([p[0, 0], p[1, 2], torch.tensor(0.0)]))


def stored(sampler, p_NV, seed):
    """A draw of the sampler as the targets of a cache."""
    rows = sampler.sparsify(p_NV.clone(), np.random.default_rng(seed))
    values = np.full(len(rows.ids), sampler.unit, dtype=np.float32)
    values[rows.coded] = sampler.values(rows.codes)
    ids_NK, values_NK = torch.full((len(p_NV), 40), -1), torch.zeros(len(p_NV), 40)
    ends = rows.counts.cumsum()
    for row, (start, end) in enumerate(zip(ends - rows.counts, ends, strict=True)):
        ids_NK[row, : end - start] = torch.from_numpy(rows.ids[start:end])
        values_NK[row, : end - start] = torch.from_numpy(values[start:end])
    return CachedTarget(ids_NK, values_NK)


def test_the_competence_of_stored_targets_is_unbiased():
    torch.manual_seed(0)
    p = torch.randn(6, 40).mul(2).softmax(-1)
    labels, sampler = torch.randint(0, 40, (6,)), TauSampler(0.1)
    draws = []
    for seed in range(500):
        draws.append(label_probabilities(stored(sampler, p, seed), labels))
    mean, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / 500**0.5
    true = p.gather(1, labels[:, None])[:, 0]
    assert bool(((mean - true).abs() <= 4 * error + 1e-6).all())


def test_the_rate_that_is_logged_is_the_one_that_was_used(tmp_path):
    for name in ("sea", "farm"):
        write_domain(tmp_path, name, documents=12)
    data = recipe_data(tmp_path, evaluate={"tokens": 100, "samples": 0},
                       inherit={"schedule": "dynamic", "alpha": 1.0, "until": 0.5})  # fmt: skip
    data["stages"] = [{"domain": stage["domain"], "tokens": 2048} for stage in data["stages"]]
    data["train"]["logging_steps"] = 1
    run_recipe(parse_recipe(data), tmp_path / "run")
    history = read_history(tmp_path / "run")
    alphas = [point.alpha for point in history.train[1]]
    assert all(0.2 < alpha < 1 for alpha in alphas[:4])
    assert alphas[4:] == [0.0] * 4
    assert history.stages[1].cost["train"]["teacher_flops"] > 0


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match=r"`bernoulli` draws the sequences .* leave one of the two out"):
        InheritSection(schedule="dynamic", bernoulli=True)
    with pytest.raises(InputError, match=r"inherit\.alpha: must be in \[0, 1\]"):
        make_schedule("dynamic", alpha=2.0)


def test_the_loss_of_a_batch_says_its_mean_rate():
    student, batch = build("clm", 0), packed_batch("clm")
    with loss_head(student, "clm"):
        inheritance = dynamic(OnlineTeacher(build("clm", 1), "clm"), "clm", on="replay").for_batch(
            batch, progress=0.0, step=0
        )
        output = student(**batch, inheritance=inheritance)
    alpha_B = rates_of(student, batch, "clm", 0.8) * batch["is_replay"]
    counts = (batch["labels"][:, 1:] != -100).sum(1)
    assert float(output.rate) == pytest.approx(float((alpha_B * counts).sum() / counts.sum()), rel=1e-4)
