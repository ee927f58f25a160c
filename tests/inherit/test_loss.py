import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from lifelong.errors import InputError
from lifelong.inherit import CachedTarget, OnlineTarget, ki_loss

N, D, E, V = 23, 7, 5, 31


def tensors(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[::5] = -100
    return draw(N, D), draw(V, D), draw(V), draw(N, E), draw(V, E), labels


def reference(hidden, weight, bias, target, labels, alpha, tau, softcap=None):
    """Full materialisation under autograd."""
    keep = labels != -100
    logits = hidden @ weight.T + bias
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logits, teacher = logits[keep], target[keep]
    ce = F.cross_entropy(logits, labels[keep])
    kl = F.kl_div((logits / tau).log_softmax(-1), (teacher / tau).softmax(-1), reduction="batchmean")
    return (1 - alpha) * ce + alpha * tau**2 * kl


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_value_and_gradients_equal_full_materialisation(alpha, tau, softcap):
    hidden, weight, bias, teacher_hidden, teacher_weight, labels = tensors()
    ours = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    theirs = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    target = OnlineTarget(teacher_hidden, teacher_weight)
    loss = ki_loss(
        ours[0],
        ours[1],
        labels,
        bias_V=ours[2],
        targets=target,
        alpha=alpha,
        temperature=tau,
        chunk_tokens=4,
        softcap=softcap,
    )
    expected = reference(*theirs, teacher_hidden @ teacher_weight.T, labels, alpha, tau, softcap)
    assert abs((loss - expected).item()) < 1e-12
    (3 * loss).backward()
    (3 * expected).backward()
    for a, b in zip(ours, theirs, strict=True):
        assert float((a.grad - b.grad).abs().max()) < 1e-12


def test_gradcheck():
    hidden, weight, bias, teacher_hidden, teacher_weight, labels = tensors()
    inputs = tuple(x.requires_grad_() for x in (hidden, weight, bias))
    target = OnlineTarget(teacher_hidden, teacher_weight)
    assert torch.autograd.gradcheck(
        lambda h, w, b: ki_loss(h, w, labels, bias_V=b, targets=target, alpha=0.4, temperature=2.0, chunk_tokens=5),
        inputs,
    )


def test_cache_with_all_entries_equals_online():
    hidden, weight, bias, teacher_hidden, teacher_weight, labels = tensors()
    probabilities = ((teacher_hidden @ teacher_weight.T) / 2).softmax(-1)
    ids = torch.arange(V).expand(N, V)
    settings = {"bias_V": bias, "alpha": 0.6, "temperature": 2.0}
    online = ki_loss(hidden, weight, labels, targets=OnlineTarget(teacher_hidden, teacher_weight), **settings)
    cached = ki_loss(hidden, weight, labels, targets=CachedTarget(ids, probabilities), **settings)
    assert abs(float(online - cached)) < 1e-12


def test_any_split_gives_the_same_gradient():
    hidden, weight, _, teacher_hidden, teacher_weight, labels = tensors(torch.float32)
    items = int((labels != -100).sum())

    def gradient(parts):
        w = weight.clone().requires_grad_()
        for rows in torch.arange(N).chunk(parts):
            target = OnlineTarget(teacher_hidden[rows], teacher_weight)
            ki_loss(
                hidden[rows], w, labels[rows], targets=target, alpha=0.5, temperature=2.0, num_items=items
            ).backward()
        return w.grad

    assert float((gradient(1) - gradient(4)).abs().max()) < 1e-6


def test_a_student_equal_to_its_teacher_has_no_kl():
    hidden, weight, _, _, _, labels = tensors(torch.float32)
    loss = ki_loss(hidden, weight, labels, targets=OnlineTarget(hidden, weight), alpha=1.0, temperature=2.0)
    assert abs(float(loss)) < 1e-6


def test_bfloat16_gradient_is_close_when_teacher_and_student_are_close():
    torch.manual_seed(0)
    hidden, weight = torch.randn(256, 64), torch.randn(512, 64) / 4
    teacher = hidden + 0.02 * torch.randn_like(hidden)
    labels = torch.randint(0, 512, (256,))

    def gradient(dtype):
        h = hidden.bfloat16().to(dtype).requires_grad_()
        w = weight.bfloat16().to(dtype)
        target = OnlineTarget(teacher.bfloat16().to(dtype), w)
        ki_loss(h, w, labels, targets=target, alpha=1.0).backward()
        return h.grad.double()

    exact, low = gradient(torch.float32), gradient(torch.bfloat16)
    assert float((low - exact).norm() / exact.norm()) < 0.005


@pytest.mark.parametrize(("settings", "message"), [
    ({"alpha": 1.5}, r"alpha: lies in \[0, 1\]"),
    ({"temperature": 0.0}, "temperature"),
])  # fmt: skip
def test_impossible_settings_are_refused(settings, message):
    hidden, weight, _, teacher_hidden, teacher_weight, labels = tensors()
    with pytest.raises(InputError, match=message):
        ki_loss(hidden, weight, labels, targets=OnlineTarget(teacher_hidden, teacher_weight), **settings)


def test_a_teacher_with_another_vocabulary_is_refused():
    hidden, weight, _, teacher_hidden, teacher_weight, labels = tensors()
    with pytest.raises(InputError, match="vocabulary of 30 tokens, the student of 31"):
        ki_loss(hidden, weight, labels, targets=OnlineTarget(teacher_hidden, teacher_weight[:-1]), alpha=0.5)
