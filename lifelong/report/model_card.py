"""A model card per stage, as the hub reads it: base, data with licences and citations, what was learned and lost, how to go on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lifelong.metrics import compute_all, matrix_up_to, metric_info
from lifelong.records import RunHistory, StageRecord
from lifelong.report.sources import corpora, forbids_sharing
from lifelong.report.verdict import cells, metric_rows, perplexity_of
from lifelong.report.view import markdown_safe

# what the hub calls the licences that cards usually name; others are given as `other` with their name
HUB_LICENCES = {
    "apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0", "cc-by-sa-3.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "odc-by", "odbl", "gpl-3.0", "lgpl-3.0", "unlicense",
}  # fmt: skip
TASKS_AND_CLASSES = {
    "clm": ("text-generation", "AutoModelForCausalLM"),
    "mlm": ("fill-mask", "AutoModelForMaskedLM"),
}


def model_card(history: RunHistory, stage: int) -> str:
    """The README.md of a stage's model, with the metadata block that the hub indexes.

    Args:
        history: of the run.
        stage: number of the stage, from 0.
    """
    from huggingface_hub import ModelCardData

    record = history.stages[stage]
    metadata = ModelCardData(
        **{key: value for key, value in _metadata(history, record).items() if value},
        eval_results=list(_results(history, stage)), model_name=f"{history.name} {record.name}",
    )  # fmt: skip
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(_text(history, stage)) + "\n"


def _metadata(history: RunHistory, record: StageRecord) -> dict[str, Any]:
    facts = corpora_of(history, record.index)
    licences = list(dict.fromkeys(licence for _, found in facts if (licence := found.get("licence"))))
    known = licences[0].lower() if len(licences) == 1 else ""
    base = history.recipe.get("model", {}).get("checkpoint")
    return {
        "library_name": "transformers",
        "pipeline_tag": _task_and_class(history)[0],
        "tags": ["lifelong", "continual-pre-training"],
        "base_model": base if base and _is_hub_id(str(base)) else None,
        "datasets": [
            found["source"].removeprefix("hub: ") for _, found in facts if found.get("source", "").startswith("hub: ")
        ],
        "license": known if known in HUB_LICENCES else "other" if licences else None,
        "license_name": None if known in HUB_LICENCES or not licences else ", ".join(licences),
    }


def _task_and_class(history: RunHistory) -> tuple[str, str]:
    """The hub's task and transformers' class for an objective."""
    return TASKS_AND_CLASSES[str(history.recipe.get("objective", "clm"))]


def _is_hub_id(name: str) -> bool:
    return not name.startswith(("/", ".", "~", "$")) and name.count("/") <= 1 and not Path(name).exists()


def _results(history: RunHistory, stage: int) -> Iterator[Any]:
    """Held-out losses of the stage as results that the hub shows, those of watched domains too."""
    from huggingface_hub import EvalResult

    task = _task_and_class(history)[0]
    for matrix in (history.matrix, history.matrix.watched_matrix):
        rows = matrix.nats_per_token
        for name, value in zip(matrix.domains, rows[stage] if stage < len(rows) else (), strict=False):
            if value is None or not math.isfinite(value):
                continue
            kind = name.lower()
            yield EvalResult(
                task,
                kind,
                name,
                "nats_per_token",
                round(value, 5),
                dataset_split="held-out",
                metric_name="held-out loss, nats per token",
            )
    metrics = compute_all(matrix_up_to(history.matrix, stage))
    for name in ("forgetting", "base_forgetting"):
        if (value := metrics.get(name)) is not None:
            yield EvalResult(
                task, "stream", "all domains of the stream", name, round(value, 5), metric_name=metric_info(name).title
            )


def corpora_of(history: RunHistory, stage: int) -> list[tuple[str, dict[str, str]]]:
    """Corpora that the model of a stage has been trained on."""
    trained = {name for record in history.stages[: stage + 1] for name in (record.domain, *record.sources)}
    return [(name, facts) for name, facts in corpora(history) if name in trained]


def _text(history: RunHistory, stage: int) -> Iterator[str]:
    record, matrix = history.stages[stage], matrix_up_to(history.matrix, stage)
    base = history.recipe.get("model", {})
    name = markdown_safe(f"{history.name}, {record.name}")
    origin = f"`{markdown_safe(str(base['checkpoint']))}`" + (f" at revision `{base['revision']}`" if base.get("revision") else "") if base.get("checkpoint") else f"random weights (`{base.get('family', '?')}`)"  # fmt: skip
    yield f"# {name}"
    yield ""
    yield f"{record.parameters / 1e6:.2f}M parameters; stage {stage + 1} of a stream of {len(history.stages)} domains, begun from {origin}, made by [lifelong](https://pypi.org/project/lifelong/)."
    yield ""
    yield "## What it learned, what it lost"
    yield ""
    yield "Held-out text; the rise is over the best loss that the domain ever had, the base model included.\n"
    yield "| domain | perplexity before the stream | now | nats per token | rise, nats |"
    yield "|---|---:|---:|---:|---:|"
    for block, kind in ((matrix, ""), (matrix.watched_matrix, " (watched, never trained on)")):
        for column, cell in enumerate(cells(block)[-1] if block.domains else ()):
            before = block.initial[column]
            rise = "–" if cell.rise is None else f"{cell.rise:+.3f}"
            nats = "–" if cell.nats is None else f"{cell.nats:.4f}"
            yield f"| {markdown_safe(block.domains[column])}{kind} | {'–' if before is None else perplexity_of(before)} | {cell.text} | {nats} | {rise} |"
    yield ""
    yield "| metric | value | unit |"
    yield "|---|---:|---|"
    yield from (f"| {row.title} | {row.value} | {row.unit} |" for row in metric_rows(compute_all(matrix)))
    yield ""
    yield "## Data"
    yield ""
    yield "| corpus | source | licence | revision |"
    yield "|---|---|---|---|"
    facts = corpora_of(history, stage)
    for corpus, found in facts:
        row = (
            corpus,
            found.get("source", "not stated"),
            found.get("licence", "not stated"),
            found.get("revision", "–"),
        )
        yield "| " + " | ".join(map(markdown_safe, row)) + " |"
    citations = [found["citation"] for _, found in facts if found.get("citation")]
    if citations:
        yield ""
        yield from (f"- {markdown_safe(citation)}" for citation in citations)
    if forbidding := [
        f"{corpus} ({found['licence']})" for corpus, found in facts if forbids_sharing(found.get("licence"))
    ]:
        yield ""
        yield f"**The licence of {markdown_safe(', '.join(forbidding))} restricts what may be done with this model.**"
    yield from _use(history, record)


def _use(history: RunHistory, record: StageRecord) -> Iterator[str]:
    kind = _task_and_class(history)[1]
    yield ""
    yield "## Use it"
    yield ""
    yield "```python"
    yield f"from transformers import AutoTokenizer, {kind}"
    yield ""
    yield f'model = {kind}.from_pretrained("this/repository")'
    yield 'tokenizer = AutoTokenizer.from_pretrained("this/repository")'
    yield "```"
    yield ""
    yield "Go on from it with another corpus:"
    yield ""
    yield "```bash"
    yield "lifelong init this/repository --domain CARD --out next.yaml && lifelong run next.yaml"
    yield "```"
    yield ""
    yield "## Recipe"
    yield ""
    yield f"Ledger line `{history.head[:12] if record is history.stages[-1] else record.parent[:12]}`, recipe `{record.recipe_hash[:12]}`."
    yield ""
    yield "```yaml"
    yield yaml.safe_dump(dict(history.recipe), sort_keys=False, allow_unicode=True).rstrip().replace("```", "` ` `")
    yield "```"
