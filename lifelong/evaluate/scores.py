"""Losses of single documents and blocks, by which training text is chosen or remembered.

Shape suffixes: B windows, T tokens, N predicted tokens, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lifelong.evaluate.perplexity import Window, document_windows, window_batches, window_tensors
from lifelong.lm.head import head_settings, hidden_states, predicted_nats, predicted_rows
from lifelong.lm.loss import IGNORED, default_chunk_tokens, token_nats
from lifelong.lm.objective import pad_id
from lifelong.stream.blocks import Block
from lifelong.stream.cards.document import Document
from lifelong.stream.collator import Collator, PackedRow
from lifelong.stream.ordering import key_of
from lifelong.stream.tokenizers.encoding import Encoder


class DocumentScorer:
    """A model that reads documents one by one, each alone, with its own tokenizer.

    Args:
        model: any model with an output embedding.
        tokenizer: the one it was trained with.
        objective: clm or mlm; a masked model predicts the positions that evaluation would hide.
        sequence_length: longest window it is shown.
        batch_tokens: tokens of a batch.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, objective: str, sequence_length: int, batch_tokens: int = 8192
    ) -> None:
        self.model, self.encoder, self.objective = model.eval(), Encoder(tokenizer), objective
        self.sequence_length, self.batch_tokens = sequence_length, batch_tokens
        self.mask_id = tokenizer.mask_token_id
        self.pad_id = pad_id(tokenizer)
        self.tokens = 0

    def nats(self, documents: Sequence[Document]) -> NDArray[np.float64]:
        """Negative log-likelihood of each document in nats, summed over its predicted tokens."""
        return np.array([float(nats.sum()) for nats, _ in self.token_losses(documents, ranks=False)])

    def token_losses(
        self, documents: Sequence[Document], *, ranks: bool = True
    ) -> list[tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Per document: losses of its predicted tokens in nats, and ranks of the right tokens.

        Rank 0 is the model's best guess. Without `ranks` they are all 0.
        """
        parts: list[Window] = []
        encoded = self.encoder.encode_batch([document.text for document in documents])
        for number, (document, ids) in enumerate(zip(documents, encoded, strict=True)):
            whole = np.concatenate([[self.encoder.first_id], ids])
            parts += document_windows(
                whole, number, self.sequence_length, objective=self.objective, key=document.key, mask_id=self.mask_id
            )
        order = sorted(range(len(parts)), key=lambda place: (len(parts[place].ids), place))
        found: list[Any] = [None] * len(parts)
        for batch in window_batches(order, parts, self.batch_tokens):
            for place, losses in zip(batch, self._batch([parts[p] for p in batch], ranks), strict=True):
                found[place] = losses
        own: list[list[Any]] = [[] for _ in documents]
        for window, losses in zip(parts, found, strict=True):
            own[window.document].append(losses)
        return [
            (np.concatenate([nats for nats, _ in pieces]), np.concatenate([places for _, places in pieces]))
            for pieces in own
        ]

    @torch.no_grad()
    def _batch(self, batch: Sequence[Window], ranks: bool) -> list[tuple[NDArray[np.float64], NDArray[np.int64]]]:
        tensors = window_tensors(batch, self.pad_id, next(self.model.parameters()).device)
        self.tokens += int(tensors["segment_ids"].sum())
        settings = head_settings(self.model)
        hidden_BTD = hidden_states(self.model, tensors, self.objective)
        hidden_ND, labels_N, window_N = predicted_rows(hidden_BTD, tensors["labels"], self.objective)
        weight_VD = settings.pop("weight_VD")
        nats_N = token_nats(hidden_ND, weight_VD, labels_N, **settings).double().cpu().numpy()
        ranks_N = np.zeros(len(nats_N), dtype=np.int64)
        if ranks:
            ranks_N = token_ranks(hidden_ND, weight_VD, labels_N, settings["bias_V"]).cpu().numpy()
        owner = window_N.cpu().numpy()
        return [(nats_N[owner == row], ranks_N[owner == row]) for row in range(len(batch))]


def token_ranks(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, bias_V: Tensor | None) -> Tensor:
    """Number of tokens more likely than the right one, `[N]`; soft-capping and scaling keep the order."""
    chunk = default_chunk_tokens(weight_VD.shape[0], hidden_ND.device)
    ranks_N = torch.empty(labels_N.shape, dtype=torch.long, device=hidden_ND.device)
    for start in range(0, labels_N.numel(), chunk):
        rows = slice(start, start + chunk)
        logits_CV = torch.nn.functional.linear(hidden_ND[rows], weight_VD, bias_V).float()
        ranks_N[rows] = (logits_CV > logits_CV.gather(1, labels_N[rows][:, None])).sum(1)
    return ranks_N


def block_losses(
    model: Any, blocks: Sequence[Block], collator: Collator, *, batch_tokens: int = 8192
) -> NDArray[np.float64]:
    """Nats per predicted token of each block, as training would show it."""
    per_batch = max(1, batch_tokens // collator.sequence_length)
    losses = np.zeros(len(blocks))
    training, device = model.training, next(model.parameters()).device
    model.eval()
    for start in range(0, len(blocks), per_batch):
        rows = [
            PackedRow(block=blocks[place], domain_id=0, is_replay=False, mask_key=key_of("scores", place))
            for place in range(start, min(start + per_batch, len(blocks)))
        ]
        batch = {name: tensor.to(device) for name, tensor in collator(rows).items()}
        nats_BT = predicted_nats(model, batch, collator.objective).double()
        predicted_B = (batch["labels"] != IGNORED).sum(1)
        losses[start : start + len(rows)] = (nats_BT.sum(1) / predicted_B.clamp(min=1)).cpu().numpy()
    model.train(training)
    return losses
