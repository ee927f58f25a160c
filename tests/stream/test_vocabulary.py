"""Union of vocabularies: laws of the id maps, and tokenizers that write the union's ids."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lifelong.errors import CorruptionError, InputError
from lifelong.stream.blocks import Block
from lifelong.stream.collator import Collator
from lifelong.stream.tokenizers.collator import DomainCollator
from lifelong.stream.tokenizers.encoding import Encoder
from lifelong.stream.tokenizers.load import load_tokenizer, tokenizer_fingerprint
from lifelong.stream.tokenizers.merged import load_merged, merge_tokenizers
from lifelong.stream.tokenizers.vocabulary import Vocabulary, inverse, spelled, unite, vocabulary_of

WORDS = ["the", "they", "then", "sea", "seal", "sail", "ship", "shipping", "hen", "barn", "wheat"]
TEXTS = ["the sea", "The hens then sail\n\n  shipping 7 ships", "Ä naïve 漢字 😀 seal", " the  the", "a<|endoftext|>b"]


def byte_level(seed, size, specials=("<|endoftext|>", "<|pad|>", "<|mask|>")):
    """A byte-level BPE tokenizer of some words."""
    from tokenizers import trainers

    draw = random.Random(seed)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(specials), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator([" ".join(draw.choices(WORDS, k=40)) for _ in range(20)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=specials[0], eos_token=specials[0], pad_token=specials[1],
        mask_token=specials[2],
    )  # fmt: skip


def sentencepiece_bpe():
    """Llama's conventions: `▁`, byte tokens, beginning and end apart."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "t", "h", "e", "s", "a", "he", "▁t", "▁the", "sea"]
    merges = [("h", "e"), ("▁", "t"), ("▁t", "he"), ("s", "e")]
    pieces.append("se")
    backend = Tokenizer(
        models.BPE({piece: n for n, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_piece():
    """BERT's conventions: `##`, its own special tokens."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sea", "##s", "##l", "hen", "a", "ship", "##ping"]
    backend = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


def unigram():
    """A sentencepiece unigram model."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁the", -2.0), ("▁", -3.0), ("sea", -2.5), ("s", -4.0), ("e", -4.1)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """One saved tokenizer of each kind."""
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {
        "one": byte_level(1, 280), "two": byte_level(2, 300), "pieces": sentencepiece_bpe(), "words": word_piece(),
        "unigram": unigram(),
    }  # fmt: skip
    for name, tokenizer in made.items():
        tokenizer.save_pretrained(folder / name)
    return {name: str(folder / name) for name in made}


tokens = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3).map("".join)
vocabularies = st.lists(
    st.tuples(st.lists(tokens, min_size=1, max_size=8, unique=True), st.integers(0, 2)), min_size=1, max_size=4
)


def made(name, content, specials):
    """A vocabulary of texts with some special tokens in front."""
    special = ["<s>", "<pad>"][:specials]
    keys = [*(("special", token) for token in special), *(("text", token.encode()) for token in content)]
    roles = dict(zip(("bos", "pad"), range(specials), strict=False))
    return Vocabulary(name, "bytes", (*special, *content), tuple(keys), roles)


@given(vocabularies, st.booleans())
def test_laws_of_the_union(parts, fixed):
    """Injective; equal strings have equal ids; the first keeps its ids; fixed adds nothing; nothing else is lost."""
    given_ = [made(str(n), content, specials) for n, (content, specials) in enumerate(parts)]
    union = unite(given_, fixed=fixed)
    assert union.maps[0].tolist() == list(range(len(given_[0])))
    assert not fixed or len(union) == len(given_[0])
    assert len(set(union.keys)) == len(union)
    for vocabulary, ids in zip(given_, union.maps, strict=True):
        placed = ids[ids >= 0]
        assert len(set(placed.tolist())) == len(placed)
        assert fixed or len(placed) == len(vocabulary)
        assert np.array_equal(inverse(ids, len(union))[placed], np.flatnonzero(ids >= 0))
        for key, place in zip(vocabulary.keys, ids, strict=True):
            if key[0] == "text":
                assert place < 0 or union.keys[place] == key
                assert (place >= 0) == (key in union.keys)


def test_tokens_are_equal_by_the_string_they_represent(sources):
    """`Ġthe`, `▁the` and WordPiece's `the` are one token; a byte token is the byte; roles meet."""
    merged = merge_tokenizers(sources)
    by_name = {name: load_tokenizer(source).get_vocab() for name, source in sources.items()}
    places = {name: domain.ids_V for name, domain in merged.domains.items()}
    the = {"one": "Ġthe", "two": "Ġthe", "pieces": "▁the", "words": "the", "unigram": "▁the"}
    assert len({int(places[name][by_name[name][token]]) for name, token in the.items()}) == 1
    assert places["pieces"][by_name["pieces"]["<0x0A>"]] == places["one"][by_name["one"]["Ċ"]]
    assert places["pieces"][by_name["pieces"]["e"]] == places["one"][by_name["one"]["e"]]
    assert places["pieces"][by_name["pieces"]["<0x65>"]] != places["one"][by_name["one"]["e"]]  # `e` has its place
    assert places["words"][by_name["words"]["##s"]] == places["one"][by_name["one"]["s"]]
    end = places["one"][by_name["one"]["<|endoftext|>"]]
    assert places["pieces"][by_name["pieces"]["<s>"]] == end
    assert places["pieces"][by_name["pieces"]["</s>"]] != end  # two tokens of one tokenizer keep apart
    assert places["unigram"][by_name["unigram"]["</s>"]] == end
    assert places["words"][by_name["words"]["[MASK]"]] == places["one"][by_name["one"]["<|mask|>"]]


@pytest.mark.parametrize("fixed", [False, True])
def test_every_text_is_cut_as_before(sources, fixed, tmp_path):
    """The tokenizer of a domain is the original with other numbers, loads without this package, and decodes."""
    chosen = {name: sources[name] for name in (("one", "two") if fixed else sources)}
    first = load_tokenizer(sources["one"]) if fixed else None
    merged = merge_tokenizers(chosen, first=first, fixed=fixed)
    merged.save(tmp_path)
    for name, source in chosen.items():
        original = load_tokenizer(source)
        stock = AutoTokenizer.from_pretrained(tmp_path / "domain_tokenizers" / name)
        ids_V = merged.domains[name].ids_V
        for text in TEXTS:
            before, after = Encoder(original).encode_for_scoring(text), Encoder(stock).encode_for_scoring(text)
            if (ids_V[before] >= 0).all():
                assert ids_V[before].tolist() == after.tolist()
            else:  # a token without a place: cut more finely
                assert fixed
                assert len(after) > len(before)
            assert stock.decode(after, skip_special_tokens=True) == original.decode(before, skip_special_tokens=True)
        assert len(stock) == len(merged.tokenizer)
    assert fixed == any(domain.unplaced for domain in merged.domains.values())


def test_the_whole_union_is_one_plain_tokenizer(sources):
    """It knows the tokens of all, and cuts text of the first domain as the first tokenizer does where no merge is new."""
    merged = merge_tokenizers({"one": sources["one"], "two": sources["two"]})
    for text in TEXTS:
        ids = Encoder(merged.tokenizer).encode_batch([text])[0]
        assert merged.tokenizer.decode(ids) == text
        for name in merged.domains:
            theirs = Encoder(merged.of(name)).encode_batch([text])[0]
            assert merged.tokenizer.decode(theirs) == text
    assert merged.of("another") is merged.tokenizer
    assert merged.tokenizer.pad_token_id == 1


def test_cache_round_trip(sources, tmp_path):
    merged = merge_tokenizers(sources)
    merged.save(tmp_path)
    again = load_merged(tmp_path)
    assert again is not None
    assert again.fingerprint == merged.fingerprint
    assert load_merged(tmp_path / "domain_tokenizers" / "one") is None
    assert tokenizer_fingerprint(load_tokenizer(tmp_path, "two")) == tokenizer_fingerprint(merged.of("two"))
    other = merge_tokenizers({**sources, "two": sources["one"]})
    assert other.fingerprint != merged.fingerprint


@pytest.mark.parametrize("file", ["maps.safetensors", "vocabularies.json", "two/tokenizer.json"])
def test_a_changed_map_is_refused(sources, tmp_path, file):
    merge_tokenizers(sources).save(tmp_path)
    path = tmp_path / "domain_tokenizers" / file
    if file.endswith(".safetensors"):
        content = bytearray(path.read_bytes())
        content[-4] ^= 1
        path.write_bytes(content)
    elif file.startswith("two"):
        rules = json.loads(path.read_text())
        vocabulary = rules["model"]["vocab"]
        vocabulary["t"], vocabulary["h"] = vocabulary["h"], vocabulary["t"]
        path.write_text(json.dumps(rules))
    else:
        facts = json.loads(path.read_text())
        facts["domains"]["two"]["fingerprint"] = "0" * 64
        facts["domains"]["two"]["mask_id"] = 7
        facts["domains"]["two"]["map"] = "0" * 64
        path.write_text(json.dumps(facts))
    with pytest.raises(CorruptionError, match=r"of (two|words) differs from what was written"):
        load_merged(tmp_path)


def test_a_union_may_be_merged_again(sources, tmp_path):
    """A merged student's tokenizers are read like any others, and their ids stay."""
    merged = merge_tokenizers({"one": sources["one"], "two": sources["two"]})
    merged.save(tmp_path)
    more = merge_tokenizers(
        {"one": str(tmp_path / "domain_tokenizers/one"), "words": sources["words"]}, first=merged.tokenizer
    )
    known = more.domains["one"].ids_V
    assert np.array_equal(known[known >= 0], np.flatnonzero(known >= 0))
    assert len(more.tokenizer) > len(merged.tokenizer)


def test_unmergeable_vocabularies_give_one_message(sources):
    with pytest.raises(InputError, match="cannot be loaded"):
        merge_tokenizers({"one": "/nowhere"})
    with pytest.raises(InputError, match="no checkpoint whose vocabulary could stay"):
        merge_tokenizers(sources, fixed=True)
    with pytest.raises(InputError, match="byte-level BPE on both sides"):
        merge_tokenizers({"words": sources["words"]}, first=load_tokenizer(sources["one"]), fixed=True)


@given(st.binary(min_size=1, max_size=6), st.sampled_from(["bytes", "spaces", "words"]))
def test_spelling_is_undone_by_reading(content, spelling):
    """What a tokenizer of some convention writes for a text is read as that text."""
    from lifelong.stream.tokenizers.vocabulary import _key

    written = spelled(("text", content), spelling)
    if written is not None and "▁" not in content.decode(errors="ignore"):
        assert _key(written, spelling, None) == ("text", content)


def test_every_kind_has_distinct_keys(sources):
    for name, source in sources.items():
        keys = [key for key in vocabulary_of(load_tokenizer(source), name).keys if key is not None]
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("fixed", [False, True])
def test_masked_text_of_a_domain_stays_in_its_tokens(sources, fixed):
    """What is drawn in a token's stead is known to the domain's tokenizer; without `fixed` it is what that one draws."""
    original = load_tokenizer(sources["two"])
    first = load_tokenizer(sources["one"]) if fixed else None
    merged = merge_tokenizers({"other": sources["words"], "two": sources["two"]} if not fixed else {"two": sources["two"]}, first=first, fixed=fixed)  # fmt: skip
    domain = merged.domains["two"]
    plain = Collator.for_tokenizer(merged.tokenizer, "mlm", 64, seed=5)
    collator = replace(DomainCollator.of(plain, merged.domains, ["x", "two"]), mask_rate=0.9)
    ids = Encoder(merged.of("two")).encode_for_scoring("the hens then sail shipping 7 ships, the seal they sail " * 2)[
        :64
    ]
    block = Block(ids, np.zeros(1, np.int32), np.zeros(1, np.int32))
    row = {"block": block, "domain_id": 1, "is_replay": False, "mask_key": 3}
    batch = collator([row])
    assert set(batch["input_ids"][0, : len(ids)].tolist()) <= set(domain.ids_V.tolist())
    assert int(batch["input_ids"].min()) >= 0
    assert (batch["labels"][batch["labels"] != -100].numpy() == np.pad(ids, (0, 64 - len(ids)))[batch["labels"][0] != -100]).all()  # fmt: skip
    if not fixed:
        own = replace(Collator.for_tokenizer(original, "mlm", 64, seed=5), mask_rate=0.9)
        theirs = Block(Encoder(original).encode_for_scoring("the hens then sail shipping 7 ships, the seal they sail " * 2)[:64], *(np.zeros(1, np.int32),) * 2)  # fmt: skip
        there = own([{**row, "block": theirs}])["input_ids"][0, : len(ids)]
        assert domain.ids_V[there.numpy()].tolist() == batch["input_ids"][0, : len(ids)].tolist()
