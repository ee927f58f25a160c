from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lifelong.errors import InputError, UnknownNameError
from lifelong.replay.controllers import AdaptiveController, BudgetController, Mix, adaptive_weights, replay_weights
from lifelong.replay.memory import ReplayMemory, write_memory_snapshot
from lifelong.select.scores import challenge_scores, difference_scores, select_rows
from lifelong.stream.packing import pack, write_blocks


@pytest.fixture
def memory(tmp_path: Path) -> ReplayMemory:
    previous = None
    for i, (name, blocks) in enumerate((("wiki", 30), ("news", 10))):
        store = write_blocks(tmp_path / f"{i}.arrow", pack([np.arange(blocks * 4)], 4), 1000)
        previous = write_memory_snapshot(
            previous, name, store, capacity_tokens=80, policy="domain-balanced", seed=0, out=tmp_path / str(i)
        ).path
    assert previous is not None
    return ReplayMemory.open(previous)


def test_replay_weights(memory: ReplayMemory) -> None:
    assert replay_weights("uniform", memory) == {"wiki": 0.5, "news": 0.5}
    assert replay_weights("proportional", memory) == {"wiki": 0.75, "news": 0.25}
    assert replay_weights("adaptive", memory) == {"wiki": 0.5, "news": 0.5}
    assert replay_weights("adaptive", memory, {"wiki": [4.0, 4.4], "news": [6.0, 4.1]}) == {"wiki": 0.5, "news": 0.5}
    with pytest.raises(UnknownNameError, match="did you mean 'uniform'"):
        replay_weights("uniformly", memory)


def test_the_domain_learned_last_begins_with_the_most_that_another_one_lost(memory, tmp_path: Path) -> None:
    store = write_blocks(tmp_path / "2.arrow", pack([np.arange(40)], 4), 1000)
    memory = write_memory_snapshot(
        memory.path, "bio", store, capacity_tokens=80, policy="domain-balanced", seed=0, out=tmp_path / "third"
    )
    # wiki lost 0.6 right after its own stage and got 0.5 of it back; news lost 0.2; bio cannot have lost yet
    history = {"wiki": [4.0, 4.6, 4.1], "news": [6.0, 4.0, 4.2], "bio": [7.0, 6.5, 3.0]}
    weights = replay_weights("adaptive", memory, history)
    assert weights == pytest.approx({name: 0.5 / 3 + 0.5 * part / 0.9 for name, part in
                                     (("wiki", 0.1), ("news", 0.2), ("bio", 0.6))})  # fmt: skip


def test_adaptive_controller_follows_recent_probes_and_resumes() -> None:
    controller = AdaptiveController(0.2, {"a": 0.9, "b": 0.1})
    assert controller.observe({"a": 4.0, "b": 4.0}) == Mix(0.2, {"a": 0.9, "b": 0.1})
    assert controller.observe({"a": 3.0, "b": 4.2}).weights == pytest.approx({"a": 0.75, "b": 0.25})
    resumed = AdaptiveController(0.2, {"a": 0.9, "b": 0.1})
    resumed.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    for nats in ({"a": 3.0, "b": 4.1}, {"a": 3.0, "b": 4.0}, {"a": 3.0, "b": 3.9}):
        mix = controller.observe(nats)
        assert resumed.observe(nats) == mix
    assert mix.weights == pytest.approx({"a": 0.25, "b": 0.75}), "the fall of `a` is too long ago to count"


def test_a_domain_without_a_budget_is_replayed_too() -> None:
    controller = BudgetController({"a": 0.02}, {"a": 3.0}, domains=["a", "b"])
    assert controller.observe({"a": 3.1, "b": 9.0}).weights == pytest.approx({"a": 0.75, "b": 0.25})


def test_adaptive_weights_follow_the_fall() -> None:
    weights = adaptive_weights({"a": [4.0, 3.0], "b": [4.0, 4.5], "c": [4.0, 3.0, 3.8]})
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["a"] > weights["c"] > weights["b"] > 0


