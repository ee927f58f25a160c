"""Does a chat model still behave like one: forty short prompts, answered greedily and judged by rules.

An answer stops (an end-of-turn token within the bound), keeps the format that was asked for, and is in the language
that was asked for. The rules look at the form alone: a wrong answer in the right form passes. The language test counts
letters of a script, or stop words that of the languages it knows only one has; it cannot tell bad German from good.

Shape suffixes: B prompts, T tokens.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch
import yaml

from lifelong.errors import InputError
from lifelong.lm.objective import pad_id
from lifelong.records import ChatAnswer, ChatScores
from lifelong.stream.tokenizers.load import load_tokenizer

NEW_TOKENS = 64
BATCH = 20
TYPICAL_TOKENS = 40 * (50 + NEW_TOKENS)
"""Tokens of a round of prompts and answers, for a plan."""
SWITCH = "mend the template, or switch these prompts off: evaluate: {chat: off}"


@dataclass(frozen=True)
class ChatPrompt:
    """A question, the check of its format with its setting, and the language of the answer where one is asked for."""

    ask: str
    format: tuple[str, Any] | None = None
    language: str | None = None


@cache
def _data() -> Mapping[str, Any]:
    text = files("lifelong.evaluate").joinpath("chat_prompts.yaml").read_text(encoding="utf-8")
    found: Mapping[str, Any] = yaml.safe_load(text)
    return found


def chat_prompts() -> tuple[ChatPrompt, ...]:
    """The prompts that come with the package."""
    return tuple(
        ChatPrompt(row["ask"], next(iter(row.get("format", {}).items()), None), row.get("language"))
        for row in _data()["prompts"]
    )


def stop_words() -> dict[str, frozenset[str]]:
    """Language -> frequent words that none of the other languages has."""
    return {language: frozenset(words.split()) for language, words in _data()["stop_words"].items()}


def template_tokenizer(source: str, revision: str | None = None) -> Any:
    """Tokenizer of a checkpoint where it has a chat template; None where it has none or cannot be loaded."""
    try:
        tokenizer = load_tokenizer(source, revision=revision)
    except InputError:  # told where the run loads it
        return None
    return tokenizer if tokenizer.chat_template else None


@cache
def has_template(source: str, revision: str | None = None) -> bool:
    """Whether the tokenizer of a checkpoint has a chat template; asked again for every stage of a plan."""
    return template_tokenizer(source, revision) is not None


def check_template(tokenizer: Any, positions: int | None = None) -> None:
    """Render every prompt as it will be asked.

    Raises:
        InputError: the template does not render, leaves the question out, or leaves no room for an answer.
    """
    for prompt in chat_prompts():
        prompt_ids(tokenizer, prompt.ask)
    end_of_turn(tokenizer)
    longest = max(len(prompt_ids(tokenizer, prompt.ask)) for prompt in chat_prompts())
    if positions is not None and longest >= positions:
        raise InputError(
            f"chat template of {tokenizer.name_or_path!r}: a prompt takes {longest} tokens, the model has {positions} "
            f"positions; {SWITCH}"
        )


def _render(tokenizer: Any, messages: Sequence[tuple[str, str]], *, answer: bool) -> str:
    turns = [{"role": role, "content": content} for role, content in messages]
    try:
        # templates of models that think aloud know the switch, all others ignore it: the bound is for the answer
        text = str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer, enable_thinking=False)
        )
    except Exception as error:  # whatever a program in a template may raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"chat template of {tokenizer.name_or_path!r}: does not render ({reason}); {SWITCH}") from None
    if messages[0][1] not in text:
        raise InputError(
            f"chat template of {tokenizer.name_or_path!r}: leaves out the question {messages[0][1]!r}; {SWITCH}"
        )
    return text


def prompt_ids(tokenizer: Any, ask: str) -> list[int]:
    """A question as the chat template puts it, up to where the answer begins.

    Raises:
        InputError: the template does not render.
    """
    text = _render(tokenizer, [("user", ask)], answer=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def end_of_turn(tokenizer: Any) -> int | None:
    """The special token by which the template ends an answer; None where it has none."""
    said = "Certainly."
    text = _render(tokenizer, [("user", "Ready?"), ("assistant", said)], answer=False)
    ids = tokenizer(text.rpartition(said)[2], add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((token for token in ids if token in special), None)


def answer_prompts(
    model: Any, tokenizer: Any, *, stage: int, prompts: Sequence[ChatPrompt] | None = None
) -> ChatScores:
    """Greedy answers to the prompts, judged; at most `NEW_TOKENS` each.

    Args:
        model: a causal model; left in the mode it was in.
        tokenizer: with a chat template.
        stage: to note; -1 for the initial model.
        prompts: other ones than the package's.

    Raises:
        InputError: the template does not render.
    """
    prompts = chat_prompts() if prompts is None else prompts
    stops = _stop_ids(model, tokenizer)
    rows = [prompt_ids(tokenizer, prompt.ask) for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), index))
    answers: dict[int, ChatAnswer] = {}
    training = model.training
    model.eval()
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        for index, ids in zip(batch, _generate(model, tokenizer, [rows[i] for i in batch], stops), strict=True):
            answers[index] = judged(prompts[index], ids, stops, tokenizer)
    model.train(training)
    return ChatScores(stage, sum(map(len, rows)), tuple(answers[index] for index in range(len(prompts))))


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """All tokens that end an answer: those of the model, of the tokenizer, and of the template."""
    own = getattr(model.generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    found = [*own, tokenizer.eos_token_id, end_of_turn(tokenizer)]
    return frozenset(int(token) for token in found if token is not None)


@torch.no_grad()
def _generate(model: Any, tokenizer: Any, rows: Sequence[list[int]], stops: frozenset[int]) -> Iterator[list[int]]:
    """New tokens of each row, up to the end of the longest answer; padding is in front."""
    length = max(map(len, rows))
    ids_BT = torch.full((len(rows), length), pad_id(tokenizer))
    mask_BT = torch.zeros_like(ids_BT)
    for b, row in enumerate(rows):
        ids_BT[b, length - len(row) :] = torch.tensor(row)
        mask_BT[b, length - len(row) :] = 1
    positions = getattr(model.config, "max_position_embeddings", None) or length + NEW_TOKENS
    output_BT = model.generate(
        ids_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        max_new_tokens=max(1, min(NEW_TOKENS, positions - length)),
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        use_cache=True,
        eos_token_id=sorted(stops) or None,
        pad_token_id=pad_id(tokenizer),
    )
    yield from output_BT[:, length:].tolist()


def judged(prompt: ChatPrompt, ids: Sequence[int], stops: frozenset[int], tokenizer: Any) -> ChatAnswer:
    """An answer with the verdict of every rule that its prompt asks for; None for the others."""
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    text = str(tokenizer.decode(list(ids[:end]), skip_special_tokens=True)).strip()
    kept = spoken = None
    if prompt.format is not None:
        check, setting = prompt.format
        kept = FORMATS[check](text, setting)
    if prompt.language is not None:
        spoken = is_language(text.replace(prompt.ask, ""), prompt.language)  # an echo of the question proves nothing
    return ChatAnswer(prompt.ask, text, len(ids) if end is None else end + 1, end is not None, kept, spoken)


def is_language(text: str, code: str) -> bool:
    """Whether a text is in a language: half of its letters in its script, or more of its stop words than of others."""
    if (script := _data()["scripts"].get(code)) is not None:
        letters = [letter for letter in text if letter.isalpha()]
        return 2 * sum(unicodedata.name(letter, "").startswith(script) for letter in letters) > len(letters)
    words = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?", text.lower())
    counts = {language: sum(word in known for word in words) for language, known in stop_words().items()}
    return all(counts[code] > count for language, count in counts.items() if language != code)


def _json(text: str, wanted: Any) -> bool:
    """Valid JSON, in a code fence or not: an object with exactly these keys, or an array of this length."""
    fence = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, re.DOTALL)
    try:
        value = json.loads(fence[1] if fence else text)
    except ValueError:
        return False
    if isinstance(wanted, int):
        return isinstance(value, list) and len(value) == wanted
    return isinstance(value, dict) and set(value) == set(wanted)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _items(text: str, count: int) -> bool:
    lines = _lines(text)
    return len(lines) == count and all(re.match(r"([-*•]|\d+[.)])\s*\S", line) for line in lines)


def _sentences(text: str, count: int) -> bool:
    return len(_lines(text)) == 1 and text[-1:] in ".!?" and len(re.findall(r"[.!?]+(?=\s|$)", text)) == count


def _commas(text: str, count: int) -> bool:
    parts = text.rstrip(".").split(",")
    return len(parts) == count and all(0 < len(part.split()) <= 3 for part in parts) and "\n" not in text


FORMATS: Mapping[str, Callable[[str, Any], bool]] = {
    "json": _json,
    "lines": lambda text, count: len(_lines(text)) == count,
    "items": _items,
    "commas": _commas,
    "words": lambda text, count: len(text.split()) == count,
    "choice": lambda text, allowed: text.lower().rstrip(".!") in allowed,
    "number": lambda text, _: re.fullmatch(r"\d+\.?", text) is not None,
    "upper": lambda text, _: text.isupper(),
    "lower": lambda text, _: text.islower(),
    "sentences": _sentences,
    "begins": lambda text, word: re.match(rf"{re.escape(word)}\b", text) is not None,
    "ends": lambda text, word: text.endswith(word),
}
"""Checks of a format by their names in the file of prompts: answer and setting to whether it is kept."""
