"""Growth of small models with odd sizes and settings: how far the function moves on short and on long texts.

Odd widths, one head of two channels, biases everywhere, every type of rotary table, windows, soft caps, tied and
untied heads, norms without parameters. Every case is saved in float64, grown from folder to folder without the check of
the command, read back, and compared with its source in true float64: 33 tokens, the same padded and through the cache,
and 150 tokens, which is beyond the positions that the models were made for. The gap is the largest difference of logits
over the largest logit.

    python -m benchmarks.growth_odd_shapes [--only TEXT] [--out benchmarks/out/growth_odd_shapes.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from lifelong.errors import LifelongError
from lifelong.expand import expand_checkpoint, true_float64
from lifelong.expand.lazy import model_class_of
from lifelong.expand.verify import cached, padded, plain
from tests.expand.models import tiny
from tests.expand.test_positions import TABLES

SHORT, LONG = 33, 150
BIASES = {"attention_bias": True, "mlp_bias": True}
TABLES_OF: dict[str, dict[str, Any]] = dict(TABLES)
ROTARY = {
    **TABLES_OF,
    "yarn, mscale": {**TABLES_OF["yarn"], "rope_type": "yarn", "mscale": 0.7, "mscale_all_dim": 0.9},
    "default": {},
}
MIX: dict[str, int] = {
    "hidden_size": 36,
    "heads": 6,
    "kv_heads": 3,
    "intermediate_size": 53,
    "layers": 3,
    "vocab_size": 70,
}
SEVEN = {
    "heads": 7,
    "kv_heads": 1,
    "head_dim": 10,
    "hidden_size": 35,
    "intermediate_size": 75,
    "tie_word_embeddings": True,
}
Case = tuple[str, str, dict[str, Any], dict[str, int]]
"""Group, family, settings of the old model, sizes of the new one."""


def cases() -> Iterator[Case]:
    """All of them."""
    for name, table in ROTARY.items():
        settings = {**BIASES, "rope_parameters": {"rope_type": name, "rope_theta": 1e4, **table}}
        for group, size in {
            "all axes": MIX, "head 8 -> 16": {"head_dim": 16}, "head 8 -> 24": {"head_dim": 24},
            "head 8 -> 12": {"head_dim": 12}, "positions 64 -> 256": {"positions": 256},
        }.items():  # fmt: skip
            yield f"LLaMA with biases, {group}, seven rotary tables", "llama", settings, size
    for size in (
        {"hidden_size": 42}, {"hidden_size": 45}, {"hidden_size": 1001}, {"kv_heads": 7}, {"heads": 9, "kv_heads": 3},
        {"heads": 14, "kv_heads": 2}, {"heads": 21, "kv_heads": 3}, {"head_dim": 14}, {"head_dim": 30},
        {"vocab_size": 3050}, {"layers": 17}, {"experts": 3}, {"experts": 5},
    ):  # fmt: skip
        yield "LLaMA tied, 7 heads of 10, 1 group, width 35", "llama", SEVEN, size
    for family, window in itertools.product(("mistral", "qwen2"), (6, 7)):
        yield (
            "windows of 6 and 7",
            family,
            {"sliding_window": window, "use_sliding_window": True, "max_window_layers": 1},
            MIX,
        )
    yield "Qwen3 with yarn and biases", "qwen3", {
        "attention_bias": True, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, **TABLES_OF["yarn"]},
    }, MIX  # fmt: skip
    for family in ("llama", "mistral", "qwen3"):
        yield "experts from a dense model", family, {}, {"experts": 6, "layers": 3}
    for experts in (10, 15):
        yield "Qwen3-MoE 5 -> 10, 15 experts, no norm of probabilities", "qwen3_moe", {
            "experts": 5, "experts_per_token": 2, "norm_topk_prob": False,
        }, {"experts": experts}  # fmt: skip
    yield "Mixtral 3 -> 6, top 1", "mixtral", {"experts": 3, "experts_per_token": 1}, {"experts": 6}
    gemma: dict[str, dict[str, Any]] = {
        "gemma": {},
        "gemma2": {"query_pre_attn_scalar": 13, "sliding_window": 5},
        "gemma3": {"layers": 7},
    }
    for (family, settings), size in itertools.product(
        gemma.items(),
        ({"hidden_size": 36}, {"heads": 6, "kv_heads": 3}, {"head_dim": 16}, {"layers": 9}, {"vocab_size": 70}),
    ):
        group = "width" if "hidden_size" in size else "heads, layers, tokens"
        yield f"Gemma 1, 2, 3: {group}", family, settings, size
    for family, settings, size in (
        ("olmo2", {}, MIX), ("gpt_neox", {"use_parallel_residual": False}, {"hidden_size": 36, "heads": 6}),
        ("gpt_neox", {"tie_word_embeddings": True}, {"hidden_size": 36, "heads": 6}),
        ("gpt_neox", {"attention_bias": False}, {"layers": 5}),
        ("gpt2", {"tie_word_embeddings": False}, {"hidden_size": 42, "heads": 7}),
        ("gpt2", {"n_inner": 41}, {"layers": 5}),
        ("opt", {"enable_bias": False}, {"hidden_size": 42, "heads": 7}),
        ("opt", {"tie_word_embeddings": False}, {"hidden_size": 42, "heads": 7}),
        ("phi3", {"partial_rotary_factor": 0.5}, {"head_dim": 16}),
    ):  # fmt: skip
        yield "OLMo 2, GPT-NeoX, GPT-2, OPT, Phi-3", family, settings, size
    for family, settings in (
        ("bert", {"layer_norm_eps": 1e-2, "tie_word_embeddings": False}), ("roberta", {}),
        ("modernbert", {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    ):  # fmt: skip
        for size in ({"hidden_size": 48}, {"intermediate_size": 53}, {"layers": 5}):
            yield "BERT, RoBERTa, ModernBERT", family, settings, size
    yield "1 layer, 1 head of 2 channels, 1 neuron", "llama", {
        "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 2, "hidden_size": 2, "intermediate_size": 1,
    }, {"layers": 30, "intermediate_size": 3, "heads": 4, "hidden_size": 8}  # fmt: skip
    yield "once refused or wrong", "gpt2", {"scale_attn_weights": False}, {"hidden_size": 96, "heads": 4}
    yield "once refused or wrong", "opt", {"layer_norm_elementwise_affine": False}, {"hidden_size": 60, "heads": 10}
    longrope: dict[str, Any] = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        **TABLES_OF["longrope"],
        "original_max_position_embeddings": 32,
    }
    phi3 = {"rope_parameters": longrope, "original_max_position_embeddings": 32, "hidden_size": 32}
    for wider in ({"positions": 400}, {"hidden_size": 36}, {"hidden_size": 64, "heads": 8}):
        yield "once refused or wrong", "phi3", phi3, wider


def gaps(case: Case, folder: Path) -> tuple[float, float | None]:
    """On short and on long texts; None where the model takes no long ones."""
    _, family, settings, sizes = case
    model = tiny(family, **settings).double()
    model.config.dtype = torch.float64
    model.save_pretrained(folder / "small")
    model = loaded(folder / "small", type(model))  # tables that are not stored are made in float64, as the grown ones
    expand_checkpoint(folder / "small", folder / "grown", targets=sizes, verify="none")
    grown = loaded(folder / "grown", type(model))
    generator = torch.Generator().manual_seed(3)
    ids_BT = torch.randint(3, 61, (2, LONG), generator=generator)
    runs = [plain, padded, *([cached] if model.can_generate() else [])]
    short = [gap(model, grown, run, ids_BT[:, :SHORT]) for run in runs]
    beyond = model.config.max_position_embeddings >= LONG or hasattr(model.config, "rope_parameters")
    return max(short), gap(model, grown, plain, ids_BT) if beyond else None


def loaded(folder: Path, model_class: Any) -> Any:
    """A grown model; one with more experts is of another class."""
    config = AutoConfig.from_pretrained(folder)
    config._experts_implementation = "eager"
    kind = model_class if model_class.config_class is type(config) else model_class_of(config, "clm")
    return kind.from_pretrained(folder, config=config, dtype=torch.float64).eval()


@torch.no_grad()
def gap(small: Any, grown: Any, run: Any, ids_BT: torch.Tensor) -> float:
    """Largest difference of logits over the largest logit, in true float64."""
    with true_float64():
        before, after = (run(model, ids_BT) for model in (small, grown))
    return float((after[..., : before.shape[-1]] - before).abs().max() / before.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="groups with this text in their names")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/growth_odd_shapes.json"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    disable_progress_bar()
    set_verbosity_error()
    found: dict[str, list[dict[str, Any]]] = {}
    for case in cases():
        if options.only not in case[0]:
            continue
        row: dict[str, Any] = {"family": case[1], "settings": case[2], "sizes": case[3]}
        with tempfile.TemporaryDirectory() as name:
            try:
                row["short"], row["long"] = gaps(case, Path(name))
            except LifelongError as error:
                row["refused"] = str(error)
        found.setdefault(case[0], []).append(row)
    print("| what | cases | refused | short | long |\n|---|---:|---:|---:|---:|")
    for group, rows in found.items():
        grown = [row for row in rows if "refused" not in row]
        measured = [[row[kind] for row in grown if row[kind] is not None] for kind in ("short", "long")]
        worst = [f"{max(gaps):.0e}" if gaps else "-" for gaps in measured]
        print(f"| {group} | {len(rows)} | {len(rows) - len(grown)} | {worst[0]} | {worst[1]} |")
    for rows in found.values():
        for row in rows:
            if "refused" in row:
                print(f"{row['family']} {row['sizes']}: {row['refused']}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
