"""Targets of memory blocks, written once at the start of a stage that reads each of them more than once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from transformers import PreTrainedModel

from lifelong import distributed
from lifelong.files import read_json, write_json
from lifelong.inherit.cache import CacheSettings, CacheWriter, TargetCache, fill_cache
from lifelong.inherit.sparse import TauSampler, scheme_to_json
from lifelong.inherit.teachers.memory import Visits, tau_of, visits
from lifelong.inherit.teachers.model import OnlineTeacher
from lifelong.inherit.write_cache import block_probabilities
from lifelong.lm.checkpoint import to_accelerator
from lifelong.lm.flops import forward_flops_per_token
from lifelong.pipeline.phases.phase import Phase, PlannedTokens
from lifelong.pipeline.stage import Stage
from lifelong.recipe.recipe import Recipe
from lifelong.records import Cost
from lifelong.replay.generate import PASS_TOKENS, frozen
from lifelong.replay.memory import ReplayMemory
from lifelong.stream.blocks import Block
from lifelong.stream.collator import PackedRow


class Targets(Phase):
    """What the previous model says of kept blocks, and of generated ones whose targets are of another kind."""

    name = "targets"

    def applies(self, stage: Stage) -> bool:
        """Whether anything has to be written."""
        return needs_targets(stage.recipe) and stage.has_learned and bool(_to_write(stage))

    def run(self, stage: Stage, model: PreTrainedModel) -> PreTrainedModel:
        """Write what an earlier call has not written."""
        if not stage.has(stage.work.seconds(self.name)):
            distributed.run_on_main_process(lambda: _write(stage, model))
        return model

    def cost(self, stage: Stage, model: PreTrainedModel) -> Iterator[tuple[str, Cost]]:
        """One pass of the previous model."""
        del model
        path = stage.work.seconds(self.name)
        if path.exists():
            facts = read_json(path)
            yield self.name, Cost(0, facts["flops"], facts["flops"], facts["seconds"])

    def planned_before(self, recipe: Recipe, index: int, config: Any) -> PlannedTokens:
        """The memory, where that is cheaper than a teacher at every visit."""
        del config
        kept, _ = planned_memory(recipe, index)
        stores = needs_targets(recipe) and planned_visits(recipe, index).stores_kept
        return PlannedTokens(targeted=round(sum(kept.values())) if stores else 0)


def needs_targets(recipe: Recipe) -> bool:
    """Whether a teacher reads targets of the memory."""
    inherit = recipe.inherit
    return inherit is not None and inherit.alpha > 0 and inherit.teacher.reads_memory()


def planned_memory(recipe: Recipe, index: int) -> tuple[dict[str, float], float]:
    """Tokens that stage `index` finds in the memory: of text that was kept, by domain, and self-generated."""
    replay, kept = recipe.replay, dict[str, float]()
    if replay is None:
        return {}, 0.0
    for name, tokens in [*(replay.proxy or {}).items(), *((s.domain, s.tokens) for s in recipe.stages[:index])]:
        kept[Path(name).stem] = kept.get(Path(name).stem, 0.0) + tokens
    scale = min(1.0, replay.memory_tokens / max(1.0, sum(kept.values())))
    learned = index > 0 or recipe.model.checkpoint is not None
    generated = float(replay.generate.tokens) if replay.generate is not None and learned else 0.0
    return {name: tokens * scale for name, tokens in kept.items() if scale}, generated


def planned_visits(recipe: Recipe, index: int) -> Visits:
    """Visits of stage `index`, as far as a recipe can tell."""
    assert recipe.inherit is not None, "asked for only with a teacher"
    share = recipe.replay.share if recipe.replay is not None else 0.0
    return visits(recipe.inherit, share * recipe.stages[index].tokens, *planned_memory(recipe, index))


def stage_visits(stage: Stage, generated: int | None = None) -> Visits:
    """Visits of a stage; `generated` tokens are still to be written."""
    replay, inherit = stage.recipe.replay, stage.recipe.inherit
    assert replay is not None, "there is a memory"
    assert inherit is not None, "there is a teacher"
    kept = _kept(stage)
    tokens = {name: float(kept.tokens_of(name)) for name in kept.domains} if kept is not None else {}
    written = sum(ReplayMemory.open(folder).num_tokens for folder in stage.generations) + (generated or 0)
    return visits(inherit, replay.share * stage.section.tokens, tokens, written)


def _kept(stage: Stage) -> ReplayMemory | None:
    folder = stage.kept_memory
    return ReplayMemory.open(folder) if folder is not None else None


def stored_targets(stage: Stage) -> list[Path]:
    """Caches of targets of what the stage may replay."""
    if not needs_targets(stage.recipe) or not stage.has_learned:
        return []
    own = [stage.work.targets] if (stage.work.targets / "manifest.json").is_file() else []
    return own + [folder / "targets" for folder in stage.generations if _usable(stage, folder)]


def unstored_domains(stage: Stage) -> list[str]:
    """Domains of the memory whose targets are in none of these caches: they are read too seldom."""
    kept = _kept(stage) if needs_targets(stage.recipe) and stage.has_learned else None
    return list(kept.domains) if kept is not None and not stage_visits(stage).stores_kept else []


def _usable(stage: Stage, folder: Path) -> bool:
    """Whether the targets of a generation are of the kind that the recipe asks for now."""
    assert stage.recipe.inherit is not None, "there is a teacher"
    if not (folder / "targets").is_dir():
        return False
    settings = TargetCache(folder / "targets").settings
    return settings.temperature == stage.recipe.inherit.temperature


def _to_write(stage: Stage) -> list[ReplayMemory]:
    kept, visited = _kept(stage), stage_visits(stage)
    others = [ReplayMemory.open(folder) for folder in stage.generations if not _usable(stage, folder)]
    return [*([kept] if kept is not None and kept.domains and visited.stores_kept else []), *others]


def _write(stage: Stage, model: PreTrainedModel) -> None:
    recipe, context = stage.recipe, stage.context
    assert recipe.inherit is not None, "there is a teacher"
    memories, started, temperature = _to_write(stage), monotonic(), recipe.inherit.temperature
    vocab_size = min(len(context.tokenizer), model.config.vocab_size)
    visited = stage_visits(stage)
    writer = CacheWriter(
        stage.work.targets,
        CacheSettings(
            scheme=scheme_to_json(TauSampler(tau_of(max(visited.kept, visited.generated)))),
            temperature=temperature,
            vocab_size=vocab_size,
            tokenizer=context.tokenizer_fingerprint,
            teacher=stage.previous.fingerprints["model"],
            objective=recipe.objective,
            sequence_length=recipe.sequence_length,
            corpora={name: "memory" for memory in memories for name in memory.domains},
        ),
    )
    total = sum(memory.num_tokens for memory in memories)
    context.observer.phase_started(Targets.name, total)
    if not recipe.train.get("use_cpu"):
        to_accelerator(model)
    with frozen(model):
        teacher = OnlineTeacher(model, recipe.objective, vocab_size=vocab_size)
        if not writer.complete:
            fill_cache(
                writer,
                _batches(stage, memories, model.get_input_embeddings().weight.device),
                lambda batch: block_probabilities(teacher, batch, temperature),
                lambda _, tokens: context.observer.advanced(Targets.name, min(tokens, total), total),
            )
    flops = total * forward_flops_per_token(model, recipe.sequence_length)
    write_json(stage.work.seconds(Targets.name), {"flops": flops, "seconds": monotonic() - started})


def _batches(stage: Stage, memories: list[ReplayMemory], device: Any) -> Iterator[Mapping[str, Any]]:
    """All blocks, domain after domain."""
    length = stage.recipe.sequence_length
    collator, size, pending = stage.context.collator(stage.seed), max(1, PASS_TOKENS // length), list[Block]()

    def batch() -> Mapping[str, Any]:
        rows = [PackedRow(block=block, domain_id=0, is_replay=True, mask_key=0) for block in pending]
        pending.clear()
        return {name: value.to(device) for name, value in collator(rows).items()}

    for memory in memories:
        for name in memory.domains:
            blocks = memory.blocks(name)
            for number in range(len(blocks)):
                pending.append(blocks[number])
                if len(pending) == size:
                    yield batch()
    if pending:
        yield batch()
