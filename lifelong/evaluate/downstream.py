"""Downstream evaluation: a copy of the model gets a classification head and is fine-tuned, several times.

Early stopping on macro F1 of the dev split, scores on the test split, mean and deviation over seeds. A domain
prompt (token embeddings) may stand behind the first token; the prompt of the task's domain, that of another, and
none are told apart, because a wrong prompt has been seen to do as well as the right one.

Shape suffixes: B examples, T tokens, P tokens of a prompt, D width.

Source: Gururangan et al. 2020 (arXiv 2004.10964), appendix B: learning rate 2e-5, batches of 16, at most 10 epochs,
patience 3, for RoBERTa; a small model trained here wants a larger learning rate.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from lifelong.errors import InputError
from lifelong.evaluate.source import find_source
from lifelong.evaluate.task import Examples, Task, read_examples
from lifelong.files import write_sealed
from lifelong.ledger.ledger import record_hash
from lifelong.lm.checkpoint import SAFE
from lifelong.lm.foreign import loading
from lifelong.lm.objective import objective_of, pad_id
from lifelong.lm.packed import position_offset
from lifelong.records import TaskRun, TaskScores
from lifelong.stream.tokenizers.encoding import Encoder
from lifelong.stream.tokenizers.load import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class FineTuning:
    """Settings of fine-tuning. `examples` caps every split, `length` the tokens of an example."""

    learning_rate: float = 2e-5
    epochs: int = 10
    patience: int = 3
    batch_size: int = 16
    seeds: int = 5
    examples: int | None = None
    length: int = 256

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size", "seeds"):
            if getattr(self, name) < 1:
                raise InputError(f"fine-tuning: {name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"fine-tuning: the learning rate must be between 0 and 1, not {self.learning_rate}")
        if self.length < 8 or (self.examples is not None and self.examples < 2):
            raise InputError("fine-tuning: length must be at least 8 tokens, examples at least 2")


def evaluate_task(
    source: str | Path,
    task: Task,
    settings: FineTuning,
    tokenizer: PreTrainedTokenizerBase,
    *,
    objective: str = "clm",
    prompts: Mapping[str, Tensor] | None = None,
) -> TaskScores:
    """Scores of fine-tuned copies of a checkpoint on a task.

    Args:
        source: checkpoint folder or hub id; it is not changed.
        task: the card.
        settings: of the fine-tuning.
        tokenizer: of the checkpoint.
        objective: clm (the last token speaks for a text) or mlm (the first one does).
        prompts: domain -> token embeddings `[P, D]`; without that of the task's domain only `none` is measured.

    Raises:
        InputError: the task cannot be read, or transformers has no classification head for the architecture.
    """
    splits = {name: read_examples(task, name, settings.examples) for name in ("train", "dev", "test")}
    classes = sorted(frozenset().union(*(examples.classes for examples in splits.values())))
    runs = [
        _fine_tuned(source, splits, classes, settings, tokenizer, objective, prompt, kind, seed)
        for kind, prompt in chosen_prompts(task, prompts or {}).items()
        for seed in range(settings.seeds)
    ]
    return TaskScores(
        task=task.name,
        domain=task.domain,
        num_classes=len(classes),
        examples={name: (len(examples.texts), examples.available) for name, examples in splits.items()},
        settings=asdict(settings),
        runs=tuple(runs),
    )


def evaluate_tasks(
    model: str,
    tasks: Sequence[Task],
    settings: FineTuning,
    *,
    objective: str | None = None,
    prompts: Path | None = None,
    stage: str | int | None = None,
) -> list[TaskScores]:
    """Scores of a checkpoint or of a stage of a run; those of a run are kept in `RUN/downstream/`.

    Args:
        model: checkpoint folder, hub id or run folder.
        tasks: the cards.
        settings: of the fine-tuning.
        objective: clm or mlm; a run knows its own.
        prompts: safetensors file, domain -> token embeddings.
        stage: of a run: name or number of a stage, or `initial`; the last where absent.
    """
    source = find_source(model, stage)
    record, run, objective = source.record, source.run, str(source.recipe.get("objective") or objective or "clm")
    given = read_prompts(prompts) if prompts is not None else {}
    found = []
    for task in tasks:
        tokenizer = load_tokenizer(source.tokenizer, task.domain)
        scores = evaluate_task(source.weights, task, settings, tokenizer, objective=objective, prompts=given)
        if record is not None and run is not None:
            scores = replace(scores, stage=record.name, record=record_hash(record))
            write_sealed(run.task_score(record.name, task.name), scores.to_json())
        found.append(scores)
    return found


def chosen_prompts(task: Task, prompts: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """The prompts to measure: none, the one of the task's domain, and the next one in alphabetical order."""
    chosen: dict[str, Tensor | None] = {"none": None}
    if task.domain in prompts:
        chosen["right"] = prompts[task.domain]
        others = sorted(name for name in prompts if name != task.domain)
        later = [name for name in others if name > task.domain]
        if others:
            chosen["wrong"] = prompts[(later or others)[0]]
    return chosen


