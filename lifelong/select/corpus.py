"""Selection of the documents a stage trains on, as its `select:` section says.

Difference sampling (MiniPLM) keeps what a good model knows much better than a small one; "challenging yet
learnable" (SALT) keeps what a small model finds hard but has among its guesses. Both score whole documents, as
text, so that the models may have tokenizers of their own. Scores are written chunk by chunk: a stage that is
interrupted resumes with the next chunk.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lifelong.errors import InputError
from lifelong.evaluate.scores import DocumentScorer
from lifelong.files import write_bytes, write_json
from lifelong.ledger.folder import StageFolder
from lifelong.lm.checkpoint import load_config, load_model, to_accelerator
from lifelong.lm.flops import forward_flops_per_token
from lifelong.select.scores import challenge_scores, difference_scores, select_rows
from lifelong.select.settings import SelectSection
from lifelong.stream.blocks import BlockStore
from lifelong.stream.cards.document import Document
from lifelong.stream.cards.documents import read_documents
from lifelong.stream.cards.domain import Domain
from lifelong.stream.ordering import key_of
from lifelong.stream.tokenize import manifest_of, tokenize_domain
from lifelong.stream.tokenizers.load import load_tokenizer

CHUNK_DOCUMENTS = 512
# of the documents: beyond this share of equal scores the choice would be a draw
MOST_UNKNOWN = 0.5
SHOWN_DOCUMENTS, SHOWN_CHARACTERS = 5, 200

Score = Callable[[DocumentScorer, Sequence[Document]], NDArray[np.float64]]


@dataclass(frozen=True)
class SelectionInputs:
    """Inputs of a selection.

    Args:
        section: of the recipe.
        domain: of the stage.
        tokenizer: what reads the domain.
        previous: the previous stage's model; what the name `previous` refers to.
        objective: clm or mlm.
        sequence_length: of the run.
        seed: of the run.
        cache_dir: of tokenised corpora.
        use_cpu: keep the models off the accelerator.
    """

    section: SelectSection
    domain: Domain
    tokenizer: PreTrainedTokenizerBase
    previous: Any
    objective: str
    sequence_length: int
    seed: int
    cache_dir: Path
    use_cpu: bool = False


@dataclass
class Selection:
    """A selection that is under way.

    Args:
        inputs: what it depends on.
        folder: for scores that are done.
        share: of the documents that are considered at all, drawn by hash.
    """

    inputs: SelectionInputs
    folder: Path
    share: float
    flops: float = 0.0

    def considered(self) -> Iterator[tuple[int, Document]]:
        """Documents that may be chosen, with their place in the split; the same ones every time."""
        for place, document in enumerate(read_documents(self.inputs.domain, "train")):
            if key_of(self.inputs.seed, "considered", document.key) < self.share * 2.0**64:
                yield place, document

    def scores(self, role: str, source: str, score: Score) -> NDArray[np.float64]:
        """One number per considered document from one model; it is loaded only if a chunk is missing."""
        scorer: DocumentScorer | None = None
        documents = (document for _, document in self.considered())
        chunks = []
        number = 0
        while chunk := list(islice(documents, CHUNK_DOCUMENTS)):
            path = self.folder / role / f"{number:06d}.npz"
            if not path.exists():
                scorer = scorer or self._scorer(source)
                write_arrays(path, **scored(scorer, chunk, score))
            done = np.load(path)
            chunks.append(done["scores"])
            self.flops += float(done["flops"])
            number += 1
        return np.concatenate(chunks) if chunks else np.zeros(0)

    def _scorer(self, source: str) -> DocumentScorer:
        inputs, own = self.inputs, source == "previous"
        model = inputs.previous if own else load_model(source, inputs.objective)
        tokenizer = inputs.tokenizer if own else load_tokenizer(source, inputs.domain.name)
        if not inputs.use_cpu:
            to_accelerator(model)
        positions = getattr(model.config, "max_position_embeddings", None) or inputs.sequence_length
        length = min(positions, max(inputs.sequence_length, inputs.section.sequence_length or 0))
        return DocumentScorer(model, tokenizer, objective=inputs.objective, sequence_length=length)


def select_corpus(inputs: SelectionInputs, corpus: BlockStore, *, tokens: int, folder: Path) -> BlockStore:
    """The blocks of the chosen documents; what was chosen is told in `folder/selection.json`.

    No more documents are scored than the stage can use: `tokens / keep` tokens of them, drawn by hash.

    Raises:
        InputError: a model or tokenizer cannot be loaded, or the teacher knows the corpus no better than the reference.
    """
    started, section = monotonic(), inputs.section
    facts = manifest_of(corpus)
    done = folder / f"chosen-{corpus.fingerprint[:12]}.npz"
    if done.exists() and StageFolder(folder).selection.exists():
        return _chosen_store(inputs, np.load(done)["chosen"])
    share = min(1.0, tokens / section.keep / max(facts["tokens"], 1))
    selection = Selection(inputs, folder / f"scores-{corpus.fingerprint[:12]}", share)
    places, sizes = (np.array(column, dtype=np.int64) for column in _places_and_sizes(selection))
    scores = _difference(selection, sizes) if section.by == "difference" else _challenge(selection)
    rows = select_rows(scores, section.keep, sizes=sizes, seed=inputs.seed, temperature=section.temperature)
    chosen = np.zeros(int(facts["documents"]), dtype=bool)
    chosen[places[rows]] = True
    write_arrays(done, chosen=chosen)
    store = _chosen_store(inputs, chosen)
    write_json(
        StageFolder(folder).selection,
        {
            "by": section.by,
            "keep": section.keep,
            "documents": int(facts["documents"]),
            "considered": len(places),
            "chosen": len(rows),
            "considered_bytes": int(sizes.sum()),
            "chosen_bytes": int(sizes[rows].sum()),
            "chosen_tokens": store.num_tokens,
            "lowest_score_chosen": float(scores[rows].min()),
            "quartiles": [float(value) for value in np.quantile(scores, [0.25, 0.5, 0.75])],
            **_openings(selection, scores),
            "flops": selection.flops,
            "seconds": monotonic() - started,
        },
    )
    return store


def _chosen_store(inputs: SelectionInputs, chosen: NDArray[np.bool_]) -> BlockStore:
    length, cache = inputs.sequence_length, inputs.cache_dir
    return tokenize_domain(
        inputs.domain, "train", inputs.tokenizer, sequence_length=length, cache_dir=cache, chosen=chosen
    )


def _places_and_sizes(selection: Selection) -> tuple[list[int], list[int]]:
    places, sizes = [], []
    for place, document in selection.considered():
        places.append(place)
        sizes.append(document.num_bytes)
    if not places:
        raise InputError(
            f"domain {selection.inputs.domain.name}: select: too few documents to choose from; leave it out"
        )
    return places, sizes


def _difference(selection: Selection, sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    section = selection.inputs.section
    teacher, reference = (
        selection.scores(role, str(source), DocumentScorer.nats)
        for role, source in (("teacher", section.teacher), ("reference", section.reference))
    )
    if teacher.sum() >= reference.sum():
        bits = [float(nats.sum() / np.log(2) / sizes.sum()) for nats in (teacher, reference)]
        raise InputError(
            f"domain {selection.inputs.domain.name}: select.teacher {section.teacher!r} scores it at "
            f"{bits[0]:.3f} bits per byte, no better than select.reference {section.reference!r} at "
            f"{bits[1]:.3f}; are they swapped? "
            "Difference sampling needs a teacher that models the corpus better"
        )
    return difference_scores(teacher, reference, sizes)


def _challenge(selection: Selection) -> NDArray[np.float64]:
    top_k = selection.inputs.section.top_k

    def score(scorer: DocumentScorer, documents: Sequence[Document]) -> NDArray[np.float64]:
        losses = scorer.token_losses(documents)
        return challenge_scores([nats for nats, _ in losses], [ranks for _, ranks in losses], top_k=top_k)

    scores = selection.scores("challenge", str(selection.inputs.section.model), score)
    unknown = float((scores == 0).mean())
    if unknown > MOST_UNKNOWN:
        raise InputError(
            f"domain {selection.inputs.domain.name}: select.model {selection.inputs.section.model!r} has "
            f"the right token among its {top_k} most probable ones for less than half of the tokens in "
            f"{unknown:.0%} of the documents, which all score 0: there is nothing to choose by. "
            "Raise select.top_k, or use a stronger model"
        )
    return scores


def _openings(selection: Selection, scores: NDArray[np.float64]) -> dict[str, list[dict[str, Any]]]:
    """Openings of the documents with the highest and the lowest scores, in one reading of the corpus."""
    orders = {"highest": np.argsort(-scores, kind="stable"), "lowest": np.argsort(scores, kind="stable")}
    wanted = {int(row) for order in orders.values() for row in order[:SHOWN_DOCUMENTS]}
    found = {}
    for row, (_, document) in enumerate(selection.considered()):
        if row in wanted:
            text = " ".join(document.text[: 4 * SHOWN_CHARACTERS].split())[:SHOWN_CHARACTERS]
            found[row] = {"score": float(scores[row]), "text": text}
    return {name: [found[int(row)] for row in order[:SHOWN_DOCUMENTS]] for name, order in orders.items()}


def scored(scorer: DocumentScorer, documents: Sequence[Document], score: Score) -> dict[str, Any]:
    """Scores of some documents and the FLOPs that they took."""
    before = scorer.tokens
    scores = score(scorer, documents)
    flops = forward_flops_per_token(scorer.model, scorer.sequence_length, scorer.objective)
    return {"scores": scores, "flops": np.array((scorer.tokens - before) * flops)}


def write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Whole arrays or nothing, durable before they are named: a power cut must not leave a name without its content."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_bytes(path, content.getvalue())


def check_selection(section: SelectSection, where: str, *, has_learned: bool) -> Iterator[str]:
    """A line for every model of a `select:` section that cannot be read; configurations alone.

    Args:
        section: to check.
        where: its path in the recipe.
        has_learned: there is a previous model that knows something.
    """
    for role, source in section.models():
        if source == "previous":
            if not has_learned:
                yield f"{where}.{role}: before the first stage nothing has been learned"
            continue
        try:
            load_config(source)
            load_tokenizer(source)
        except InputError as error:
            yield f"{where}.{role}: {error}"
