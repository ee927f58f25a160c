"""Advice with figures: one line where it is due, and none where it is not."""

from dataclasses import dataclass

import pytest

from lifelong.plan.regimes import regime_advice, seen_tokens
from lifelong.plan.text import CorpusStats
from lifelong.recipe import parse_recipe

LARGER = {"layers": 6}


@dataclass
class Planned:
    """What the advice asks of a planned stage."""

    index: int
    domain: str
    parameters: int
    tokens: int
    replay_share: float = 0.0


def advice(*stages, base=1_000, texts=(), **changes):
    """Lines for stages given as (domain, tokens, parameters)."""
    sections, before = [], base
    for name, tokens, parameters in stages:
        grows = {"expand": dict(LARGER)} if parameters > before else {}
        sections.append({"domain": name, "tokens": tokens, **grows})
        before = parameters
    data = {
        "name": "advice", "model": {"family": "llama"}, "tokenizer": {"train": {"kind": "bpe", "vocab_size": 300}},
        "stages": sections,
    } | changes  # fmt: skip
    if "checkpoint" in data["model"]:
        del data["tokenizer"]
    if data.pop("train_new", False):
        for section in sections:
            section.get("expand", {})["train"] = "new"
    planned = [Planned(i, name, parameters, tokens) for i, (name, tokens, parameters) in enumerate(stages)]
    facts = {name: CorpusStats(name, 3.0 * tokens, 0, 3.0, None, None, True) for name, tokens in texts}
    return list(regime_advice(parse_recipe(data), planned, base, facts))


def test_repeated_text_without_a_teacher():
    (line,) = advice(("news", 12_000, 1_000), texts=[("news", 3_000)])
    assert "reads the 3,000 tokens of news 4.0 times without a teacher" in line
    assert "2.729 at eight" in line
    assert advice(("news", 9_000, 1_000), texts=[("news", 3_000)]) == []
    assert advice(("news", 12_000, 1_000), texts=[("news", 3_000)], inherit={"alpha": 0.3}) == []
    assert len(advice(("news", 6_000, 1_000), ("news", 6_000, 1_000), texts=[("news", 3_000)])) == 1
    assert advice(("news", 12_000, 1_000)) == []  # the text was not read


@pytest.mark.parametrize(
    ("tokens", "later", "parameters", "expected"),
    [
        (20_000, 10_000, 2_000, []),
        (5_000, 10_000, 2_000, ["after 5 tokens a parameter"]),
        (200_000, 10_000, 2_000, ["after 200 tokens a parameter, far above the 20"]),
        (20_000, 20_000, 4_000, ["grows 4.0-fold at once"]),
        (20_000, 4_000, 2_000, ["ends 2 tokens a parameter later"]),
        (5_000, 4_000, 4_000, ["4.0-fold", "after 5 tokens", "ends 1 tokens"]),
    ],
)
def test_growth(tokens, later, parameters, expected):
    lines = advice(("wiki", tokens, 1_000), ("news", later, parameters))
    assert len(lines) == len(expected)
    for line, text in zip(lines, expected, strict=True):
        assert text in line
        assert "arXiv" in line or "docs/results.md" in line


def test_a_base_that_has_seen_it_all(tmp_path):
    base = {"model": {"checkpoint": str(tmp_path / "SmolLM2-135M")}}
    (line,) = advice(("news", 2 * 10**9, 150_000_000), base=135_000_000, **base)
    assert "a base that has seen some 14,815 tokens a parameter" in line
    assert advice(("news", 2 * 10**9, 150_000_000), base=135_000_000, train_new=True, **base) == []
    (line,) = advice(("news", 10**6, 150_000_000), base=135_000_000, train_new=True, **base)
    assert "0.11 nats" in line
    assert seen_tokens("Qwen/Qwen3-0.6B") == 36e12
    assert seen_tokens("org/own-model") is None


def test_temperature_and_optimizer(tmp_path):
    (line,) = advice(("news", 10_000, 1_000), inherit={"temperature": 2.0})
    assert "keeps more: .057 nats of new text against .154" in line
    assert advice(("news", 10_000, 1_000), inherit={}) == []
    muon = {"train": {"optim": "muon"}}
    (line,) = advice(("news", 10_000, 1_000), model={"checkpoint": str(tmp_path)}, **muon)
    assert "2502.16982" in line
    assert advice(("news", 10_000, 1_000), **muon) == []
