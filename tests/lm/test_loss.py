from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from lifelong.errors import InputError
from lifelong.inherit import CachedTarget, OnlineTarget, ki_loss
from lifelong.lm.fused import fused_tiles, is_fused
from lifelong.lm.loss import ki_loss_parts

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
    items = torch.tensor(int((labels != -100).sum()))  # as Trainer gives it
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
        num_items=items,
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


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_the_graph_may_be_walked_twice(factor):
    hidden, weight, _, teacher_hidden, teacher_weight, labels = tensors()
    weight.requires_grad_()
    loss = factor * ki_loss(hidden, weight, labels, targets=OnlineTarget(teacher_hidden, teacher_weight), alpha=0.5)
    loss.backward(retain_graph=True)
    once = weight.grad.clone()
    loss.backward()
    assert torch.equal(weight.grad, 2 * once)


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
    teacher = hidden + 0.0225 * torch.randn_like(hidden)
    labels = torch.randint(0, 512, (256,))
    apart = ki_loss(hidden, weight, labels, targets=OnlineTarget(teacher, weight), alpha=1.0)
    assert 0.0008 < float(apart) < 0.0012

    def gradient(dtype):
        h = hidden.bfloat16().to(dtype).requires_grad_()
        w = weight.bfloat16().to(dtype)
        target = OnlineTarget(teacher.bfloat16().to(dtype), w)
        ki_loss(h, w, labels, targets=target, alpha=1.0).backward()
        return h.grad.double()

    exact, low = gradient(torch.float32), gradient(torch.bfloat16)
    assert float((low - exact).norm() / exact.norm()) < 0.005


def test_under_autocast_student_and_teacher_are_projected_alike():
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(256, 64), torch.randn(512, 64) / 4, torch.randint(0, 512, (256,))
    found = {}
    for low in (False, True):
        ours, embedding = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            _, ce, kl = ki_loss_parts(ours, embedding, labels, targets=OnlineTarget(hidden, weight), alpha=0.5)
            loss = ki_loss(ours, embedding, labels, targets=OnlineTarget(hidden.flip(0), weight), alpha=0.5)
        loss.backward()
        assert float(kl) == 0.0
        assert ours.grad.dtype == embedding.grad.dtype == loss.dtype == torch.float32
        found[low] = float(ce), ours.grad, embedding.grad
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-3)
    for exact, rounded in zip(found[False][1:], found[True][1:], strict=True):
        assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.006


def test_float16_autocast_loses_no_small_gradient():
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(64, 16), torch.randn(128, 16) / 4, torch.randint(0, 128, (64,))

    def gradient(low):
        ours = hidden.clone().requires_grad_()
        with torch.autocast("cpu", torch.float16, enabled=low):
            ki_loss(ours, weight, labels, num_items=10**9).backward()
        return ours.grad

    assert torch.equal(gradient(True), gradient(False))


