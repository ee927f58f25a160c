import json

import numpy as np
import pytest
import torch

from lifelong.errors import CorruptionError, InputError
from lifelong.inherit.cache import CacheSettings, CacheWriter, TargetCache, block_keys, fill_cache
from lifelong.inherit.sparse import TauSampler, TopK, scheme_to_json
from lifelong.inherit.teachers.cache import CachedTeacher

V, T = 300, 12
SETTINGS = CacheSettings(scheme_to_json(TopK(8)), 2.0, V, "tok", "model", "clm", T)


def batch(seed, rows=4, length=T):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, V, (rows, length), generator=generator)
    segments = torch.ones_like(ids)
    segments[:, 7:] = 2
    segments[0, 10:] = 0
    labels = ids.clone()
    labels[:, 0] = labels[:, 7] = -100
    labels[segments == 0] = -100
    positions = torch.cat([torch.arange(7), torch.arange(length - 7)]).repeat(rows, 1)
    return {"input_ids": ids, "labels": labels, "segment_ids": segments, "position_ids": positions}


def says(batch):
    """A teacher whose distribution is a function of the token and its row's first token."""
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(7))
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        rows = (labels[1:] != -100).nonzero().squeeze(1)
        yield iter([(table[ids[rows]] + table[ids[0]]).softmax(1)])


def write(folder, batches, settings=SETTINGS, **options):
    writer = CacheWriter(folder, settings, **options)
    fill_cache(writer, batches, says)
    return TargetCache(folder)


def teacher(cache, **changes):
    settings = {"tokenizer": "tok", "temperature": 2.0, "objective": "clm", "sequence_length": T, **changes}
    return CachedTeacher(cache, **settings)


def test_targets_are_found_in_any_order_batch_and_padding(tmp_path):
    batches = [batch(seed) for seed in range(3)]
    cache = write(tmp_path / "c", batches, tokens_per_shard=50)
    assert len(list((tmp_path / "c/shards").glob("*.arrow"))) > 1
    assert len(cache) == 12
    everything = {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = {name: tensor[order] for name, tensor in everything.items()}
    padded = {
        name: torch.nn.functional.pad(x, (0, 5), value=-100 if name == "labels" else 0) for name, x in shuffled.items()
    }
    (target,) = teacher(cache).targets(padded)
    expected = torch.cat([next(part) for part in says(shuffled)])
    values, ids = expected.topk(8, 1)
    found = torch.zeros(len(expected), V).scatter_add_(1, target.ids_NK.long(), target.probabilities_NK)
    assert torch.allclose(found, torch.zeros_like(expected).scatter(1, ids, values), atol=1e-3)


def test_an_interrupted_cache_resumes_to_the_same_targets(tmp_path):
    settings = CacheSettings(scheme_to_json(TauSampler(0.05)), 2.0, V, "tok", "model", "clm", T)
    batches = [batch(seed) for seed in range(6)]
    batches[4] = batches[1]  # text that comes twice is stored once
    whole = write(tmp_path / "whole", batches, settings, tokens_per_shard=60)

    class KilledError(Exception):
        pass

    def progress(blocks, tokens):
        if blocks >= 12:
            raise KilledError

    with pytest.raises(KilledError):
        fill_cache(CacheWriter(tmp_path / "cut", settings, tokens_per_shard=60), batches, says, progress)
    with pytest.raises(InputError, match=r"not complete .* run the same `lifelong cache` again"):
        TargetCache(tmp_path / "cut")
    calls = []

    def counted(part):
        calls.append(len(part["input_ids"]))
        return says(part)

    writer = CacheWriter(tmp_path / "cut", settings, tokens_per_shard=60)
    assert 0 < writer.blocks_done < 12
    done = writer.blocks_done
    fill_cache(writer, batches, counted)
    assert sum(calls) == 24 - 4 - done
    cut = TargetCache(tmp_path / "cut")
    for part in batches:
        for mine, theirs in zip(cut.read(block_keys(part)), whole.read(block_keys(part)), strict=True):
            assert np.array_equal(mine, theirs)


def test_cache_key_of_a_row():
    one = batch(0)
    assert block_keys(one) == block_keys({name: tensor.clone() for name, tensor in one.items()})
    for name in ("input_ids", "position_ids", "labels"):
        other = {key: tensor.clone() for key, tensor in one.items()}
        other[name][2, 3] += 1
        assert [a == b for a, b in zip(block_keys(one), block_keys(other), strict=True)] == [True, True, False, True]


@pytest.mark.parametrize(("changes", "message"), [
    ({"tokenizer": "other"}, "the cache is of another tokenizer"),
    ({"teacher": "other"}, "the cache is of another model"),
    ({"temperature": 1.0}, r"temperature 2.0, the run has 1.0; write it with `lifelong cache --temperature 1.0`"),
    ({"objective": "mlm"}, "objective clm, the run has mlm"),
    ({"sequence_length": 99}, "sequence_length 12, the run has 99"),
])  # fmt: skip
def test_a_cache_that_does_not_fit_is_refused(tmp_path, changes, message):
    cache = write(tmp_path / "c", [batch(0)])
    with pytest.raises(InputError, match=message):
        teacher(cache, **changes)


def test_missing_block_raises(tmp_path):
    cache = write(tmp_path / "c", [batch(0)])
    with pytest.raises(InputError, match="has no targets for 4 of 4 blocks"):
        teacher(cache).targets(batch(1))


def test_a_damaged_cache_is_refused(tmp_path):
    folder = tmp_path / "c"
    write(folder, [batch(0), batch(1)])
    shard = next((folder / "shards").glob("*.arrow"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-20])
    with pytest.raises(CorruptionError, match="cut short or changed"):
        TargetCache(folder)
    middle = len(data) * 3 // 5
    shard.write_bytes(data[:middle] + bytes(byte ^ 255 for byte in data[middle : middle + 8]) + data[middle + 8 :])
    with pytest.raises(CorruptionError, match="differs from what was written"):
        TargetCache(folder).read([*block_keys(batch(0)), *block_keys(batch(1))])
    shard.unlink()
    with pytest.raises(CorruptionError, match="the shard is missing"):
        TargetCache(folder)
    with pytest.raises(InputError, match="is not a cache of targets"):
        TargetCache(tmp_path / "nowhere")


def test_a_folder_with_other_content_is_not_touched(tmp_path):
    write(tmp_path / "c", [batch(0)])
    with pytest.raises(InputError, match=r"other settings \(temperature is 2.0 there, 1.0 here\)"):
        CacheWriter(tmp_path / "c", CacheSettings(SETTINGS.scheme, 1.0, V, "tok", "model", "clm", T))
    (tmp_path / "d").mkdir()
    (tmp_path / "d/thesis.txt").write_text("dear")
    with pytest.raises(InputError, match="is not empty and holds no cache"):
        CacheWriter(tmp_path / "d", SETTINGS)
    manifest = json.loads((tmp_path / "c/manifest.json").read_text())
    (tmp_path / "c/manifest.json").write_text(json.dumps({**manifest, "format": 9}))
    with pytest.raises(InputError, match="a cache of format 9, this version reads 1"):
        TargetCache(tmp_path / "c")