class _Learner:
    """Forgets by a rate of its own, and less the more is replayed."""

    def __init__(self, rate: float) -> None:
        self.nats, self.rate = 3.0, rate

    def step(self, share: float) -> float:
        self.nats = max(2.9, self.nats + self.rate * (1 - share / 0.3) * 0.01)
        return self.nats


def test_controller_keeps_a_budget_that_a_fixed_share_breaks() -> None:
    fixed, steered = _Learner(1.0), _Learner(1.0)
    controller = BudgetController({"wiki": 0.05}, {"wiki": 3.0}, share=0.05)
    for _ in range(60):
        fixed.step(0.05)
        controller.observe({"wiki": steered.step(controller.share)})
    assert math.expm1(fixed.nats - 3.0) > 0.05
    assert math.expm1(steered.nats - 3.0) <= 0.05
    assert controller.broken == {}
    assert 0.05 < controller.share <= 0.5


def test_controller_gives_back_what_is_not_needed_and_helps_the_endangered() -> None:
    controller = BudgetController({"a": 0.02, "b": 0.02}, {"a": 3.0, "b": 3.0}, share=0.3, min_share=0.02)
    for _ in range(40):
        mix = controller.observe({"a": 2.99, "b": 2.98})
    assert mix.share == 0.02
    assert dict(mix.weights) == {"a": 0.5, "b": 0.5}
    mix = controller.observe({"a": 3.0 + math.log(1.04), "b": 3.0})
    assert mix.share > 0.02
    assert mix.weights["a"] == pytest.approx(0.75)
    assert controller.broken == {"a": pytest.approx(0.04)}
    resumed = BudgetController({"a": 0.02, "b": 0.02}, {"a": 3.0, "b": 3.0})
    resumed.load_state_dict(controller.state_dict())
    assert resumed.observe({"b": 3.01}) == controller.observe({"b": 3.01})


def test_controller_refuses_nonsense() -> None:
    with pytest.raises(InputError, match=r"budget\.wiki"):
        BudgetController({"wiki": 0.0}, {"wiki": 3.0})
    with pytest.raises(InputError, match="no loss"):
        BudgetController({"wiki": 0.1}, {})
    with pytest.raises(InputError, match="min_share"):
        BudgetController({"wiki": 0.1}, {"wiki": 3.0}, min_share=0.6, max_share=0.5)


def test_difference_scores_compare_across_lengths() -> None:
    scores = difference_scores(np.array([10.0, 20.0]), np.array([15.0, 30.0]), np.array([5, 10]))
    assert scores.tolist() == [1.0, 1.0]
    with pytest.raises(InputError, match="2 teacher losses, 1 reference"):
        difference_scores(np.zeros(2), np.zeros(1))
    with pytest.raises(InputError, match="1 of 2 values are not finite"):
        difference_scores(np.array([0.0, np.nan]), np.zeros(2))


def test_challenge_leaves_out_noise_and_what_is_known() -> None:
    nats = [np.full(5, 0.1), np.full(5, 3.0), np.full(5, 9.0)]
    ranks = [np.zeros(5, int), np.full(5, 4), np.full(5, 500)]
    scores = challenge_scores(nats, ranks, top_k=10)
    assert scores.argmax() == 1
    assert scores.tolist() == [0.1, 3.0, 0.0]
    with pytest.raises(InputError, match="one loss and one rank"):
        challenge_scores(nats, ranks[:2])


def test_select_rows_counts_sizes() -> None:
    scores = np.array([0.5, 3.0, 2.0, 1.0])
    assert select_rows(scores, 0.5).tolist() == [1, 2]
    assert select_rows(scores, 0.5, sizes=np.array([1, 9, 1, 1])).tolist() == [1]
    assert select_rows(scores, 1.0).tolist() == [0, 1, 2, 3]
    drawn = [tuple(select_rows(scores, 0.25, seed=seed, temperature=1.0)) for seed in range(300)]
    share = np.mean([rows == (1,) for rows in drawn])
    assert share == pytest.approx(math.exp(3) / np.exp(scores).sum(), abs=0.08)
    with pytest.raises(InputError, match=r"select\.keep"):
        select_rows(scores, 0.0)
