"""Two stages of a few steps without recipe, ledger or replay, begun and ended by the phase that trains.

A token is followed by the next one in one domain, by the one after that in the other, so that what the second stage
learns contradicts the first; the model grows in between.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers

from lifelong import distributed
from lifelong.errors import Interrupted
from lifelong.expand import expansion_map, new_config, plan_expansion
from lifelong.files import write_json
from lifelong.ledger.folder import RunFolder, stage_name
from lifelong.methods._make import make_methods
from lifelong.methods._method import StageContext
from lifelong.pipeline.phases.train import Train
from lifelong.replay.dataset import StageDataset
from lifelong.stream.blocks import Block
from lifelong.stream.collator import Collator
from lifelong.train.arguments import training_arguments
from lifelong.train.phase import StopRequest, TrainingInputs
from lifelong.train.resume import save_methods
from lifelong.train.stage_trainer import run_training_phase

LENGTH, STEPS, ROWS = 12, 4, 4
DOMAINS = ("next", "second")
GROWTH = {"layers": 3, "hidden_size": 24, "heads": 3, "intermediate_size": 32}


def grown(model: Any, sizes: dict[str, int], seed: int) -> tuple[Any, Any]:
    """A model at other sizes and its map, without the verification that tests of the growth make."""
    plan = plan_expansion(model.config, seed=seed, **sizes)
    mapping = expansion_map(plan, type(model))
    larger = type(model)(plan.target_config)
    larger.load_state_dict(mapping.apply_weights({name: value.detach() for name, value in model.named_parameters()}))
    return larger, mapping


def blocks_of(domain: str, count: int = 16) -> list[Block]:
    """Rows of two documents each that count upwards."""
    stride = 1 + DOMAINS.index(domain)
    ids = [(5 + 7 * row + stride * np.arange(LENGTH)) % 30 for row in range(count)]
    starts, offsets = np.array([0, 5], np.int32), np.array([0, 0], np.int32)
    return [Block(row.astype(np.int32), starts, offsets) for row in ids]


class Memory:
    """What a replay memory shows to a method."""

    domains = ("next",)

    def blocks(self, domain: str) -> list[Block]:
        """Its rows of a domain."""
        return blocks_of(domain, 8)


@dataclass
class Run:
    """One run of both stages with some methods; `stop_at` = (stage, step) interrupts it there, once, and resumes."""

    folder: Path
    methods: list[dict[str, Any]] = field(default_factory=list)
    stop_at: tuple[int, int] | None = None
    accumulation: int = 1
    seed: int = 0
    growth: dict[str, int] | None = field(default_factory=lambda: dict(GROWTH))
    train: dict[str, Any] = field(default_factory=dict)
    model: Any = None
    made: list[Any] = field(default_factory=list)
    contexts: list[StageContext] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        config = new_config(
            "llama", vocab_size=32, max_positions=64, layers=2, hidden_size=16, heads=2, intermediate_size=24
        )
        self.model = transformers.AutoModelForCausalLM.from_config(config)
        for index, domain in enumerate(DOMAINS):
            self._stage(index, domain)

    def _stage(self, index: int, domain: str) -> None:
        mapping = None
        if index and self.growth:
            self.model, mapping = grown(self.model, self.growth, self.seed)
        start = {name: value.clone() for name, value in self.model.state_dict().items()}
        if self.stop_at is not None and self.stop_at[0] == index:
            try:
                self._train(index, domain, mapping, stop=self.stop_at[1])
            except Interrupted:
                # a new process begins with the model before the stage and fresh methods
                self.model = type(self.model)(self.model.config)
                self.model.load_state_dict(start)
        self._train(index, domain, mapping)

    def _train(self, index: int, domain: str, mapping: Any, stop: int | None = None) -> None:
        self.made = make_methods([(m["name"], {k: v for k, v in m.items() if k != "name"}) for m in self.methods])
        stage = self._bare(index, domain, mapping)
        phase = Train()
        rows = phase.rows(stage, self.model)
        self.contexts.append(stage.hooks)
        section = {
            "learning_rate": 3e-3,
            "per_device_train_batch_size": ROWS // self.accumulation,
            "logging_steps": 1,
            "gradient_accumulation_steps": self.accumulation,
            "use_cpu": True,
            "max_grad_norm": 0.0,
            **self.train,
        }
        arguments = training_arguments(
            section, output_dir=stage.work.checkpoints(phase.name), max_steps=STEPS, seed=self.seed
        )
        request = StopRequest()
        dataset = StageDataset(
            rows.corpus,
            None,
            num_steps=STEPS,
            blocks_per_step=ROWS,
            domain=domain,
            seed=self.seed,
            stage_index=index,
            domain_ids={name: i for i, name in enumerate(DOMAINS)},
        )

        def probe(step: int, _: int) -> tuple[()]:
            request.requested = step == stop
            return ()

        inputs = TrainingInputs(
            phase.name, dataset, collator(), "clm", ROWS * LENGTH, methods=stage.methods, probe=probe, stop=request
        )
        run_training_phase(self.model, arguments, inputs)
        phase.finish(stage, inputs)
        kept = stage.context.ledger.folder.stage(stage.name)
        kept.path.mkdir(parents=True, exist_ok=True)
        distributed.run_on_main_process(lambda: save_methods(stage.methods, kept.methods))

    def _bare(self, index: int, domain: str, mapping: Any) -> Any:
        """What the phase asks a stage for, where there is no recipe, no ledger and no replay."""
        folder = RunFolder(self.folder)
        work = folder.work(stage_name(index, domain))
        if mapping is not None:
            distributed.run_on_main_process(lambda: write_json(work.grown.expansion, {"map": mapping.to_json()}))
        return SimpleNamespace(
            index=index,
            name=work.name,
            domain=SimpleNamespace(name=domain),
            previous=SimpleNamespace(name=stage_name(index - 1, DOMAINS[index - 1])),
            has_learned=index > 0,
            seed=self.seed,
            section=SimpleNamespace(tokens=STEPS * ROWS * LENGTH),
            plan=lambda _: SimpleNamespace(num_steps=STEPS),
            average=None,
            corpus=blocks_of(domain),
            columns=DOMAINS,
            memory=lambda: Memory() if index else None,
            replay=None,
            methods=self.made,
            hooks=None,
            work=work,
            context=SimpleNamespace(
                columns=DOMAINS, collator=lambda _: collator(), ledger=SimpleNamespace(folder=folder)
            ),
        )

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Of the final model."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def state(self) -> dict[str, torch.Tensor]:
        """State of all methods after the last stage."""
        return {
            f"{i}.{name}": value for i, method in enumerate(self.made) for name, value in method.state_dict().items()
        }


def collator() -> Collator:
    """Rows to batches."""
    return Collator("clm", LENGTH, pad_id=0, vocab_size=32)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
