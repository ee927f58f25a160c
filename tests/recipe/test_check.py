"""What the libraries would refuse in the middle of a run is refused when the recipe is read: no folder is made."""

import time

import pytest

from lifelong.errors import ExpansionError, InputError
from lifelong.expand import new_config
from lifelong.pipeline.loop import run_recipe
from lifelong.recipe.check import check_launch, check_recipe
from lifelong.recipe.files import apply_override, parse_recipe
from tests.support import recipe_data

REFUSED = {
    "train.hub_token=hf_secret": "a secret would be written",
    "train.push_to_hub=true": "train.push_to_hub: cannot be used here",
    "train.use_liger_kernel=true": "train.use_liger_kernel: cannot be used here",
    "train.eval_on_start=true": "train.eval_on_start: cannot be used here",
    "train.label_smoothing_factor=0.1": "train.label_smoothing_factor: cannot be used here",
    "train.parallelism_config={a: 1}": "train.parallelism_config: cannot be used here",
    "train.per_device_train_batch_size=0": "is at least 1, not 0",
    "train.per_device_train_batch_size=10000000000000": "is at most 1e\\+06",
    "train.gradient_accumulation_steps=0": "is at least 1, not 0",
    "train.gradient_accumulation_steps=1.5": "is a whole number, not 1.5",
    "train.adam_epsilon=0": "train.adam_epsilon: is at least",
    "train.adam_epsilon=nan": "train.adam_epsilon: is a finite number, not 'nan'",
    "train.max_grad_norm=nan": "train.max_grad_norm: is a finite number",
    "train.save_steps=nan": "train.save_steps: is a finite number",
    "train.save_steps=-1": "train.save_steps: is at least",
    "train.learning_rate=inf": "train.learning_rate: is a finite number, not 'inf'",
    "train.learning_rate=-1": "train.learning_rate: is at least 0",
    "train.dataloader_num_workers=abc": "train.dataloader_num_workers: is a number, not 'abc'",
    "train.adam_beta1=''": "train.adam_beta1: is a number, not ''",
    "train.adam_beta2=2": "train: Invalid beta parameter at index 1",
    "train.bf16=maybe": "train.bf16: is true or false, not 'maybe'",
    "train.optim=adamw_bnb_4bit": "train.optim: there is no .adamw_bnb_4bit.",
    "train.optim=best": "train.optim: there is no 'best'. Nearest: ",
    "train.optim_args=x": "train: ",
    "train.lr_scheduler_type=fast": "train.lr_scheduler_type: there is no 'fast'. Nearest: ",
    "train.lr_scheduler_kwargs={a: 1}": "train: .*'a'",
    "train.dataloader_persistent_workers=true": "train: persistent_workers option needs num_workers > 0",
    "train.dataloader_multiprocessing_context=x": "train: ",
    "train.deepspeed=/nonexist": "train.deepspeed: needs deepspeed, .*pip install deepspeed",
    "train.report_to=neptune": "train.report_to: neptune is not installed here: pip install neptune",
    "train.report_to=[wandbb]": "train.report_to: there is no tracker 'wandbb'; did you mean 'wandb'",
    "train.fsdp_config=1": "train.fsdp_config: is a mapping or the name of a file, not 1",
    "train.accelerator_config={split_batches: true}": "train.accelerator_config: cannot be used here",
    "train.average_tokens_across_devices=false": "train.average_tokens_across_devices: is decided by the loop",
    "train.eval_steps=3": "train.eval_steps: is decided by `evaluate:`",
    "train.hub_model_id=a/b": "train.hub_model_id: cannot be used here",
    "train.local_rank=1": "train.local_rank: is decided by the launcher",
    "train.dataloader_in_order=false": "train.dataloader_in_order: is decided by the stream's own order",
    "train.enable_jit_checkpoint=true": "train.enable_jit_checkpoint: is decided by the loop, which saves on SIGTERM",
    "train.lr_scheduler_type=reduce_lr_on_plateau": "reduce_lr_on_plateau follows an evaluation inside of Trainer",
    "train.save_strategy=best": "train.save_strategy: best follows an evaluation inside of Trainer",
    "train.gradient_checkpointing_kwargs={foo: 1}": "gradient_checkpointing_kwargs: there is no setting 'foo'",
    "train.log_level=loud": "train.log_level: there is no level 'loud'",
    "train={optim: galore_adamw, optim_target_modules: [q]}": "galore_adamw needs galore_torch, .*: pip install galore",
    "stages.1.train={optim: schedule_free_adamw}": r"stages\[1\].train.optim: .*pip install schedulefree",
    "train.lr_scheduler_kwargs=[1]": "train.lr_scheduler_kwargs: is a mapping or the name of a file",
    "train.report_to=true": "train.report_to: there is no tracker True",
    "stages.1.train={optim: best}": r"stages\[1\].train.optim: there is no 'best'",
    "stages.1.train={adam_epsilon: 0}": r"stages\[1\].train.adam_epsilon: is at least",
    "model.layers=10000000000000": "model: layers: 10000000000000 is more than any model has",
    "model.hidden_size=10000000000000": "model: hidden_size: 10000000000000 is more than",
    "model={family: llama, layers: 9999, hidden_size: 262144, heads: 2}": "model: some .* parameters are more",
    "model.heads=10000000000000": "model: heads: 10000000000000 is more than any model has",
    "model.kv_heads=5": "model: kv_heads: 5 key-value heads do not divide 2 heads",
    "model.config.num_hidden_layers=10000000000000": "model: layers: 10000000000000 is more than",
    "model.config.tie_word_embeddings=abc": "model: transformers refuses the configuration: .*tie_word_embeddings",
    "model.config.rms_norm_eps=-1": "model: ",
    "model.config.hidden_act=-1": "model: transformers refuses the configuration: .*hidden_act",
    "model.config.hidden_act=swish9": "model: ",
    "model.config.dtype=float99": "model: ",
    "model.config.torch_dtype=[]": "model: ",
    "model.config.vocab_size=99": "model.config.vocab_size: is decided by the tokenizer",
    "model.config.layers=3": "model.config.layers: is decided by model.layers",
    "model.config.max_position_embeddings=1": "sequence_length: 32 is longer than the 1 positions of 'model.config'",
    "model.config.num_attention_heads=7": "model: ",
    "objective=mlm": "model: .*[Uu]nrecognized configuration class",
    "stages.1.expand={vocab_size: 400}": r"stages\[1\].expand: vocab_size: new tokens take probability",
    "stages.1.expand={layers: 10000000000000}": r"stages\[1\].expand: layers: 10000000000000 is more than",
    "stages.1.expand={heads: 10000000000000, kv_heads: 3}": r"stages\[1\].expand: heads: 10000000000000 is more than",
}  # fmt: skip
"""Change of a good recipe -> what is said."""


