"""The instruction residual of a base, added to what a run made of that base.

A run starts from a base B and ends with W, at its size or a larger one. What tuning on instructions added to the same
base, I - B, is carried to W's size by the maps E that grew it: W + E(I) - E(B). A growth is exact, so that without any
training after it the sum computes what I computed.

Source: Jindal et al. 2024, Balancing continuous pre-training and instruction fine-tuning (arXiv 2410.10739), for
models of one size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.errors import InputError
from lifelong.evaluate.cards import EvaluationSettings, evaluate_heldouts, run_heldouts
from lifelong.evaluate.chat import answer_prompts, check_template
from lifelong.evaluate.source import find_source
from lifelong.expand import ExpansionMap, model_shape
from lifelong.files import atomic_directory, write_json
from lifelong.ledger.folder import INITIAL, RunFolder
from lifelong.ledger.history import read_history
from lifelong.ledger.ledger import committed_stages, read_records, record_hash
from lifelong.lineage.maps import carry_weights, maps_since
from lifelong.lineage.merge import check_new, weights_of
from lifelong.lm.checkpoint import (
    as_stored,
    cast_weights,
    load_config,
    load_model,
    save_model,
    to_accelerator,
    weights_fingerprint,
)
from lifelong.records import ChatScores
from lifelong.stream.tokenizers.load import load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

MERGED, INSTRUCT = "merged", "instruct"
SHOWN = 3


@dataclass(frozen=True)
class ResidualMerge:
    """Figures beside each other: model -> nats per token by domain, and model -> answers to the chat prompts."""

    stage: str
    text: Mapping[str, Mapping[str, float]]
    chat: Mapping[str, ChatScores]
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; of the answers their rates."""
        rates = {name: scores.rates for name, scores in self.chat.items()}
        return {"stage": self.stage, "nats_per_token": dict(self.text), "chat": rates, "notes": list(self.notes)}


def residual_weights(
    newest: Mapping[str, Tensor],
    instruct: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    maps: Sequence[ExpansionMap],
) -> dict[str, Tensor]:
    """`newest` with what `instruct` adds to `base`, by parameter name.

    Args:
        newest: at the size after the last map.
        instruct: at the size before the first one, as `base`.
        base: what both came from.
        maps: of all growths between, oldest first; new entries are drawn alike for both and cancel.
    """
    tuned, plain = carry_weights(maps, instruct), carry_weights(maps, base)
    # exactly the grown `instruct` where nothing was trained
    return {name: tuned[name] + (value - plain[name]) for name, value in newest.items()}


def merge_residual(run: Path, recipe: Mapping[str, Any], instruct: str, base: str | None, out: Path) -> ResidualMerge:
    """Write the newest model of a run with the instruction residual, and measure it on text and chat prompts.

    `merge.json` beside the weights says where they come from. The checkpoint has the tokenizer, the chat template and
    the generation settings of `instruct`.

    Args:
        run: the run folder.
        recipe: its recipe in plain values.
        instruct: checkpoint that was tuned on instructions.
        base: checkpoint from which both it and the run started; that of the recipe where absent.
        out: a new folder.

    Raises:
        InputError: shapes or vocabularies do not match (names what differs), the template does not render, the run
            started from random weights, or `out` exists.
    """
    check_new(out)
    base = base or recipe["model"].get("checkpoint")
    if base is None:
        raise InputError("merge --residual: the run started from random weights; name the base with --base")
    record = committed_stages(run)[-1]
    tokenizer = load_tokenizer(instruct)
    _require_same(run, instruct, base, tokenizer)
    if tokenizer.chat_template:
        check_template(tokenizer)
    model, notes = _merged(run, recipe, instruct, base)
    origin = {
        "run": recipe["name"], "stage": record.name, "record": record_hash(record), "residual": instruct, "base": base,
    }  # fmt: skip
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(out) as partial:
            save_model(as_stored(model, RunFolder(run).model(record.name)), tokenizer, partial)
            cast_weights(model, "float32")
            write_json(partial / "merge.json", origin)
    except OSError as error:
        raise InputError(f"{str(out)!r} cannot be written: {error.strerror}") from None
    return _figures(run, model, instruct, tokenizer, notes)


