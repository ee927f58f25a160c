"""Text that the previous model writes at the start of a stage, to be replayed where no old text is left."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lifelong import distributed
from lifelong.files import atomic_directory, read_json, remove_tree, write_json
from lifelong.inherit.cache import CacheSettings, CacheWriter, block_keys
from lifelong.inherit.sparse import TauSampler, scheme_to_json
from lifelong.inherit.teachers.memory import tau_of
from lifelong.lm.checkpoint import to_accelerator
from lifelong.lm.flops import forward_flops_per_token
from lifelong.pipeline.phases.phase import Phase, PlannedTokens
from lifelong.pipeline.phases.targets import needs_targets, stage_visits
from lifelong.pipeline.stage import Stage
from lifelong.recipe.recipe import Recipe
from lifelong.records import Cost
from lifelong.replay.generate import (
    Round,
    StreamShape,
    Writing,
    check_writer,
    end_ids,
    start_ids,
    stream_shape,
    write_round,
)
from lifelong.replay.memory import write_memory_snapshot
from lifelong.replay.settings import SELF_GENERATED
from lifelong.stream.blocks import write_blocks
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.collator import PackedRow
from lifelong.stream.ordering import key_of

SAMPLES, SAMPLE_TOKENS = 4, 48


class Generate(Phase):
    """Streams of the previous model, cut into blocks; with their targets where a teacher asks for them."""

    name = "generate"

    def applies(self, stage: Stage) -> bool:
        """Whether a model that has learned something is asked to write."""
        return stage.recipe.replay is not None and stage.recipe.replay.generate is not None and stage.has_learned

    def run(self, stage: Stage, model: PreTrainedModel) -> PreTrainedModel:
        """Write, round by round, what an earlier call has not written."""
        if stage.has(stage.work.generated.path):
            return model
        writing, collator = _writing(stage, model), stage.context.collator(stage.seed)
        if not stage.recipe.train.get("use_cpu"):
            to_accelerator(model)
        check_writer(model)
        shape, observer = writing.shape, stage.context.observer
        observer.phase_started(self.name, shape.tokens)
        done = 0

        def tell(tokens: int) -> None:
            nonlocal done
            done += tokens
            observer.advanced(self.name, min(done, shape.tokens), shape.tokens)

        for number, counts in distributed.turns(shape.rounds):
            path = stage.work.written(number)
            if counts and not path.exists():
                write_round(model, writing, number, collator, lambda new: tell(new * distributed.world_size())).save(
                    path
                )
            elif counts:
                tell(len(writing.streams_of(number)) * shape.length)
        distributed.barrier()
        distributed.run_on_main_process(lambda: _assemble(stage, model, writing, collator))
        return model

    def facts(self, stage: Stage) -> dict[str, Any]:
        """By which model the text was written, and how; with samples of it."""
        folder = stage.work.generated.path
        if not folder.is_dir():
            return {}
        facts = read_json(folder / "generated.json")
        return {
            "generated": {key: value for key, value in facts.items() if key not in ("seconds", "flops", "pass_flops")}
        }

    def cost(self, stage: Stage, model: PreTrainedModel) -> Iterator[tuple[str, Cost]]:
        """Every token that was written, once; and the pass over blocks that a cut goes through."""
        del model
        path = stage.work.generated.path / "generated.json"
        if path.is_file():
            facts = read_json(path)
            yield self.name, Cost(0, facts["flops"] + facts["pass_flops"], facts["pass_flops"], facts["seconds"])

    def planned_before(self, recipe: Recipe, index: int, config: Any) -> PlannedTokens:
        """All streams, and the pass."""
        if recipe.replay is None or (section := recipe.replay.generate) is None:
            return PlannedTokens()
        first = 0 if recipe.model.checkpoint is not None else 1
        if index < first:
            return PlannedTokens()
        shape = stream_shape(section, config, recipe.sequence_length, index - first if section.keeps_all else 0)
        passed = shape.cut_blocks * shape.sequence_length if needs_targets(recipe) else 0
        return PlannedTokens(generated=shape.tokens, stream_length=shape.length, targeted=passed)


def _writing(stage: Stage, model: PreTrainedModel) -> Writing:
    replay, inherit, context = stage.recipe.replay, stage.recipe.inherit, stage.context
    assert replay is not None, "applies only with the section"
    assert replay.generate is not None, "applies only with the section"
    section, tokenizer, length = replay.generate, context.tokenizer, stage.recipe.sequence_length
    shape = stream_shape(section, model.config, length, len(stage.generations) if section.keeps_all else 0)
    domain = None if section.start is None else load_domain(section.start)
    scheme = None
    if inherit is not None and needs_targets(stage.recipe):
        scheme = TauSampler(tau_of(stage_visits(stage, shape.blocks * length).generated))
    return Writing(
        shape,
        section,
        seed=key_of(stage.recipe.seed, "generate", stage.index),
        starts=start_ids(tokenizer, section, domain, length),
        end_ids=end_ids(tokenizer, model),
        vocab_size=min(len(tokenizer), model.config.vocab_size),
        scheme=scheme,
        target_temperature=1.0 if inherit is None else inherit.temperature,
    )


def _rounds(stage: Stage, shape: StreamShape) -> Iterator[Round]:
    return (Round.load(stage.work.written(number)) for number in range(shape.rounds))


def _assemble(stage: Stage, model: PreTrainedModel, writing: Writing, collator: Any) -> None:
    """One memory of all rounds, its targets, and what is known about it."""
    shape, length = writing.shape, writing.shape.sequence_length
    store = write_blocks(stage.work.path / "written" / "blocks.arrow", _blocks(stage, shape), writing.vocab_size)
    digest = hashlib.sha256()
    for block in store:
        digest.update(block.ids.tobytes())
    text, documents, seconds = digest.hexdigest(), 0, 0.0
    for made in _rounds(stage, shape):
        documents, seconds = documents + int(made.starts_BL.sum()), seconds + made.seconds
    with atomic_directory(stage.work.generated.path) as partial:
        write_memory_snapshot(
            None,
            SELF_GENERATED,
            store,
            capacity_tokens=store.num_tokens,
            policy="reservoir",
            seed=stage.recipe.seed,
            out=partial,
            stage=stage.index,
        )
        if writing.scheme is not None:
            _write_targets(stage, writing, collator, partial / "targets", text)
        passed = shape.cut_blocks * length if writing.scheme is not None else 0
        write_json(
            partial / "generated.json",
            {
                **_origin(stage, writing),
                "tokens": store.num_tokens,
                "documents": documents,
                "streams": shape.streams,
                "length": shape.length,
                "batch_size": shape.batch_size,
                "blocks": shape.blocks,
                "blocks_with_targets_of_a_pass": passed // length,
                "text": text,
                "samples": _samples(stage),
                "flops": shape.tokens * forward_flops_per_token(model, shape.length),
                "pass_flops": passed * forward_flops_per_token(model, length),
                "seconds": seconds,
            },
        )
    remove_tree(stage.work.path / "written")


def _origin(stage: Stage, writing: Writing) -> dict[str, Any]:
    section = writing.section
    start = None if section.start is None else load_domain(section.start).name
    return {
        "written_by": stage.previous.name,
        "model": stage.previous.fingerprints["model"],
        "seed": stage.recipe.seed,
        "temperature": section.temperature,
        **{key: value for key in ("top_k", "top_p") if (value := getattr(section, key)) is not None},
        "start": start,
        **({"start_tokens": section.start_tokens} if start is not None else {}),
        "targets": None if writing.scheme is None else scheme_to_json(writing.scheme),
    }


def _blocks(stage: Stage, shape: StreamShape) -> Iterator[Any]:
    """All blocks that were asked for; the last stream may have some more."""
    count = 0
    for made in _rounds(stage, shape):
        for block in made.blocks(shape.sequence_length):
            if count < shape.blocks:
                yield block
            count += 1


def _write_targets(stage: Stage, writing: Writing, collator: Any, folder: Path, text: str) -> None:
    assert writing.scheme is not None, "asked for only with a scheme"
    settings = CacheSettings(
        scheme=scheme_to_json(writing.scheme),
        temperature=writing.target_temperature,
        vocab_size=writing.vocab_size,
        tokenizer=stage.context.tokenizer_fingerprint,
        teacher=stage.previous.fingerprints["model"],
        objective=stage.recipe.objective,
        sequence_length=stage.recipe.sequence_length,
        corpora={SELF_GENERATED: text},
    )
    writer = CacheWriter(folder, settings)
    seen: set[bytes] = set()
    for made in _rounds(stage, writing.shape):
        blocks = list(made.blocks(writing.shape.sequence_length))
        rows = [PackedRow(block=block, domain_id=0, is_replay=True, mask_key=0) for block in blocks]
        for key, targets in zip(block_keys(collator(rows)), made.targets, strict=True):
            writer.add(key, None if key in seen else targets)
            seen.add(key)
    writer.finish()


def _samples(stage: Stage) -> list[str]:
    """Beginnings of the first streams."""
    first = Round.load(stage.work.written(0)).ids_BL[:SAMPLES, :SAMPLE_TOKENS]
    return [str(stage.context.tokenizer.decode(ids.tolist(), skip_special_tokens=True)) for ids in first]
