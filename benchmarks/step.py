"""A whole training step, form by form, in one process: forward, backward, optimizer.

Rows are packed with documents of random lengths. Forms take turns; a ratio is the median of those within a turn, to
transformers' own Trainer on the same rows (`Trainer`) and to ours without inheritance (`plain`), with the lowest and
the highest. Times are processor seconds of one thread; on a GPU wall seconds between synchronisations, beside tokens a
second, and the share of the peak that `--peak-flops` names. Memory is the rise of its peak over what was there. `probe`
is the evaluation of as many tokens as a step has. Then the head alone: operations of a chunk (kernels, on a GPU), and
what TRL and Liger take for theirs where they are installed.

    python -m benchmarks.step [--length 256 1024 2048] [--objective clm|mlm] [--model CHECKPOINT] [--rounds 5]
    python -m benchmarks.step --device cuda --bf16 --width 1024 --layers 24 --vocab 128256 --peak-flops 989e12
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.attention import segments
from benchmarks.inherit import Peak
from lifelong.inherit import CachedTarget, OnlineTarget, ki_loss, loss_head, predicted_nats
from lifelong.inherit.cache import CacheSettings, CacheWriter, TargetCache, fill_cache
from lifelong.inherit.distiller import Distiller
from lifelong.inherit.schedule import make_schedule
from lifelong.inherit.sparse import TauSampler, scheme_to_json
from lifelong.inherit.teachers.cache import CachedTeacher
from lifelong.inherit.teachers.memory import MemoryTeacher, StoredTeacher
from lifelong.inherit.teachers.model import OnlineTeacher
from lifelong.inherit.write_cache import block_probabilities
from lifelong.lm import fused
from lifelong.lm.batch import WithHostArrays
from lifelong.lm.checkpoint import load_model
from lifelong.lm.flops import training_flops_per_token
from lifelong.lm.packed import block_mask
from lifelong.methods._importances import Anchor, weights_of
from lifelong.methods._method import Method
from lifelong.methods.ewc import Plugin as ElasticWeights
from lifelong.train.arguments import training_arguments
from lifelong.train.phase import TrainingInputs
from lifelong.train.stage_trainer import StageTrainer

MEAN_DOCUMENT = 170.0
Batch = dict[str, Any]


def packed_rows(options: argparse.Namespace, length: int, vocab: int) -> Batch:
    """Random tokens in documents of random lengths; the second half of the rows is replay."""
    generator = torch.Generator().manual_seed(0)
    rows = max(1, options.tokens // length)
    ids = torch.randint(10, vocab, (rows, length), generator=generator)
    numbers = segments(rows, length, MEAN_DOCUMENT, generator)
    first = torch.ones_like(numbers, dtype=torch.bool)
    first[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    place = torch.arange(length).expand_as(numbers)
    labels = ids.clone()
    if options.objective == "mlm":
        hidden = torch.rand(ids.shape, generator=generator) < 0.15
        labels[~hidden] = -100
        ids[hidden] = 4
    else:
        labels[first] = -100
    batch = {
        "input_ids": ids, "labels": labels, "segment_ids": numbers,
        "position_ids": place - torch.where(first, place, 0).cummax(1).values,
        "is_replay": torch.arange(rows) >= rows // 2, "domain_ids": torch.zeros(rows, dtype=torch.long),
    }  # fmt: skip
    kept = WithHostArrays(lambda rows: rows)(batch)
    return {name: value.to(options.device) if isinstance(value, Tensor) else value for name, value in kept.items()}


def model_of(options: argparse.Namespace, length: int) -> Any:
    """A checkpoint, or a random LLaMA (BERT without dropout for mlm)."""
    if options.model is not None:
        return load_model(options.model, options.objective).to(options.device)
    torch.manual_seed(0)
    causal = options.objective == "clm"
    quiet = {} if causal else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.AutoConfig.for_model(
        "llama" if causal else "bert", vocab_size=options.vocab, hidden_size=options.width,
        intermediate_size=4 * options.width, num_hidden_layers=options.layers, num_attention_heads=options.width // 64,
        max_position_embeddings=length, **quiet,
    )  # fmt: skip
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
    return auto.from_config(config).to(options.device)


def stored(options: argparse.Namespace, model: Any, batch: Batch, folder: Path) -> TargetCache:
    """What the model says about the batch, on disk; keys and decoding are part of a step."""
    length = batch["input_ids"].shape[1]
    settings = CacheSettings(
        scheme_to_json(TauSampler()), 1.0, model.config.vocab_size, "t", "m", options.objective, length
    )
    teacher = OnlineTeacher(model, options.objective)
    with torch.inference_mode():
        fill_cache(CacheWriter(folder, settings), [batch], lambda part: block_probabilities(teacher, part, 1.0))
    return TargetCache(folder)


def anchored(model: Any) -> ElasticWeights:
    """EWC with one anchor."""
    method = ElasticWeights()
    weights = weights_of(model)
    method.anchors = [Anchor(weights, {name: torch.ones_like(value) for name, value in weights.items()})]
    return method


def forms_of(options: argparse.Namespace, batch: Batch, folder: Path) -> tuple[Any, dict[str, Callable[[], None]]]:
    """The model, and every form of a step on it."""
    length, objective = batch["input_ids"].shape[1], options.objective
    model = model_of(options, length).train()
    section = {"use_cpu": options.device == "cpu", "bf16": options.bf16, "learning_rate": 0.0}
    arguments = training_arguments(section, output_dir=folder / "out", max_steps=10**6, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    items = (batch["labels"] != -100).sum()

    def trainer(distiller: Distiller | None = None, methods: tuple[Method, ...] = ()) -> StageTrainer:
        phase = TrainingInputs("train", [0], dict, objective, items.item(), distiller, methods, domains=("one",))
        made = StageTrainer(model, arguments, phase)
        made.state.max_steps = 10**6
        return made

    def taught(teacher: Any, **settings: Any) -> StageTrainer:
        return trainer(Distiller(teacher, make_schedule("constant", alpha=0.5), **settings))

    def online() -> OnlineTeacher:
        return OnlineTeacher(copy.deepcopy(model), objective)

    def with_trainer(made: Any, rows: Batch) -> Callable[[], None]:
        def step() -> None:
            with loss_head(model, objective):
                made.training_step(model, dict(rows), num_items_in_batch=items)
            made.terms_due = True
            optimizer.step()
            optimizer.zero_grad()

        return step

    fusing = Fused()

    # what transformers is given for packed rows: restarting positions, or the mask itself
    stock_rows = {name: batch[name] for name in ("input_ids", "labels")}
    if objective == "mlm":
        stock_rows["attention_mask"] = block_mask(batch["segment_ids"], torch.float32)
    else:
        stock_rows["position_ids"] = batch["position_ids"]

    def bare() -> None:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            cache = {} if objective == "mlm" else {"use_cache": False}
            loss = model(**stock_rows, **cache).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}

    def probe() -> None:
        model.eval()
        predicted_nats(model, tensors, objective)
        model.train()

    targets = stored(options, copy.deepcopy(model), tensors, folder / "targets")
    cached = CachedTeacher(targets, tokenizer="t", temperature=1.0, objective=objective, sequence_length=length)
    stock = transformers.Trainer(model, arguments, train_dataset=[0])
    forms = {
        "bare loop": bare,
        "Trainer": with_trainer(stock, stock_rows),
        "plain": with_trainer(trainer(), batch),
        "KI, online, tau 1": with_trainer(taught(online()), batch),
        "KI, online, tau 2": with_trainer(taught(online(), temperature=2.0), batch),
        "plain, fused": fusing(with_trainer(trainer(), batch)),
        "KI, tau 1, fused": fusing(with_trainer(taught(online()), batch)),
        "KI, tau 2, fused": fusing(with_trainer(taught(online(), temperature=2.0), batch)),
        "KI, Bernoulli 0.5": with_trainer(taught(online(), bernoulli=True), batch),
        "KI, on replay": with_trainer(taught(online(), on="replay"), batch),
        "KI, cached": with_trainer(taught(cached), batch),
        "self-generated memory": with_trainer(taught(MemoryTeacher(StoredTeacher([targets])), on="replay"), batch),
        "EWC, one anchor": with_trainer(trainer(methods=(anchored(model),)), batch),
        "probe": probe,
    }
    return model, {name: form for name, form in forms.items() if options.only in name or name in ("Trainer", "plain")}


class Fused:
    """Steps whose losses take the compiled pass, which is compiled once for all of them."""

    def __init__(self) -> None:
        self.compiled = torch.compile(fused.dense_gradient)

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """The step with it."""

        def compiled() -> None:
            fused._compiled = self.compiled
            step()
            fused._compiled = None

        return compiled


def clock_of(options: argparse.Namespace) -> Callable[[], float]:
    """Processor seconds; on a GPU wall seconds, once it is done."""

    def clock() -> float:
        if options.device != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def measured(options: argparse.Namespace, length: int) -> dict[str, Any]:
    """Ratios, memory and speed at one length."""
    clock = clock_of(options)
    vocab = (
        options.vocab if options.model is None else transformers.AutoConfig.from_pretrained(options.model).vocab_size
    )
    batch = packed_rows(options, length, vocab)
    with tempfile.TemporaryDirectory() as folder:
        model, forms = forms_of(options, batch, Path(folder))
        taken: dict[str, list[float]] = {name: [] for name in forms}
        peaks: dict[str, float] = {}
        for turn, (name, form) in itertools.product(range(options.rounds + 1), forms.items()):
            if turn == 0:
                if "fused" in name:
                    form()  # compiles
                with Peak(options.device) as peak:
                    form()
                peaks[name] = peak.megabytes
                continue
            started = clock()
            form()
            taken[name].append(clock() - started)
    tokens, flops = batch["input_ids"].numel(), training_flops_per_token(model, length, options.objective)
    rows = {}
    for name, seconds in taken.items():
        ratios = {}
        for base in ("Trainer", "plain"):
            found = sorted(own / other for own, other in zip(seconds, taken[base], strict=True))
            ratios[f"to {base}"] = [round(value, 3) for value in (statistics.median(found), found[0], found[-1])]
        speed = tokens / statistics.median(seconds)
        rows[name] = {**ratios, "peak MB": round(peaks[name]), "tokens/s": round(speed, 1)}
        if options.peak_flops:
            rows[name]["MFU"] = round(speed * flops / options.peak_flops, 3)
        line = "   ".join(f"{key} {value}" for key, value in rows[name].items())
        print(f"T {length:5}  {name:22} {line}", flush=True)
    return rows


class Operations(TorchDispatchMode):
    """Counts what is computed, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and compute."""
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def operations_of_a_chunk(options: argparse.Namespace) -> dict[str, int]:
    """Operations that one chunk of rows more costs in the head, forward with gradients."""
    rows, kept, vocab = 64, 12, 1024  # a chunk that is one tile on a CPU too
    hidden, teacher = (torch.randn(2 * rows, options.width, device=options.device) for _ in range(2))
    weight = torch.randn(vocab, options.width, device=options.device) / options.width**0.5
    labels = torch.randint(vocab, (2 * rows,), device=options.device)
    ids = torch.randint(vocab, (2 * rows, kept), device=options.device)
    cached = CachedTarget(ids, torch.full((2 * rows, kept), 1 / kept, device=options.device))
    found = {}
    for name, target, tau in (
        ("CE", None, 1.0),
        *((f"KI online, tau {tau:g}", OnlineTarget(teacher, weight), tau) for tau in (1.0, 2.0, 3.0)),
        ("KI cached", cached, 1.0),
    ):
        counts = []
        for chunk in (2 * rows, rows):
            leaves = [value.clone().requires_grad_() for value in (hidden, weight)]

            def head(leaves: list[Tensor] = leaves, chunk: int = chunk, target: Any = target, tau: float = tau) -> None:
                ki_loss(
                    *leaves, labels, targets=target, alpha=0.5 if target else 0.0, temperature=tau, chunk_tokens=chunk
                )

            if options.device == "cuda":
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                    head()
                counts.append(sum(event.count for event in profile.key_averages()))
            else:
                with Operations() as operations:
                    head()
                counts.append(operations.count)
        found[name] = counts[1] - counts[0]
        print(f"operations of a chunk  {name:22} {found[name]}", flush=True)
    return found


def head_forms(options: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """Forward and backward of CE and KL to a teacher, in equal parts at tau 1, from hidden states; TRL's has no CE."""
    dtype = torch.bfloat16 if options.bf16 else torch.float32

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, device=options.device, dtype=dtype).requires_grad_()

    hidden, weight = some(options.tokens, options.width), some(options.vocab, options.width)
    teacher_hidden, teacher = some(options.tokens, options.width).detach(), some(options.vocab, options.width).detach()
    weight.data /= options.width**0.5
    teacher /= options.width**0.5
    labels = torch.randint(options.vocab, (options.tokens,), device=options.device)
    target = OnlineTarget(teacher_hidden, teacher)

    def taken(loss: Tensor) -> Tensor:
        loss.backward()
        hidden.grad = weight.grad = None
        return loss.detach()

    forms = {"ours": lambda: taken(ki_loss(hidden, weight, labels, targets=target, alpha=0.5))}
    if importlib.util.find_spec("trl"):
        divergence = importlib.import_module("trl.kernels.chunked_divergence").ChunkedDivergenceFunction
        forms["TRL, KL alone"] = lambda: taken(
            divergence.apply(hidden, weight, None, teacher_hidden, teacher, None, 0.0)[0].mean()
        )
    if importlib.util.find_spec("liger_kernel"):
        losses = importlib.import_module("liger_kernel.chunked_loss")
        liger = losses.LigerFusedLinearJSDLoss(beta=0.0, compiled=options.device == "cuda")
        forms["Liger"] = lambda: taken(liger(hidden, weight, teacher_hidden, teacher, labels))
    return forms


