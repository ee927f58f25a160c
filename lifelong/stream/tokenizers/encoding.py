"""Encoding in bulk: reading, encoding and packing overlap, memory does not grow with the corpus.

Texts travel in batches of about a megabyte. A batch is encoded by the threads of `tokenizers`, which release
the interpreter, while the next one is read and the last one is packed; or by worker processes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lifelong.errors import InputError
from lifelong.stream.cards.document import Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IntArray = NDArray[np.int32]
_BATCH_CHARACTERS = 1 << 20
_BATCH_DOCUMENTS = 4096
# a tokenizer needs some hundred bytes per character while it works: a longer document goes in pieces
_LONGEST_PIECE = 1 << 19
# before a single space between two other characters; no pre-tokenizer joins anything across it
_CUT = re.compile(r"(?<=\S) (?=\S)")


class Encoder:
    """A tokenizer reduced to what training needs: text to ids, and the ids around a document.

    Raises:
        InputError: the tokenizer has no BOS, EOS or CLS token to put in front of a document.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend = _plain_backend(backend) if backend is not None else None
        self.vocab_size = len(tokenizer)
        front = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id)
        back = (tokenizer.eos_token_id, tokenizer.sep_token_id)
        first = next((token for token in front if token is not None), None)
        if first is None:
            raise InputError(
                f"tokenizer {tokenizer.name_or_path!r}: it has no BOS, EOS or CLS token "
                "to begin a document with; add one to it"
            )
        self.first_id: int = int(first)
        last = next((token for token in back if token is not None), None)
        self.last_id: int | None = None if last is None else int(last)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides which ids a text gets."""
        if self._backend is not None:
            content = self._backend.to_str()
        else:
            vocabulary = sorted(self._tokenizer.get_vocab().items())
            content = f"{type(self._tokenizer).__name__} {self._tokenizer.init_kwargs!r} {vocabulary!r}"
        return hashlib.sha256(f"{content}|{self.first_id}|{self.last_id}".encode()).hexdigest()

    @property
    def template_fingerprint(self) -> str:
        """SHA-256 of what decides how messages are rendered."""
        return hashlib.sha256(str(self._tokenizer.chat_template).encode()).hexdigest()

    def rendered(self, text: str) -> str:
        """The text that is encoded: messages by the chat template, without the tokens around a document.

        Raises:
            InputError: the tokenizer has no chat template, or it does not render these messages.
        """
        if not isinstance(text, Conversation):
            return text
        tokenizer = self._tokenizer
        if not tokenizer.chat_template:
            raise InputError(
                f"tokenizer {tokenizer.name_or_path!r}: has no chat template, which the messages of a card's "
                "messages_field are rendered with; take the tokenizer of a chat model, or a card with text_field"
            )
        try:
            shown = str(tokenizer.apply_chat_template(json.loads(text), tokenize=False))
        except Exception as error:  # whatever a program in a template may raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"chat template of {tokenizer.name_or_path!r}: does not render ({reason})") from None
        if tokenizer.bos_token:  # every document gets the tokens around it here, conversations too
            shown = shown.removeprefix(tokenizer.bos_token)
        return shown.removesuffix(tokenizer.eos_token) if tokenizer.eos_token else shown

    def encode_batch(self, texts: list[str]) -> list[IntArray]:
        """Ids of each text, without special tokens."""
        pieces = [_pieces(self.rendered(text)) for text in texts]
        flat = [piece for parts in pieces for piece in parts]
        encoded = iter(self._encode_flat(flat))
        return [_joined([next(encoded) for _ in parts]) for parts in pieces]

    def _encode_flat(self, texts: list[str]) -> list[IntArray]:
        if self._backend is not None:
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
            return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        ids = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return [np.array(row, dtype=np.int32) for row in ids]

    def encode_for_scoring(self, text: str) -> IntArray:
        """Ids of a document as it is evaluated: with the first token in front, nothing behind."""
        return np.concatenate([np.array([self.first_id], dtype=np.int32), *self.encode_batch([text])])

    def encode_all(self, texts: Iterable[str], *, num_proc: int | None = None) -> Iterator[IntArray]:
        """Ids of each text as it is trained on, first and last token included, in order.

        Args:
            texts: read no further ahead than a few batches.
            num_proc: worker processes; without it, threads of this process.
        """
        first = np.array([self.first_id], dtype=np.int32)
        last = np.array([] if self.last_id is None else [self.last_id], dtype=np.int32)
        with _executor(self, num_proc) as executor:
            ahead = (num_proc or 1) + 1
            call = _encode_in_worker if num_proc else self.encode_batch
            waiting: deque[Future[list[IntArray]]] = deque()
            for batch in _batches(texts):
                waiting.append(executor.submit(call, batch))
                if len(waiting) > ahead:
                    yield from (np.concatenate([first, ids, last]) for ids in waiting.popleft().result())
            while waiting:
                yield from (np.concatenate([first, ids, last]) for ids in waiting.popleft().result())


_worker_encoder: Encoder | None = None


def _executor(encoder: Encoder, num_proc: int | None) -> Executor:
    if not num_proc:
        return ThreadPoolExecutor(max_workers=1)
    import multiprocessing

    # spawned, not forked: a fork copies locks that threads of this process may hold
    context = multiprocessing.get_context("spawn")
    tokenizer: Any = encoder._tokenizer
    return ProcessPoolExecutor(num_proc, mp_context=context, initializer=_start_worker, initargs=(tokenizer,))


def _start_worker(tokenizer: Any) -> None:
    global _worker_encoder  # noqa: PLW0603 - one encoder a process, made once
    _worker_encoder = Encoder(tokenizer)


def _encode_in_worker(texts: list[str]) -> list[IntArray]:
    assert _worker_encoder is not None, "the pool starts every worker with an encoder"
    return _worker_encoder.encode_batch(texts)


def _plain_backend(backend: Any) -> Any:
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(backend.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _pieces(text: str) -> list[str]:
    if len(text) <= _LONGEST_PIECE:
        return [text]
    parts, begin = [], 0
    while len(text) - begin > _LONGEST_PIECE:
        cut = _CUT.search(text, begin + _LONGEST_PIECE // 2, begin + _LONGEST_PIECE)
        end = cut.start() if cut else begin + _LONGEST_PIECE
        parts.append(text[begin:end])
        begin = end
    return [*parts, text[begin:]]


def _joined(parts: list[IntArray]) -> IntArray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
