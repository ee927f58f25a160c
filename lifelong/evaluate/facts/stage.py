"""Facts of a run: which ones, where they are put in, and who asks for them in which stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lifelong.evaluate.facts.injection import (
    Fact,
    InjectedDataset,
    fact_blocks,
    injection_steps,
    invented_facts,
    read_facts,
)
from lifelong.evaluate.facts.probe import FactProbe, fact_steps
from lifelong.files import read_json
from lifelong.lm.objective import pad_id
from lifelong.pipeline.run import RunContext
from lifelong.records import FactPoint
from lifelong.stream.cards.domain import load_domain
from lifelong.train.phase import PhaseCurve


@dataclass
class StageFacts:
    """The facts as one stage meets them; `injects` where it is the one that learns them."""

    context: RunContext
    facts: Sequence[Fact]
    injects: bool
    domain: str

    @property
    def tokenizer(self) -> Any:
        """What reads the domain whose text holds the facts, also where they are asked for later."""
        return self.context.tokenizer_of(self.domain)

    def injected(self, dataset: Any) -> Any:
        """The stage's rows with the facts among them; as they are in every later stage."""
        section = self.context.recipe.facts
        if not self.injects or section is None:
            return dataset
        recipe = self.context.recipe
        blocks = fact_blocks(self.facts, self.tokenizer, recipe.sequence_length, section.repeats)
        return InjectedDataset(dataset, dict.fromkeys(injection_steps(section.at, dataset.num_steps), blocks))

    def probe(self, model: Any, num_steps: int) -> Callable[[int, int], Sequence[FactPoint]]:
        """Log-probabilities where they are due, for the trainer."""
        section = self.context.recipe.facts
        assert section is not None, "facts belong to a recipe that names them"
        at = injection_steps(section.at, num_steps) if self.injects else []
        due = set(fact_steps(at, num_steps, section.probes))
        ask = FactProbe(
            self.facts, self.tokenizer, self.context.recipe.objective, pad_id(self.context.tokenizer),
            self.context.mask_id,
        )  # fmt: skip

        def probe(step: int, tokens: int) -> Sequence[FactPoint]:
            if step not in due:
                return ()
            return [FactPoint(step, tokens, number, value) for number, value in enumerate(ask(model))]

        return probe


def stage_facts(context: RunContext, index: int) -> StageFacts | None:
    """The facts of a stage; None before they are put in, and in a run without any."""
    section = context.recipe.facts
    if section is None or index < section.stage:
        return None
    if index == section.stage:
        found = read_facts(Path(section.file)) if section.file else invented_facts(section.count, context.recipe.seed)
        return StageFacts(context, found, injects=True, domain=load_domain(context.recipe.stages[index].domain).name)
    first = context.ledger.stages[section.stage]
    kept = read_json(context.ledger.folder.stage(first.name).history).get("facts")
    if not kept:  # the recipe was given facts after that stage: they were never put in
        return None
    return StageFacts(context, [Fact(**fact) for fact in kept["facts"]], injects=False, domain=first.domain)


def stage_facts_json(context: RunContext, index: int, curves: Sequence[PhaseCurve]) -> dict[str, Any] | None:
    """What a stage keeps of its facts in `history.json`."""
    found = stage_facts(context, index)
    section = context.recipe.facts
    if found is None or section is None:
        return None
    curve = curves[-1]
    steps = max((point.step for point in curve.facts), default=0)
    per_step = curve.tokens // steps if steps else 0
    at = [step * per_step for step in injection_steps(section.at, steps)] if found.injects and steps else []
    return {
        "facts": [asdict(fact) for fact in found.facts],
        "injected_at": at,
        "points": [asdict(point) for point in curve.facts],
    }
