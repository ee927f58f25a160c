"""Two teachers with tokenizers of their own, merged into one student (MergeDistill): bits per byte on each domain.

Each teacher is trained on its domain with a tokenizer of that domain, then taught nothing more. The student has the
union of their vocabularies and meets both domains in equal parts, each in its teacher's tokens; the control does the
same without teachers, token for token. `fixed` is a student that begins as one of the teachers and keeps its
vocabulary: tokens that it lacks have no place, and what the other teacher says about them is measured and left out.

    LIFELONG_DATA=... python benchmarks/merging.py [--domains news german] [--teacher-tokens 200k] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from lifelong.evaluate.cards import evaluate_cards
from lifelong.inherit.sparse import TauSampler
from lifelong.inherit.write_cache import CacheRequest, write_cache
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe

LENGTH = 128
Plain = dict[str, Any]


def recipe(name: str, stages: list[Plain], tokenizer: Plain, **changes: Any) -> Plain:
    """What all runs share: a small Llama, the same batch and learning rate."""
    return {
        "name": name,
        "model": {"family": "llama", "layers": 3, "hidden_size": 96, "heads": 4, "intermediate_size": 256},
        "tokenizer": tokenizer,
        "sequence_length": LENGTH,
        "stages": stages,
        "lr": {"policy": "continue", "warmup": 0.05},
        "train": {"learning_rate": 3e-3, "per_device_train_batch_size": 4, "use_cpu": True, "logging_steps": 20},
        "evaluate": {"tokens": 10_000, "samples": 0},
        **changes,
    }


def write_card(folder: Path, domain: str) -> str:
    """A card of one of the corpora."""
    files = ", ".join(f"{key}: [$LIFELONG_DATA/corpora/{domain}.{split}.jsonl.gz]" for key, split in SPLITS.items())
    path = folder / f"{domain}.yaml"
    path.write_text(f"name: {domain}\nsource: {{{files}}}\ntake_bytes: 600KB\n", encoding="utf-8")
    return str(path)


STUDENTS = ("control", "student", "cached", "fixed-control", "fixed")
SPLITS = {"files": "train", "valid": "valid", "test": "test"}


def run(plain: Plain, out: Path) -> Path:
    """Run a recipe; its last model."""
    started = time.monotonic()
    result = run_recipe(parse_recipe(plain), out)
    print(f"{plain['name']}: {time.monotonic() - started:.0f} s, {result.cost.tokens:,} tokens", flush=True)
    return sorted((out / "stages").iterdir())[-1] / "model"


def losses(model: Path, cards: list[str]) -> dict[str, float]:
    """Bits per byte of a model by domain, each in the tokens that the model reads it in."""
    found = evaluate_cards(str(model), cards, tokens=10_000, sequence_length=LENGTH, objective="clm", split="valid")
    return {loss.domain: loss.bits_per_byte for loss in found}


def unmapped(out: Path) -> dict[str, str]:
    """What the stages of a run noted about teachers with other vocabularies."""
    found = {}
    for stage in sorted((out / "stages").iterdir()):
        noted = json.loads((stage / "history.json").read_text()).get("unmapped_mass", {})
        found[stage.name] = ", ".join(f"{Path(name).parts[-4]} {share['share']:.4f}" for name, share in noted.items())
    return found


def main() -> None:
    """Train, merge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs=2, default=["news", "german"])
    parser.add_argument("--teacher-tokens", default="200k")
    parser.add_argument("--student-tokens", default="75k", help="of each of the two stages, both on both domains")
    parser.add_argument("--sizes", nargs=2, type=int, default=[1024, 1536], help="vocabularies of the teachers")
    parser.add_argument("--students", nargs="*", default=STUDENTS, choices=STUDENTS)
    parser.add_argument("--out", type=Path, default=None, help="goes on where an earlier call stopped")
    options = parser.parse_args()
    folder = options.out or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    cards = {name: write_card(folder, name) for name in options.domains}
    teachers = {}
    for (name, card), size in zip(cards.items(), options.sizes, strict=True):
        stages = [{"domain": card, "tokens": options.teacher_tokens}]
        plain = recipe(
            f"teacher-{name}", stages, {"train": {"kind": "bpe", "vocab_size": size, "max_bytes": 1_000_000}}
        )
        teachers[name] = str(run(plain, folder / f"teacher-{name}"))

    both = list(cards.values())
    joint = [
        {"domain": card, "tokens": options.student_tokens, "together_with": [other for other in both if other != card]}
        for card in both
    ]
    taught = {"alpha": 0.5, "schedule": "constant", "until": 1.0, "temperature": 1.0}
    online = {**taught, "teacher": {"by_domain": teachers}}
    caches = {name: {"cache": str(folder / f"cache-{name}"), "of": model} for name, model in teachers.items()}
    for name, model in teachers.items() if "cached" in options.students else ():
        request = CacheRequest(model, [cards[name]], TauSampler(), temperature=1.0, sequence_length=LENGTH)
        written = write_cache(request, folder / f"cache-{name}")
        print(f"cache of {name}: {written.tokens:,} tokens, {written.bytes_per_token:.1f} bytes a token", flush=True)
    first = teachers[options.domains[0]]
    merged, fixed = {"merge": teachers}, {"merge": teachers, "fixed": True}
    students = {
        "control": recipe("control", joint, merged),
        "student": recipe("student", joint, merged, inherit=online),
        "cached": recipe("cached", joint, merged, inherit={**taught, "teacher": {"by_domain": caches}}),
        "fixed-control": recipe("fixed-control", joint, fixed, model={"checkpoint": first}),
        "fixed": recipe("fixed", joint, fixed, model={"checkpoint": first}, inherit=online),
    }
    rows = {f"teacher {name}": losses(Path(model), list(cards.values())) for name, model in teachers.items()}
    for name in options.students:
        rows[name] = losses(run(students[name], folder / name), list(cards.values()))
        facts = json.loads((folder / name / "initial/tokenizer/domain_tokenizers/vocabularies.json").read_text())
        second = facts["domains"][options.domains[1]]
        print(
            f"{name}: {facts['tokens']} tokens; of {second['tokens']} of {options.domains[1]} {second['shared']} were "
            f"there, {second['unplaced']} have no place; probability without a place: {unmapped(folder / name)}",
            flush=True,
        )
    print(f"| bits per byte | {' | '.join(cards)} |\n|---|{'---:|' * len(cards)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{row[domain]:.3f}' for domain in cards)} |")


if __name__ == "__main__":
    main()