def read_prompts(path: Path) -> dict[str, Tensor]:
    """Domain -> token embeddings `[P, D]` from a safetensors file.

    Raises:
        InputError: no such file, or a tensor of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        prompts: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"prompts {str(path)!r}: no readable safetensors file ({error})") from None
    for name, value in prompts.items():
        if value.dim() != 2:
            raise InputError(
                f"prompts {str(path)!r}: {name} has shape {list(value.shape)}, a prompt has [tokens, width]"
            )
    return prompts


class PromptedClassifier(nn.Module):
    """A stock sequence classifier that sees token embeddings behind the first token of every text."""

    def __init__(self, model: Any, prompt_PD: Tensor | None, objective: str) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        width = model.get_input_embeddings().weight.shape[1]
        if prompt_PD is not None and prompt_PD.shape[1] != width:
            raise InputError(f"prompts: embeddings of width {prompt_PD.shape[1]} for a model of width {width}")
        self.prompt_PD = None if prompt_PD is None else nn.Parameter(prompt_PD.clone().float())
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        """Loss and logits; positions of the prompt hold id -1 in `input_ids`, `[B, T]`."""
        is_prompt_BT = input_ids < 0
        embeddings_BTD = self.model.get_input_embeddings()(input_ids.clamp(min=0))
        if self.prompt_PD is not None:
            rows = self.prompt_PD.repeat(len(input_ids), 1).to(embeddings_BTD.dtype)
            embeddings_BTD = embeddings_BTD.masked_scatter(is_prompt_BT[..., None], rows)
        extra = {}
        # a causal model has its padding in front: positions begin at 0 behind it
        if objective_of(self.objective).is_causal and self.takes_positions:
            extra["position_ids"] = (attention_mask.cumsum(1) - 1).clamp(min=0)
        return self.model(inputs_embeds=embeddings_BTD, attention_mask=attention_mask, labels=labels, **extra)


class _Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Token ids and class of every example."""

    def __init__(self, ids: Sequence[list[int]], labels: Sequence[int]) -> None:
        self.ids, self.labels = ids, labels

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"ids": self.ids[index], "label": self.labels[index]}


def _collate(rows: Sequence[Mapping[str, Any]], objective: str) -> dict[str, Tensor]:
    """A batch; a causal model reads a text at its last token, so that padding stands in front."""
    length = max(len(row["ids"]) for row in rows)
    ids_BT = torch.zeros(len(rows), length, dtype=torch.long)
    mask_BT = torch.zeros(len(rows), length, dtype=torch.long)
    for b, row in enumerate(rows):
        n = len(row["ids"])
        place = slice(length - n, length) if objective_of(objective).is_causal else slice(0, n)
        ids_BT[b, place] = torch.tensor(row["ids"])
        mask_BT[b, place] = 1
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": torch.tensor([row["label"] for row in rows])}


