"""Facts of a run: which ones, where they are injected, and in which stages they are probed."""

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
from lifelong.evaluate.facts.settings import FactsSection
from lifelong.records import FactPoint


@dataclass
class StageFacts:
    """The facts as one stage meets them.

    Args:
        section: of the recipe.
        facts: of the run.
        injects: this stage is the one that learns them.
        tokenizer: what reads the domain whose text holds the facts, also where they are asked for later.
        objective: clm or mlm.
        sequence_length: of the run.
        pad_id: of the run.
        mask_id: of the run; None where nothing is masked.
    """

    section: FactsSection
    facts: Sequence[Fact]
    injects: bool
    tokenizer: Any
    objective: str
    sequence_length: int
    pad_id: int
    mask_id: int | None

    def injected(self, dataset: Any) -> Any:
        """The stage's rows with the facts among them; as they are in every later stage."""
        if not self.injects:
            return dataset
        blocks = fact_blocks(self.facts, self.tokenizer, self.sequence_length, self.section.repeats)
        return InjectedDataset(dataset, dict.fromkeys(injection_steps(self.section.at, dataset.num_steps), blocks))

    def probe(self, model: Any, num_steps: int) -> Callable[[int, int], Sequence[FactPoint]]:
        """Log-probabilities where they are due, for the trainer."""
        at = injection_steps(self.section.at, num_steps) if self.injects else []
        due = set(fact_steps(at, num_steps, self.section.probes))
        ask = FactProbe(self.facts, self.tokenizer, self.objective, self.pad_id, self.mask_id)

        def probe(step: int, tokens: int) -> Sequence[FactPoint]:
            if step not in due:
                return ()
            return [FactPoint(step, tokens, number, value) for number, value in enumerate(ask(model))]

        return probe

    def to_json(self, points: Sequence[FactPoint], tokens: int) -> dict[str, Any]:
        """Entry of a stage of `tokens` trained tokens in `history.json`."""
        steps = max((point.step for point in points), default=0)
        per_step = tokens // steps if steps else 0
        at = [step * per_step for step in injection_steps(self.section.at, steps)] if self.injects and steps else []
        return {
            "facts": [asdict(fact) for fact in self.facts],
            "injected_at": at,
            "points": [asdict(point) for point in points],
        }


def facts_of(section: FactsSection, seed: int) -> list[Fact]:
    """The facts that a recipe names, or invents."""
    return read_facts(Path(section.file)) if section.file else list(invented_facts(section.count, seed))
