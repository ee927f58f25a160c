"""What the two ways to select documents pick from a corpus with noise mixed in.

    python benchmarks/selection.py TEXT.jsonl.gz --teacher DIR --reference DIR [--small DIR]
        [--foreign OTHER.jsonl.gz] [--documents 200] [--keep 0.4] [--top-k 10]
        [--out selection.json]

To `documents` real texts as many of each kind of noise are added: the words of a text in random order, a text
backwards, random letters, one line of a text over and over, and texts of another corpus where one is given.
Printed is, by kind, the share of documents that is chosen (difference sampling with teacher and reference;
"challenging yet learnable" with the small model, the reference if absent) and the median score.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np


def texts_of(path: Path, count: int) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    return random.Random(0).sample(texts, min(count, len(texts)))


def with_noise(texts: list[str], foreign: list[str]) -> list[tuple[str, str]]:
    draw = random.Random(1)
    made: list[tuple[str, str]] = [("real text", text) for text in texts]
    for text in texts:
        words = text.split()
        made.append(("words shuffled", " ".join(draw.sample(words, len(words)))))
        made.append(("backwards", text[::-1]))
        made.append(("random letters", "".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=len(text)))))
        line = text.split(".")[0] + ". "
        made.append(("one line repeated", line * max(2, len(text) // len(line))))
    made += [("another corpus", text[: len(texts[i % len(texts)])]) for i, text in enumerate(foreign)]
    draw.shuffle(made)
    return made


def scorer_of(folder: str, sequence_length: int) -> Any:
    from lifelong.evaluate.scores import DocumentScorer
    from lifelong.lm.checkpoint import load_model
    from lifelong.stream.tokenizers.load import load_tokenizer

    return DocumentScorer(
        load_model(folder, "clm"), load_tokenizer(folder), objective="clm", sequence_length=sequence_length
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    from lifelong.select.scores import challenge_scores, difference_scores, select_rows
    from lifelong.stream.cards.document import Document, document_key

    texts = texts_of(arguments.text, arguments.documents)
    foreign = texts_of(arguments.foreign, arguments.documents) if arguments.foreign else []
    made = with_noise(texts, foreign)
    documents = [Document(text, document_key(text), len(text.encode())) for _, text in made]
    sizes = np.array([document.num_bytes for document in documents])
    teacher = scorer_of(arguments.teacher, arguments.sequence_length).nats(documents)
    reference = scorer_of(arguments.reference, arguments.sequence_length).nats(documents)
    small = arguments.small or arguments.reference
    losses = scorer_of(small, arguments.sequence_length).token_losses(documents)
    scores = {
        "difference": difference_scores(teacher, reference, sizes),
        "challenge": challenge_scores(
            [nats for nats, _ in losses], [ranks for _, ranks in losses], top_k=arguments.top_k
        ),
    }
    kinds = np.array([kind for kind, _ in made])
    table: dict[str, Any] = {}
    for kind in dict.fromkeys(kind for kind, _ in with_noise(texts, foreign)):
        table[kind] = {
            "documents": int((kinds == kind).sum()),
            "reference_bits_per_byte": float(reference[kinds == kind].sum() / np.log(2) / sizes[kinds == kind].sum()),
            "teacher_bits_per_byte": float(teacher[kinds == kind].sum() / np.log(2) / sizes[kinds == kind].sum()),
        }
    for name, values in scores.items():
        rows = select_rows(values, arguments.keep, sizes=sizes)
        chosen = np.zeros(len(made), dtype=bool)
        chosen[rows] = True
        for kind, row in table.items():
            row[f"{name}_chosen"] = float(chosen[kinds == kind].mean())
            row[f"{name}_median"] = float(np.median(values[kinds == kind]))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--small")
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--foreign", type=Path)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--keep", type=float, default=0.4)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    table = measure(arguments)
    order = sorted(table, key=lambda kind: -table[kind]["difference_chosen"])
    print(f"kept {arguments.keep:.0%} of the bytes; bits per byte under teacher and reference")
    print(f"{'kind':<20}{'documents':>10}{'teacher':>9}{'reference':>10}{'difference':>12}{'challenge':>11}")
    for kind in order:
        row = table[kind]
        print(
            f"{kind:<20}{row['documents']:>10}{row['teacher_bits_per_byte']:>9.2f}"
            f"{row['reference_bits_per_byte']:>10.2f}{row['difference_chosen']:>12.1%}{row['challenge_chosen']:>11.1%}"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(table, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
