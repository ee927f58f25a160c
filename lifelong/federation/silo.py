"""The side of a federation that holds the text: local steps from given weights, and held-out losses of given weights.

A silo is one domain of a recipe, its own card and its own folder. Rounds are parts of one walk through its corpus:
the position is committed with each round, so that a silo that died continues with text that no finished round has used,
under the learning rate of the round that it comes back to.

    SILO/recipe.yaml     the recipe that the folder belongs to
    SILO/heldout/NAME/   held-out documents
    SILO/state/NNNNNNNN/ after so many local steps: state.json, moments.safetensors, model/ (what was sent last)
    SILO/outbox.jsonl    one line for everything that was handed out, with its hash
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from lifelong.errors import InputError
from lifelong.evaluate.perplexity import evaluate_domain
from lifelong.federation.flower import DisagreementError, Figures, Settings, Weights
from lifelong.files import atomic_directory, read_json, remove_tree, write_json, write_text
from lifelong.ledger.folder import RunFolder, StageFolder
from lifelong.ledger.lock import hold
from lifelong.lm.checkpoint import load_config, save_model
from lifelong.lm.objective import objective_of, pad_id
from lifelong.methods._method import Method
from lifelong.recipe.fresh import fresh_config
from lifelong.recipe.recipe import Recipe
from lifelong.replay.dataset import StageDataset
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.collator import Collator, PackedRow
from lifelong.stream.heldout import Heldout, write_heldout
from lifelong.stream.tokenize import tokenize_domain
from lifelong.stream.tokenizers.load import load_tokenizer, tokenizer_fingerprint
from lifelong.train.arguments import blocks_per_step, training_arguments
from lifelong.train.learning_rates import stage_lr_factor, stage_span
from lifelong.train.phase import TrainingInputs
from lifelong.train.stage_trainer import run_training_phase


@dataclass(frozen=True)
class Order:
    """Instructions of the server to a silo, sent with the weights.

    Attributes:
        number: of the round, from 1; 0 before the first.
        rounds: of the whole federation.
        local_steps: optimizer steps of a round.
        tokenizer: fingerprint of the federation's tokenizer.
        keep_moments: whether the optimizer's moments stay from round to round, in the silo.
    """

    number: int
    rounds: int
    local_steps: int
    tokenizer: str
    keep_moments: bool = True

    @classmethod
    def of(cls, settings: Settings) -> Order:
        """Read the instructions that came with the weights."""
        return cls(
            number=int(settings["server-round"]) + int(settings.get("rounds-before", 0)),
            rounds=int(settings["rounds"]),
            local_steps=int(settings["local-steps"]),
            tokenizer=str(settings["tokenizer"]),
            keep_moments=str(settings["moments"]) == "keep",
        )


def silo_domains(recipe: Recipe) -> list[str]:
    """Names of the domains of a federation, in the recipe's order."""
    stage = recipe.stages[0]
    return [Path(card).stem for card in stage.cards]


def check_federated(recipe: Recipe) -> None:
    """Refuse what a federation cannot do, all at once.

    Raises:
        InputError: one line for every key.
    """
    lines = []
    if len(recipe.stages) != 1:
        lines.append(
            f"stages: a federation is one stage of all domains (domain, together_with), not {len(recipe.stages)}"
        )
    if recipe.tokenizer is not None and recipe.tokenizer.train is not None:
        lines.append("tokenizer.train: would need the text of all silos in one place; name a checkpoint that all have")
    if recipe.tokenizer is not None and recipe.tokenizer.merge is not None:
        lines.append("tokenizer.merge: all silos read with one tokenizer; name a checkpoint that all have")
    stage = recipe.stages[0]
    if stage.shares is not None:
        lines.append("stages[0].together_with: every silo trains as much as the others; write a list, without shares")
    asked = {
        "stages[0].expand": stage.expand, "stages[0].select": stage.select, "inherit": recipe.inherit,
        "replay": recipe.replay, "recover": recipe.recover, "methods": recipe.methods, "budget": recipe.budget,
        "facts": recipe.facts, "lr.average": recipe.lr and recipe.lr.average,
        "carry_optimizer": recipe.carry_optimizer,
    }  # fmt: skip
    lines += [f"{key}: is not part of a federated stage; take it out" for key, value in asked.items() if value]
    if lines:
        raise InputError(f"recipe {recipe.name}: cannot be federated\n  " + "\n  ".join(lines))