@pytest.mark.parametrize(("settings", "message"), [
    ({"alpha": 1.5}, r"alpha: must be in \[0, 1\]"),
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


def dense(teachers, weights, tau):
    """The mixture of teachers in probability space, `[N, V]`."""
    return sum(w[:, None] * (t / tau).softmax(-1) for t, w in zip(teachers, weights, strict=True))


def reference_dense(hidden, weight, target, labels, alpha, tau):
    keep = labels != -100
    logits, target = (hidden @ weight.T)[keep], target[keep]
    kl = (torch.xlogy(target, target) - target * (logits / tau).log_softmax(-1)).sum(-1).mean()
    return (1 - alpha) * F.cross_entropy(logits, labels[keep]) + alpha * tau**2 * kl


@pytest.mark.parametrize("tau", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("kinds", ["online online", "online cached", "cached cached"])
def test_a_mixture_is_mixed_in_probability_space(kinds, tau):
    hidden, weight, _, teacher_hidden, teacher_weight, labels = tensors()
    logits = [teacher_hidden @ teacher_weight.T, -teacher_hidden @ teacher_weight.T]
    weights = [torch.linspace(0, 1, N, dtype=torch.float64), 1 - torch.linspace(0, 1, N, dtype=torch.float64)]
    targets = []
    for kind, teacher, w, sign in zip(kinds.split(), logits, weights, (1, -1), strict=True):
        if kind == "online":
            targets.append(OnlineTarget(sign * teacher_hidden, teacher_weight, weight_N=w))
        else:  # all entries, in another order for each
            ids = torch.arange(V).roll(sign).expand(N, V)
            targets.append(CachedTarget(ids, (teacher / tau).softmax(-1).gather(1, ids), w))
    ours, theirs = (hidden.clone().requires_grad_() for _ in range(2))
    loss = ki_loss(ours, weight, labels, targets=targets, alpha=0.7, temperature=tau, chunk_tokens=4)
    expected = reference_dense(theirs, weight, dense(logits, weights, tau), labels, 0.7, tau)
    assert abs(float(loss.detach() - expected.detach())) < 1e-12
    loss.backward()
    expected.backward()
    assert float((ours.grad - theirs.grad).abs().max()) < 1e-12


def test_sparse_entries_with_gaps_and_mass_below_one():
    hidden, weight, _, _, _, labels = tensors()
    ids = torch.tensor([[3, 7, -1]]).expand(N, 3)
    values = torch.tensor([[0.5, 0.2, 9.0]], dtype=torch.float64).expand(N, 3)
    target = torch.zeros(N, V, dtype=torch.float64)
    target[:, 3], target[:, 7] = 0.5, 0.2
    ours, theirs = (hidden.clone().requires_grad_() for _ in range(2))
    loss = ki_loss(ours, weight, labels, targets=CachedTarget(ids, values), alpha=0.4, temperature=2.0)
    expected = reference_dense(theirs, weight, target, labels, 0.4, 2.0)
    loss.backward()
    expected.backward()
    assert abs(float(loss.detach() - expected.detach())) < 1e-12
    assert float((ours.grad - theirs.grad).abs().max()) < 1e-12


def test_padding_of_the_vocabulary_counts_as_minus_infinity():
    hidden, weight, bias, teacher_hidden, teacher_weight, labels = tensors()
    labels = labels.clamp(max=V - 5)
    padded_teacher = torch.cat([teacher_weight[: V - 4], torch.full((9, E), 50.0, dtype=torch.float64)])
    expected_weight = weight[: V - 4].clone().requires_grad_()
    expected = ki_loss(
        hidden, expected_weight, labels, bias_V=bias[: V - 4], alpha=0.6, temperature=2.0,
        targets=OnlineTarget(teacher_hidden, teacher_weight[: V - 4]),
    )  # fmt: skip
    ours = weight.clone().requires_grad_()
    loss = ki_loss(
        hidden, ours, labels, bias_V=bias, alpha=0.6, temperature=2.0, vocab_size=V - 4,
        targets=OnlineTarget(teacher_hidden, padded_teacher, vocab_size=V - 4),
    )  # fmt: skip
    loss.backward()
    expected.backward()
    assert abs(float(loss.detach() - expected.detach())) < 1e-12
    assert float((ours.grad[: V - 4] - expected_weight.grad).abs().max()) < 1e-12
    assert float(ours.grad[V - 4 :].abs().max()) == 0


def test_a_teacher_with_fewer_real_tokens_gives_the_rest_probability_zero():
    hidden, weight, _, teacher_hidden, teacher_weight, labels = tensors()
    logits = teacher_hidden @ teacher_weight.T
    logits[:, V - 4 :] = -torch.inf
    ours, theirs = (hidden.clone().requires_grad_() for _ in range(2))
    target = OnlineTarget(teacher_hidden, teacher_weight, vocab_size=V - 4)
    loss = ki_loss(ours, weight, labels, targets=target, alpha=0.6, temperature=2.0)
    expected = reference_dense(theirs, weight, (logits / 2).softmax(-1), labels, 0.6, 2.0)
    loss.backward()
    expected.backward()
    assert abs(float(loss.detach() - expected.detach())) < 1e-12
    assert float((ours.grad - theirs.grad).abs().max()) < 1e-12


def test_soft_capping_and_tiles_of_entries():
    """A cache that holds every token equals the teacher itself, through a soft-cap as well."""
    hidden, weight, bias, teacher_hidden, teacher_weight, labels = tensors()
    probabilities = ((teacher_hidden @ teacher_weight.T) / 2).softmax(-1)
    gradients = []
    for target in (
        OnlineTarget(teacher_hidden, teacher_weight),
        CachedTarget(torch.arange(V).expand(N, V), probabilities),
    ):
        ours = hidden.clone().requires_grad_()
        ki_loss(ours, weight, labels, bias_V=bias, targets=target, alpha=0.6, temperature=2.0, softcap=2.0).backward()
        gradients.append(ours.grad)
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-12


def test_logit_scale_and_tiles_of_one_row(monkeypatch):
    monkeypatch.setattr("lifelong.lm.chunk.TILE_ELEMENTS", 1)
    hidden, weight, _, teacher_hidden, teacher_weight, labels = tensors()
    ours, theirs = (hidden.clone().requires_grad_() for _ in range(2))
    target = OnlineTarget(teacher_hidden, teacher_weight, logit_scale=0.25)
    ki_loss(ours, weight, labels, targets=target, alpha=0.3, temperature=2.0, logit_scale=0.5).backward()
    scaled = ki_loss(theirs, weight / 2, labels, targets=OnlineTarget(teacher_hidden, teacher_weight / 4), alpha=0.3, temperature=2.0)  # fmt: skip
    scaled.backward()
    assert float((ours.grad - theirs.grad).abs().max()) < 1e-12


def test_cached_targets_of_another_tokenizer_are_refused():
    hidden, weight, _, _, _, labels = tensors()
    values = torch.full((N, 1), 0.5)
    with pytest.raises(InputError, match="names token 31, the student's vocabulary has 31"):
        ki_loss(hidden, weight, labels, targets=CachedTarget(torch.full((N, 1), V), values), alpha=0.5)
    wide = torch.zeros(N, V + 1, dtype=torch.long)
    with pytest.raises(InputError, match="keeps 32 entries of a vocabulary of 31"):
        ki_loss(hidden, weight, labels, targets=CachedTarget(wide, wide.double()), alpha=0.5)


def test_no_logits_of_all_tokens_exist():
    """The largest tensor that is ever formed has the size of a chunk, of the embedding, or of the hidden states."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
            self.elements = max([self.elements, *sizes])
            return result

    n, d, v, rows = 512, 8, 256, 16
    hidden, weight = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    with Largest() as seen:
        target = OnlineTarget(torch.randn(n, d), torch.randn(v, d))
        ki_loss(
            hidden, weight, torch.zeros(n, dtype=torch.long), targets=target, alpha=0.5, chunk_tokens=rows
        ).backward()
    assert seen.elements == max(rows * v, n * d, v * d)


@pytest.mark.parametrize("kind", ["plain", "online", "cached"])
def test_a_token_more_takes_eight_bytes_a_channel(kind):
    """Its gradient, once in the loss and once where the leaf keeps it; everything else is a chunk or the embedding."""
    from torch.profiler import ProfilerActivity, profile

    width, vocab = 64, 128

    def peak(tokens):
        hidden, weight = torch.randn(tokens, width, requires_grad=True), torch.randn(vocab, width, requires_grad=True)
        target = {
            "plain": (), "online": OnlineTarget(torch.randn(tokens, width), torch.randn(vocab, width)),
            "cached": CachedTarget(torch.randint(0, vocab, (tokens, 12)), torch.rand(tokens, 12)),
        }[kind]  # fmt: skip
        labels = torch.zeros(tokens, dtype=torch.long)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            ki_loss(hidden, weight, labels, targets=target, alpha=0.5, temperature=2.0, chunk_tokens=64).backward()
        now = most = 0
        for event in recorded.profiler.kineto_results.events():
            if event.name() == "[memory]":
                now += event.nbytes()
                most = max(most, now)
        return most

    few, many = peak(512), peak(1536)
    assert (many - few) / 1024 <= 8 * width


@pytest.mark.parametrize("tau", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("kind", ["none", "online", "cached", "padded", "mixture"])
def test_the_compiled_pass_is_the_reference(kind, tau):
    torch.manual_seed(3)
    hidden, weight = torch.randn(23, 8), torch.randn(31, 8)
    teacher = OnlineTarget(torch.randn(23, 6), torch.randn(31, 6))
    ids = torch.stack([torch.randperm(31)[:4] for _ in range(23)])
    targets = {
        "none": None, "online": teacher, "cached": CachedTarget(ids, torch.rand(23, 4) / 5),
        "padded": replace(teacher, vocab_size=29),
        "mixture": [replace(teacher, weight_N=torch.full((23,), 0.5)), CachedTarget(ids, torch.rand(23, 4) / 5, torch.full((23,), 0.5))],
    }[kind]  # fmt: skip
    labels, alpha = torch.randint(0, 29, (23,)), torch.rand(23)

    def result():
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        loss, ce, kl = ki_loss_parts(*leaves, labels, targets=targets, alpha=alpha, temperature=tau, chunk_tokens=10)
        loss.backward()
        return torch.stack([loss.detach(), ce.float(), kl.float()]), *(leaf.grad for leaf in leaves)

    expected = result()
    with fused_tiles("eager"):
        found = result()
    assert is_fused(hidden) is False
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