def _fine_tuned(
    source: str | Path,
    splits: Mapping[str, Examples],
    classes: Sequence[str],
    settings: FineTuning,
    tokenizer: PreTrainedTokenizerBase,
    objective: str,
    prompt_PD: Tensor | None,
    kind: str,
    seed: int,
) -> TaskRun:
    transformers.set_seed(seed)
    classifier = PromptedClassifier(_classifier(source, len(classes), tokenizer), prompt_PD, objective)
    length = _room(classifier.model, settings.length)
    prompt_tokens = 0 if prompt_PD is None else len(prompt_PD)
    data = {
        name: _Rows(
            list(_encoded(examples.texts, tokenizer, length, prompt_tokens)),
            [classes.index(label) for label in examples.labels],
        )
        for name, examples in splits.items()
    }
    with TemporaryDirectory() as folder:
        trainer = _trainer(classifier, data, settings, objective, len(classes), Path(folder), seed)
        trainer.train()
        predicted = trainer.predict(data["test"])
    scores = {name.removeprefix("test_"): value for name, value in predicted.metrics.items()}
    best = trainer.state.best_metric
    return TaskRun(
        prompt=kind,
        seed=seed,
        macro_f1=scores["macro_f1"],
        micro_f1=scores["micro_f1"],
        accuracy=scores["accuracy"],
        dev_macro_f1=float(best if best is not None else 0.0),
        epochs=round(trainer.state.epoch or 0),
    )


def _trainer(
    classifier: PromptedClassifier,
    data: Mapping[str, _Rows],
    settings: FineTuning,
    objective: str,
    num_classes: int,
    folder: Path,
    seed: int,
) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), seed=seed, data_seed=seed, learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size, per_device_eval_batch_size=4 * settings.batch_size,
        num_train_epochs=settings.epochs, lr_scheduler_type="linear", warmup_steps=0.06, weight_decay=0.01,
        eval_strategy="epoch", save_strategy="epoch", save_total_limit=1, save_only_model=True,
        load_best_model_at_end=True, metric_for_best_model="macro_f1", greater_is_better=True,
        remove_unused_columns=False, disable_tqdm=True, report_to="none", logging_strategy="no",
    )  # fmt: skip
    if arguments.device.type == "cpu":
        arguments.dataloader_pin_memory = False
    trainer = transformers.Trainer(
        model=classifier,
        args=arguments,
        train_dataset=data["train"],
        eval_dataset=data["dev"],
        data_collator=lambda rows: _collate(rows, objective),
        compute_metrics=lambda output: scores_of(output.predictions.argmax(-1), output.label_ids, num_classes),
        callbacks=[transformers.EarlyStoppingCallback(settings.patience)],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    return trainer


def scores_of(predicted: Any, expected: Any, num_classes: int) -> dict[str, float]:
    """Macro and micro F1 over all classes, and accuracy; a class that was neither predicted nor there counts 0."""
    from sklearn.metrics import accuracy_score, f1_score

    classes = list(range(num_classes))
    macro, micro = (
        f1_score(expected, predicted, labels=classes, average=average, zero_division=0)
        for average in ("macro", "micro")
    )
    return {"macro_f1": float(macro), "micro_f1": float(micro), "accuracy": float(accuracy_score(expected, predicted))}


def _classifier(source: str | Path, num_classes: int, tokenizer: PreTrainedTokenizerBase) -> Any:
    level = logging.getLogger("transformers.modeling_utils").level
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)  # the head is new: that is the point
    try:
        with loading("checkpoint", source, "transformers cannot classify sequences with it"):
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                str(source), num_labels=num_classes, dtype="float32", **SAFE
            )
    finally:
        logging.getLogger("transformers.modeling_utils").setLevel(level)
    model.config.pad_token_id = pad_id(tokenizer)
    model.config.use_cache = False
    return model


def _room(model: Any, length: int) -> int:
    """Tokens that fit the positions of a model."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return length if not positions else int(min(length, positions - position_offset(model)))


def _encoded(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, prompt_tokens: int
) -> Iterator[list[int]]:
    """Ids of each text with the first token in front, places for the prompt behind it, a separator at the end."""
    encoder = Encoder(tokenizer)
    end = [] if tokenizer.sep_token_id is None else [int(tokenizer.sep_token_id)]
    for text in texts:
        first, *rest = encoder.encode_for_scoring(text).tolist()
        yield [first, *[-1] * prompt_tokens, *rest[: length - 1 - prompt_tokens - len(end)], *end]