class FederatedSilo:
    """One domain of a federation; see the module.

    Args:
        recipe: the federation's, as this silo has it.
        card: name or path of its own domain card.
        out: its folder, created where needed.

    Raises:
        InputError: the card is not one of the recipe's domains, or the folder belongs to another recipe.
    """

    def __init__(self, recipe: Recipe, card: str, out: Path) -> None:
        check_federated(recipe)
        self.recipe, self.out, self.card = recipe, out, load_domain(card)
        self.folder = RunFolder(out)  # no run, but what both have has the same name
        if self.card.name not in (names := silo_domains(recipe)):
            raise InputError(f"silo: domain {self.card.name!r} is not one of the federation's: {', '.join(names)}")
        source = recipe.tokenizer.checkpoint if recipe.tokenizer is not None else recipe.model.checkpoint
        self.tokenizer = load_tokenizer(str(source), revision=recipe.revision_of(source))
        self.collator = Collator.for_tokenizer(self.tokenizer, recipe.objective, recipe.sequence_length, self._seed)

    @property
    def domain(self) -> str:
        """Name of its domain."""
        return self.card.name

    @property
    def _seed(self) -> int:
        return self.recipe.seed + 1_002  # that of a first stage: one silo alone sees what `lifelong run` would see

    def evaluate(self, weights: Weights, settings: Settings) -> Figures:
        """Held-out loss of `weights`: sums over all documents, none of a single one.

        Raises:
            DisagreementError: another tokenizer or another model.
        """
        order = Order.of(settings)
        with self._owned():
            model = self._model(weights, order)
            heldout = self._heldout()
            if 0 < order.number < order.rounds:
                heldout = heldout.head(self.recipe.evaluate.probe_tokens)
            loss = evaluate_domain(
                model,
                heldout,
                objective=self.recipe.objective,
                sequence_length=self.recipe.sequence_length,
                pad_id=pad_id(self.tokenizer),
                mask_id=objective_of(self.recipe.objective).mask_id(self.tokenizer),
                autocast=self.recipe.evaluation_autocast,
            )
            figures = {"nats": loss.nats, "tokens": loss.tokens, "bytes": loss.bytes, "seconds": loss.seconds}
            self._note("evaluate", order, figures)
            return figures

    def train(self, weights: Weights, settings: Settings) -> tuple[Weights, Figures]:
        """Local steps from `weights`, on from where the last finished round of this silo ended.

        Raises:
            DisagreementError: another tokenizer or another model.
        """
        order = Order.of(settings)
        with self._owned():
            model = self._model(weights, order)
            position = self._position()
            moments = LocalMoments(self._moments(position) if order.keep_moments else {})
            figures = self._steps(model, order, position, moments)
            self._commit(position + order.local_steps, model, order, moments)
            trained = weights_of(model)
            self._note("train", order, figures, trained)
            return trained, figures

    def _steps(self, model: PreTrainedModel, order: Order, position: int, moments: LocalMoments) -> Figures:
        recipe, started = self.recipe, monotonic()
        section = {**recipe.train, **recipe.stages[0].train}
        section |= {"logging_steps": order.local_steps, "save_strategy": "no"}
        work = self.folder.work_root
        remove_tree(work)  # of a round that was cut short: its weights are not those of this one
        arguments = training_arguments(
            section, output_dir=work, max_steps=order.local_steps, seed=self._seed + order.number
        )
        per_step = blocks_per_step(arguments)
        rows = StageDataset(
            tokenize_domain(
                self.card,
                "train",
                self.tokenizer,
                sequence_length=recipe.sequence_length,
                cache_dir=self.folder.cache,
            ),
            None,
            num_steps=position + order.local_steps,
            blocks_per_step=per_step,
            seed=self._seed,
            domain=self.domain,
        )
        phase = TrainingInputs(
            "train",
            RowsFrom(rows, position * per_step),
            self.collator,
            recipe.objective,
            per_step * recipe.sequence_length,
            methods=[moments],
            lr_factor=round_lr_factor(recipe, arguments, order),
            domains=[self.domain],
        )
        curve = run_training_phase(model, arguments, phase)
        remove_tree(work)
        last = curve.train[-1]
        return {
            "tokens": curve.tokens,
            "loss": float(last.ce if last.ce is not None else last.loss),
            "steps": order.local_steps,
            "position": position + order.local_steps,
            "seconds": monotonic() - started,
        }

    def _model(self, weights: Weights, order: Order) -> PreTrainedModel:
        """A model of the recipe with the given weights."""
        recipe = self.recipe
        if (own := tokenizer_fingerprint(self.tokenizer)) != order.tokenizer:
            raise DisagreementError(
                f"tokenizer {own[:12]} is not the federation's {order.tokenizer[:12]}; use the same tokenizer files"
            )
        config = (
            load_config(recipe.model.checkpoint, recipe.model.revision)
            if recipe.model.checkpoint is not None
            else fresh_config(recipe, len(self.tokenizer), self.tokenizer)
        )
        model: PreTrainedModel = objective_of(recipe.objective).auto_class.from_config(config, dtype=torch.float32)
        put_weights(model, weights)
        return model

    # --- what is on disk ------------------------------------------------------------------------------------

    @contextmanager
    def _owned(self) -> Iterator[None]:
        """The folder, held by one process, and bound to its recipe."""
        self.out.mkdir(parents=True, exist_ok=True)
        with hold(self.folder.lock):
            path, text = self.folder.recipe, self.recipe.to_yaml()
            if not path.exists():
                write_text(path, text)
            elif path.read_text(encoding="utf-8") != text:
                raise InputError(f"silo folder {str(self.out)!r} belongs to another recipe; choose another `out`")
            yield

    def _heldout(self) -> Heldout:
        folder, evaluate = self.folder.heldout(self.domain), self.recipe.evaluate
        if not folder.exists():
            with atomic_directory(folder) as partial:
                write_heldout(self.card, evaluate.split, self.tokenizer, self.recipe.evaluation_tokens, partial)
        return Heldout.open(folder)

    def _states(self) -> list[Path]:
        return sorted((self.out / "state").glob("[0-9]*"))

    def _position(self) -> int:
        """Local steps of finished rounds."""
        states = self._states()
        return int(read_json(states[-1] / "state.json")["position"]) if states else 0

    def _moments(self, position: int) -> dict[str, torch.Tensor]:
        path = self.out / "state" / f"{position:08d}" / "moments.safetensors"
        return load_file(path) if path.is_file() else {}

    def _commit(self, position: int, model: PreTrainedModel, order: Order, moments: LocalMoments) -> None:
        """The next state, whole or not at all; those before it go."""
        older = self._states()
        with atomic_directory(self.out / "state" / f"{position:08d}") as partial:
            write_json(partial / "state.json", {"position": position, "round": order.number})
            save_model(model, self.tokenizer, StageFolder(partial).model)
            if order.keep_moments:
                save_file(moments.collected(), partial / "moments.safetensors")
        for folder in older:
            remove_tree(folder)

    def _note(self, kind: str, order: Order, figures: Mapping[str, float], weights: Weights | None = None) -> None:
        """A line in the outbox: what is about to leave."""
        line: dict[str, Any] = {"kind": kind, "round": order.number, "figures": dict(figures)}
        if weights is not None:
            line |= {"tensors": len(weights), "bytes": sum(array.nbytes for array in weights.values())}
            line["sha256"] = weights_hash(weights)
        with (self.out / "outbox.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def round_lr_factor(
    recipe: Recipe, arguments: transformers.TrainingArguments, order: Order
) -> Callable[[float], float]:
    """Progress of a round -> learning rate over the peak: the round's part of one schedule over all rounds.

    Raises:
        InputError: a schedule that depends on more than the step.
    """
    first, total = (order.number - 1) * order.local_steps, order.rounds * order.local_steps
    policy = stage_lr_factor(recipe.lr, stage_span([stage.tokens for stage in recipe.stages], 0))
    if policy is None:
        scheduler: Any = transformers.get_scheduler(
            arguments.lr_scheduler_type,
            torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0),
            num_warmup_steps=arguments.get_warmup_steps(total),
            num_training_steps=total,
            scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs or {}),
        )
        levels = getattr(scheduler, "lr_lambdas", None)
        if not levels:
            raise InputError(f"train.lr_scheduler_type: {arguments.lr_scheduler_type} depends on more than the step")
        by_step: Callable[[int], float] = levels[0]
    else:
        by_progress = policy

        def by_step(step: int) -> float:
            return by_progress(step / total)

    return lambda progress: float(by_step(first + round(progress * order.local_steps)))


