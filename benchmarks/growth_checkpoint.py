"""What growing a real checkpoint does to its predictions, by number format: KL, top-1 agreement, loss.

The checkpoint is written in float32 and in bfloat16, grown in width and in depth from folder to folder, and read back.
Both models compute in float32 with the weights as they are stored, on the same text, so that what is seen is the
rounding of stored weights alone.

    python -m benchmarks.growth_checkpoint CHECKPOINT [--text FILE] [--tokens 256] [--dtypes bfloat16]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from lifelong.expand import expand_checkpoint

SHAPES: dict[str, dict[str, int]] = {
    "wider, 576 -> 648": {"hidden_size": 648},
    "wider, more heads": {"hidden_size": 672, "heads": 12, "kv_heads": 4},
    "deeper, 30 -> 34": {"layers": 34},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, default=Path("README.md"))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--verify", default="none", choices=["full", "quick", "none"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/growth_checkpoint.json"))
    options = parser.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.checkpoint)
    ids = tokenizer(options.text.read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, : options.tokens]
    rows = []
    print(f"{'dtype':9} {'grown':18} {'KL':>9} {'top-1':>7} {'loss':>9} {'of grown':>9} {'seconds':>8}")
    for dtype in (getattr(torch, name) for name in options.dtypes):
        with tempfile.TemporaryDirectory() as name:
            source = Path(name) / "source"
            model = transformers.AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=dtype)
            model.save_pretrained(source)
            before = log_probabilities(source, ids)
            for label, shape in SHAPES.items():
                started = time.perf_counter()
                expand_checkpoint(source, Path(name) / label, targets=shape, verify=options.verify)
                seconds = time.perf_counter() - started
                row = compare(before, log_probabilities(Path(name) / label, ids), ids)
                rows.append({"dtype": str(dtype), "grown": label, **row, "seconds": seconds})
                print(f"{str(dtype).removeprefix('torch.'):9} {label:18} {row['kl']:9.1e} {row['top1']:7.1%} "
                      f"{row['before']:9.5f} {row['after']:9.5f} {seconds:8.1f}", flush=True)  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


def log_probabilities(folder: Path, ids_BT: torch.Tensor) -> torch.Tensor:
    """`[B,T,V]`, computed in float32 from the weights as they are stored."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").float().eval()
    with torch.no_grad():
        log_p: torch.Tensor = model(ids_BT).logits.double().log_softmax(-1)
    return log_p


def compare(before: torch.Tensor, after: torch.Tensor, ids_BT: torch.Tensor) -> dict[str, float]:
    """KL(before || after) in nats, agreement of the first choice, and both losses."""
    loss = [float(-log_p[:, :-1].gather(-1, ids_BT[:, 1:, None]).mean()) for log_p in (before, after)]
    return {
        "kl": float((before.exp() * (before - after)).sum(-1).mean()),
        "top1": float((before.argmax(-1) == after.argmax(-1)).double().mean()),
        "before": loss[0],
        "after": loss[1],
    }


if __name__ == "__main__":
    main()