def heads_compared(options: argparse.Namespace) -> dict[str, Any]:
    """Time of each head over ours, and the loss it finds."""
    clock, forms = clock_of(options), head_forms(options)
    losses = {name: float(form()) for name, form in forms.items()}
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for _, (name, form) in itertools.product(range(options.rounds), forms.items()):
        started = clock()
        form()
        taken[name].append(clock() - started)
    found = {}
    for name, seconds in taken.items():
        ratios = sorted(own / other for own, other in zip(seconds, taken["ours"], strict=True))
        found[name] = {"to ours": [round(value, 3) for value in (statistics.median(ratios), ratios[0], ratios[-1])]}
        print(f"head alone  {name:22} {found[name]}   loss {losses[name]:.4f}", flush=True)
    return found


def main() -> None:
    """Print a table a length, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", nargs="*", type=int, default=[256, 1024, 2048])
    parser.add_argument("--tokens", type=int, default=2048, help="of a step, at least one row")
    parser.add_argument("--objective", choices=["clm", "mlm"], default="clm")
    parser.add_argument("--model", help="a checkpoint; otherwise random weights of the sizes below")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=16384)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast")
    parser.add_argument("--peak-flops", type=float, help="of the device, for the MFU")
    parser.add_argument("--only", default="", help="forms whose name has this in it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/step.json"))
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if options.device == "cpu":
        torch.set_num_threads(1)
    result: dict[str, Any] = {"options": {key: str(value) for key, value in vars(options).items()}}
    result |= {str(length): measured(options, length) for length in options.length}
    result |= {"operations of a chunk": operations_of_a_chunk(options), "heads": heads_compared(options)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
