"""Public text in the memory, before the first stage, in place of text that nobody has any more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from lifelong import distributed
from lifelong.files import atomic_directory, remove_tree
from lifelong.pipeline.phases.phase import Phase
from lifelong.pipeline.phases.prepare import corpus_for
from lifelong.pipeline.stage import Stage
from lifelong.replay.memory import ReplayMemory, write_memory_snapshot
from lifelong.stream.blocks import StoredBlocks
from lifelong.stream.cards.domain import Domain, load_domain


class Proxy(Phase):
    """The memory with tokens of the cards of `replay.proxy` that it does not hold yet."""

    name = "proxy"

    def applies(self, stage: Stage) -> bool:
        """Whether a card is named that is not in the memory."""
        return bool(stage.work.proxied.path.exists() or _missing(stage))

    def run(self, stage: Stage, model: PreTrainedModel) -> PreTrainedModel:
        """Draw blocks of every card that is missing."""
        stage.context.observer.phase_started(self.name, 0)
        missing = distributed.run_on_main_process(lambda: _missing(stage))
        # a corpus is tokenised by the first process, and all of them have to come
        stores = [(domain, tokens, corpus_for(stage, domain, tokens)) for domain, tokens in missing]
        distributed.run_on_main_process(lambda: _write(stage, stores) if stores else None)
        return model


def _missing(stage: Stage) -> list[tuple[Domain, int]]:
    """Domains and their tokens; cards of those that are there may be gone."""
    replay = stage.recipe.replay
    if replay is None or not replay.proxy or stage.work.proxied.path.exists():
        return []
    kept = stage.kept_memory
    known = (
        {item.domain for item in ReplayMemory.open(kept).experiences if item.stage < 0} if kept is not None else set()
    )
    named = {card: tokens for card, tokens in replay.proxy.items() if Path(card).stem not in known}
    domains = [(load_domain(card), tokens) for card, tokens in named.items()]
    return [(domain, tokens) for domain, tokens in domains if domain.name not in known]


def _write(stage: Stage, stores: Sequence[tuple[Domain, int, StoredBlocks]]) -> None:
    replay, kept, out = stage.recipe.replay, stage.kept_memory, stage.work.proxied.path
    assert replay is not None, "a card is named there"
    before = ReplayMemory.open(kept).experiences if kept is not None else ()
    first = min([0, *(item.stage for item in before)]) - 1
    steps = out.with_name("proxied-one-by-one")
    remove_tree(steps)
    with atomic_directory(out) as partial:
        for number, (domain, tokens, blocks) in enumerate(stores):
            target = partial if number + 1 == len(stores) else steps / str(number)
            write_memory_snapshot(
                kept,
                domain.name,
                blocks,
                capacity_tokens=replay.memory_tokens,
                # a stand-in is no stage whose blocks could be ranked
                policy="domain-balanced" if replay.policy == "loss-ranked" else replay.policy,
                seed=stage.recipe.seed,
                out=target,
                stage=first - number,
                most_tokens=tokens,
            )
            kept = target
    remove_tree(steps)