def changed(cards, *overrides):
    data = recipe_data(cards)
    for override in overrides:
        apply_override(data, override)
    return parse_recipe(data)


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_work_is_refused_before_there_is_a_folder(cards, tmp_path, override):
    recipe = changed(cards, override)
    before = time.process_time()
    with pytest.raises(InputError, match=REFUSED[override]):
        check_recipe(recipe)
    assert time.process_time() - before < 5
    with pytest.raises(InputError):
        run_recipe(recipe, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_expectations_that_cannot_be_checked_are_found_when_the_recipe_is_read(cards):
    for wrong in ("'%'", "about", "-1", "nan", "-5%"):
        with pytest.raises(InputError, match=r"expect\.ap\.tolerance: .*a number of 0 or more"):
            changed(cards, f"expect={{ap: {{value: 1, tolerance: {wrong}}}}}")
    assert changed(cards, "expect={ap: {value: 1, tolerance: 0.5%}}").expect["ap"].tolerance == "0.5%"


def test_no_number_of_a_recipe_is_infinite(cards):
    for override in (
        "inherit.alpha=nan",
        "replay.share=nan",
        "expect={ap: {value: nan}}",
        "sequence_length=10000000000000",
    ):
        with pytest.raises(InputError, match=override.split("=")[0]):
            changed(cards, override)


def test_a_launch_refuses_what_it_cannot_read(cards, tmp_path):
    (tmp_path / "zero.json").write_text("[")
    for override in (
        "train.fsdp_config=abc",
        "train.fsdp_config={version: two}",
        f"train.deepspeed={tmp_path}/zero.json",
    ):
        with pytest.raises(InputError, match="train: "):
            check_launch(changed(cards, override, "train.fsdp=full_shard"))


def test_a_plan_needs_neither_the_device_nor_the_trackers(cards):
    recipe = changed(cards, "train.report_to=neptune", "train.tf32=true")
    check_recipe(recipe, here=False)
    with pytest.raises(InputError, match="pip install neptune"):
        check_recipe(recipe)


def test_growth_of_the_vocabulary_may_be_approximate(cards):
    check_recipe(changed(cards, "stages.1.expand={vocab_size: 400, approximate: true}"))
    check_recipe(changed(cards, "stages.1.expand={vocab_size: 320, layers: 3}"))


def test_the_check_of_a_small_recipe_is_quick(cards):
    recipe = changed(cards)
    check_recipe(recipe)  # imports
    before = time.process_time()
    check_recipe(recipe)
    assert time.process_time() - before < 0.3


def test_sizes_that_no_model_has_are_refused_where_a_model_is_made():
    for sizes in ({"layers": 10**13}, {"heads": 0}, {"hidden_size": "wide"}):
        with pytest.raises(ExpansionError, match=next(iter(sizes))):
            new_config("llama", vocab_size=100, max_positions=64, **sizes)


def test_bfloat16_without_units_says_how_much_slower_it_is(cards, monkeypatch):
    from lifelong.train import rehearsal

    monkeypatch.setattr(rehearsal, "without_bfloat16_units", lambda use_cpu: "this processor has no bfloat16 units")
    line = (
        r"stages\[1\].train.bf16: .* a product of matrices took [0-9.]+ times as long as in float32, measured now; set"
    )
    with pytest.raises(InputError, match=line):
        check_recipe(changed(cards, "stages.1.train={bf16: true}"))
