"""Behaviour of a chat model over the stages: a rate for every rule, and its answers side by side."""

from __future__ import annotations

from collections.abc import Sequence

from lifelong.records import UNPROTECTED_CHAT, ChatAnswer, ChatScores, RunHistory
from lifelong.report.uncertainty import wilson_interval
from lifelong.report.view import Table, table

RULES = {"stops": "stops", "format": "keeps the format", "language": "answers in the language"}
SHOWN = 8
NOTE = (
    "Answers of at most 64 tokens, greedy, judged by rules that look at the form alone: an end-of-turn token, the asked "
    "format, and the language by its script or stop words. Brackets: 95 % (Wilson) over prompts, as if they were drawn."
)


def chat_table(scores: Sequence[tuple[str, ChatScores]]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: a model, and its rate under every rule with its interval."""
    rows = [[name, *(_rate(*item.rates[rule]) for rule in RULES)] for name, item in scores]
    return ["model", *RULES.values()], rows


def _rate(passed: int, asked: int) -> str:
    if not asked:
        return "–"
    bounds = wilson_interval(passed, asked)
    return f"{passed}/{asked} [{bounds.low:.0%}, {bounds.high:.0%}]"


def named_scores(history: RunHistory) -> list[tuple[str, ChatScores]]:
    """The answers of the initial model and after every stage, by name."""
    names = history.matrix.stages
    return [("initial" if item.stage < 0 else names[item.stage], item) for item in history.chat]


def chat_warning(history: RunHistory) -> str:
    """Warning where the base is a chat model and nothing in the recipe holds it to what it did; empty elsewhere."""
    kept = any(history.recipe.get(section) for section in ("replay", "inherit", "methods", "watch"))
    return UNPROTECTED_CHAT if history.chat and not kept else ""


def answers_table(history: RunHistory) -> Table | None:
    """Answers of the first and the last model to the same prompts, those first whose verdict changed."""
    scores = named_scores(history)
    if not scores:
        return None
    first, last = scores[0], scores[-1]
    pairs = list(zip(first[1].answers, last[1].answers, strict=True))
    pairs.sort(key=lambda pair: _marks(pair[0]) == _marks(pair[1]))
    rows = [(old.ask, _shown(old), _shown(new)) for old, new in pairs]
    return table(("prompt", first[0], last[0]), rows, left=(0, 1, 2), name="answers", what="answers", fold=SHOWN)


def _marks(answer: ChatAnswer) -> list[str]:
    """Rules that an answer breaks."""
    return [title for rule, title in RULES.items() if getattr(answer, rule) is False]


def _shown(answer: ChatAnswer) -> str:
    broken = ", ".join(f"not: {title}" for title in _marks(answer))
    return f"{answer.text or '(nothing)'}{broken and f'  ✗ {broken}'}"