class RowsFrom(torch.utils.data.Dataset[PackedRow]):
    """The rows of a stage from one of them on."""

    def __init__(self, rows: StageDataset, start: int) -> None:
        self.rows, self.start = rows, start

    def __len__(self) -> int:
        return len(self.rows) - self.start

    def __getitem__(self, index: int) -> PackedRow:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a round of {len(self)}")
        return self.rows[self.start + index]


class LocalMoments(Method):
    """Puts the moments of the round before into a fresh optimizer, and hands out what they have become.

    Args:
        state: tensors by `PARAMETER.KEY`, the parameter by its place in the optimizer; empty: restart.
    """

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.state = state

    def begin_step(self, model: PreTrainedModel, step: int) -> None:
        """Restore the optimizer before the first step."""
        del model
        if step or not self.state:
            return
        found = self.optimizer.state_dict()
        entries: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in self.state.items():
            place, key = name.split(".", 1)
            entries.setdefault(int(place), {})[key] = value
        self.optimizer.load_state_dict({**found, "state": entries})

    def collected(self) -> dict[str, torch.Tensor]:
        """The moments after the last step, for safetensors."""
        return {
            f"{place}.{key}": value.detach().cpu().contiguous()
            for place, entry in self.optimizer.state_dict()["state"].items()
            for key, value in entry.items()
            if isinstance(value, torch.Tensor)
        }


def weights_of(model: PreTrainedModel) -> Weights:
    """Parameters by name, tied ones once, in float32."""
    return {name: value.detach().float().cpu().numpy() for name, value in model.named_parameters()}


def put_weights(model: PreTrainedModel, weights: Weights) -> None:
    """Give a model these parameters.

    Raises:
        DisagreementError: names or shapes differ.
    """
    own = dict(model.named_parameters())
    different = sorted(set(own) ^ set(weights))
    different += [name for name in own if name in weights and tuple(own[name].shape) != weights[name].shape]
    if different:
        raise DisagreementError(
            f"the model of this recipe is another one: {len(different)} parameters differ, {different[0]}"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(torch.from_numpy(np.array(weights[name])))


def weights_hash(weights: Weights) -> str:
    """SHA-256 over names and bytes."""
    digest = hashlib.sha256()
    for name, array in sorted(weights.items()):
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