def _merged(run: Path, recipe: Mapping[str, Any], instruct: str, base: str) -> tuple[Any, tuple[str, ...]]:
    import torch

    objective, records = str(recipe.get("objective", "clm")), read_records(run)
    model = load_model(RunFolder(run).model(records[-1].name), objective)
    tuned, plain = load_model(instruct, objective), load_model(base, objective)
    newest = weights_of(model)
    weights = residual_weights(newest, weights_of(tuned), weights_of(plain), maps_since(run, INITIAL))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    model.tie_weights()
    model.generation_config = tuned.generation_config
    if weights_fingerprint(plain) == records[0].fingerprints.get("model"):
        return model, ()
    return model, (f"the run did not start from the weights of {base!r}; the residual is added all the same",)


def _require_same(run: Path, instruct: str, base: str, tokenizer: Any) -> None:
    """Shapes of the three models, and the ids of every token.

    Raises:
        InputError: names all that differs.
    """
    configs = {name: load_config(name) for name in (instruct, base)}
    lines = list(_differences(_facts(configs[instruct]), _facts(configs[base]), instruct, base))
    lines += _differences(read_records(run)[0].shape, model_shape(configs[base]), str(run), base)
    own = load_tokenizer(RunFolder(run).initial.tokenizer).get_vocab()
    other = tokenizer.get_vocab()
    moved = [token for token in sorted(own, key=own.__getitem__) if other.get(token) != own[token]]
    if moved:
        shown = ", ".join(f"{token!r} {own[token]} and {other.get(token, 'not there')}" for token in moved[:SHOWN])
        lines.append(f"vocabulary: {len(moved)} tokens have other ids in {str(run)!r} and {instruct!r}: {shown}")
    if lines:
        raise InputError("merge --residual: these models do not fit together\n  " + "\n  ".join(lines))


def _facts(config: Any) -> dict[str, Any]:
    return {
        "model_type": config.model_type, **model_shape(config),
        "tie_word_embeddings": bool(getattr(config, "tie_word_embeddings", False)),
    }  # fmt: skip


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], first: str, second: str) -> Iterator[str]:
    for name, value in one.items():
        if other.get(name) != value:
            yield f"{name}: {value} in {first!r}, {other.get(name, 'none')} in {second!r}"


def _figures(run: Path, model: Any, instruct: str, tokenizer: Any, notes: tuple[str, ...]) -> ResidualMerge:
    """The merged model and the newest one on the run's held-out text; these two and `instruct` on the chat prompts."""
    source, history = find_source(run), read_history(run)
    settings = EvaluationSettings.of(source, None, None, None, None)
    own_tokenizer = load_tokenizer(source.tokenizer)
    if not source.use_cpu:
        to_accelerator(model)
    newest = history.matrix.stages[-1]
    losses = evaluate_heldouts(model, list(run_heldouts(source).values()), own_tokenizer, settings)
    text = {
        newest: {loss.domain: loss.nats_per_token for loss in history.losses[-1]},
        MERGED: {loss.domain: loss.nats_per_token for loss in losses},
    }
    stage = len(history.stages) - 1
    chat: dict[str, ChatScores] = {}
    chat.update((newest, scores) for scores in history.chat if scores.stage == stage)
    if tokenizer.chat_template:
        tuned = load_model(instruct, settings.objective)
        if not source.use_cpu:
            to_accelerator(tuned)
        chat = {INSTRUCT: answer_prompts(tuned, tokenizer, stage=-1), **chat}
        chat[MERGED] = answer_prompts(model, tokenizer, stage=stage)
    else:
        notes = (*notes, f"{instruct!r} has no chat template: its answers were not measured")
    return ResidualMerge(newest, text, chat, notes)
