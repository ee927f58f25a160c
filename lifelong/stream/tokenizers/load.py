"""A tokenizer from a checkpoint or a run, and its fingerprint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from lifelong.lm.foreign import loading
from lifelong.stream.tokenizers.encoding import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# beside the tokenizer of a model that was taught by several vocabularies: a folder for each domain
DOMAIN_TOKENIZERS = "domain_tokenizers"


def copy_domain_tokenizers(source: Path, out: Path) -> None:
    """Take along what reads the domains of a checkpoint, where teachers of several vocabularies were merged in it."""
    if (source / DOMAIN_TOKENIZERS).is_dir():
        shutil.copytree(source / DOMAIN_TOKENIZERS, out / DOMAIN_TOKENIZERS)


# what transformers keeps of the place and of the environment (HF_HUB_OFFLINE) that a tokenizer was loaded in, and would
# write into tokenizer_config.json again
_OF_THE_LOADING = ("name_or_path", "is_local", "local_files_only", "special_tokens_map_file", "tokenizer_file")

END_OF_TEXT, PAD, MASK = "<|endoftext|>", "<|pad|>", "<|mask|>"


def load_tokenizer(
    path_or_id: str | Path, domain: str | None = None, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, of a `tokenizer.json` folder without config, or of a hub model.

    What it is saved as does not depend on where, and in which environment, it was loaded.

    Args:
        path_or_id: where it is.
        domain: name of what it is to read; of a model that was merged from several teachers, the domain's own one.
        revision: commit hash or tag of a hub model.

    Raises:
        InputError: there is none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(path_or_id)
    if domain is not None and (folder / DOMAIN_TOKENIZERS / domain / "tokenizer.json").is_file():
        folder = folder / DOMAIN_TOKENIZERS / domain
        path_or_id = folder
    with loading("tokenizer", path_or_id):
        if (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
            present = Path(folder / "tokenizer.json").read_text(encoding="utf-8")
            specials = {token["content"] for token in json.loads(present)["added_tokens"]}
            named = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PAD, "mask_token": MASK}
            return PreTrainedTokenizerFast(
                tokenizer_file=str(folder / "tokenizer.json"),
                clean_up_tokenization_spaces=False,
                **{role: token for role, token in named.items() if token in specials},
            )
        tokenizer = AutoTokenizer.from_pretrained(str(path_or_id), revision=revision or "main", trust_remote_code=False)
    for key in _OF_THE_LOADING:
        tokenizer.init_kwargs.pop(key, None)
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of everything that decides which ids a text gets."""
    return Encoder(tokenizer).fingerprint
