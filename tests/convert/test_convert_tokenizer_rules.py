"""Rules of tokenizer.json: those that change tokens are refused. The tokenizers library decides which."""

from __future__ import annotations

import copy
import json

import pytest
from make_checkpoint import tiny_tokenizer
from sardine_gguf.convert.tokenizer import tokenizer_metadata
from sardine_gguf.errors import FormatError
from tokenizers import Tokenizer

TEXTS = [
    "Hello there", "the tea is on  \n\nthe shore  123 1234", "THEN Then then\tinto, don't/\n",
    "ÀÉ ça, nai\u0308ve — 東京 🦙", "  \r\n A   the", "\u1e0a\u0323 e\u0301",
]  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(folder, 300)
    data = json.loads((folder / "tokenizer.json").read_text())
    # Pairs across the pieces into which texts are split, so that each other way of splitting shows.
    for pair in (("\u0120", "\u0120"), ("e", "\u0120"), ("'", "t"), ("o", ","), ("\u0120", "t")):
        data["model"]["vocab"]["".join(pair)] = len(data["model"]["vocab"])
        data["model"]["merges"].append(list(pair))
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


def steps(data):
    return data["pre_tokenizer"]["pretokenizers"]


def split(**changes):
    return lambda d: steps(d)[0].update(changes)


def byte_level(**changes):
    return lambda d: steps(d)[1].update(changes)


def model(**changes):
    return lambda d: d["model"].update(changes)


def normalizer(*kinds):
    entries = [{"type": kind} for kind in kinds]
    one = entries[0] if len(entries) == 1 else {"type": "Sequence", "normalizers": entries}
    return lambda d: d.update(normalizer=one)


def as_texts(d):
    d["model"]["merges"] = [" ".join(pair) for pair in d["model"]["merges"]]


SAME = {
    "as published": lambda d: None,
    "merges as texts": as_texts,
    "empty prefix and suffix": model(continuing_subword_prefix="", end_of_word_suffix=""),
    "unknown token": model(unk_token="<unk>", fuse_unk=True),
    "no dropout": model(dropout=0.0),
    "offsets": byte_level(trim_offsets=False),
    "isolated gaps": split(invert=True),
    # The patterns match every character, so that nothing but the matches is left.
    "gaps removed": split(behavior="Removed", invert=True),
    "gaps with the previous": split(behavior="MergedWithPrevious", invert=True),
    "gaps with the next": split(behavior="MergedWithNext", invert=True),
    # Only what stands between two matches is merged, and nothing does.
    "matches with the previous": split(behavior="MergedWithPrevious"),
    "matches with the next": split(behavior="MergedWithNext"),
    "no normalizer in a sequence": normalizer(),
    "byte-level post-processor": lambda d: d.update(post_processor={
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}),
}  # fmt: skip
OTHER = {
    "lower case": (normalizer("Lowercase"), "normalizer"),
    "compatible forms": (normalizer("NFKC"), "normalizer"),
    "lower case later": (normalizer("NFC", "Lowercase"), "normalizer"),
    "digits alone": (
        lambda d: steps(d).insert(0, {"type": "Digits", "individual_digits": True}),
        "Digits",
    ),
    "punctuation": (
        lambda d: steps(d).insert(0, {"type": "Punctuation", "behavior": "Isolated"}),
        "Punctuation",
    ),
    "matches removed": (split(behavior="Removed"), "behavior"),
    "all in one": (split(behavior="Contiguous", invert=True), "behavior"),
    "a space first": (byte_level(add_prefix_space=True), "add_prefix_space"),
    "bytes first": (lambda d: steps(d).reverse(), "ByteLevel"),
    "no bytes": (lambda d: steps(d).pop(), "ByteLevel"),
    "no splitting": (lambda d: d.update(pre_tokenizer=None), "pre_tokenizer"),
    "spaces as letters": (
        lambda d: d.update(pre_tokenizer={
            "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always",
            "split": True}),
        "Metaspace",
    ),
    "dropout": (model(dropout=0.9), "dropout"),
    "suffix": (
        lambda d: d["model"].update(end_of_word_suffix="e", merges=[]),
        "end_of_word_suffix",
    ),
    "prefix": (
        lambda d: d["model"].update(continuing_subword_prefix="h", merges=[]),
        "continuing_subword_prefix",
    ),
}  # fmt: skip
# The tokenizers library does not read these at all.
BROKEN = {
    "merge of a strange token": (lambda d: d["model"]["merges"].append(["zzzz", "t"]), "'zzzz'"),
    "merge to a strange token": (lambda d: d["model"]["merges"].append(["z", "q"]), "'zq'"),
    "unknown step": (lambda d: steps(d).insert(0, {"type": "Shout"}), "Shout"),
    "unknown behavior": (split(behavior="isolated"), "behavior"),
    "step without its field": (lambda d: steps(d)[1].pop("add_prefix_space"), "add_prefix_space"),
    "invert": (split(invert="no"), "invert"),
}


def changed(folder, tmp_path, change):
    """A folder with the changed tokenizer, the changed and the published text of it."""
    before = json.loads((folder / "tokenizer.json").read_text())
    after = copy.deepcopy(before)
    change(after)
    (tmp_path / "tokenizer.json").write_text(json.dumps(after))
    return json.dumps(before), json.dumps(after)


def tokens(text):
    tokenizer = Tokenizer.from_str(text)
    return [tokenizer.encode(t, add_special_tokens=False).ids for t in TEXTS]


@pytest.mark.parametrize("name", SAME)
def test_rules_without_effect_pass(published, tmp_path, name):
    before, after = changed(published, tmp_path, SAME[name])
    assert tokens(after) == tokens(before)
    warnings = []
    kv = tokenizer_metadata(tmp_path, "mistral3", 305, False, warnings)
    assert kv["tokenizer.ggml.pre"] == ("str", "tekken")
    assert warnings == []


@pytest.mark.parametrize("name", OTHER)
def test_rules_that_give_other_tokens_are_refused(published, tmp_path, name):
    change, words = OTHER[name]
    before, after = changed(published, tmp_path, change)
    assert tokens(after) != tokens(before)
    with pytest.raises(FormatError, match=words):
        tokenizer_metadata(tmp_path, "mistral3", 305, False, [])


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rules_are_refused(published, tmp_path, name):
    change, words = BROKEN[name]
    _, after = changed(published, tmp_path, change)
    with pytest.raises(Exception, match=" "):  # the library has no other class
        Tokenizer.from_str(after)
    with pytest.raises(FormatError, match=words) as caught:
        tokenizer_metadata(tmp_path, "mistral3", 305, False, [])
    assert "\n" not in str(caught.value)


def test_unknown_fields_are_refused(published, tmp_path):
    changed(published, tmp_path, split(lookahead=3))
    with pytest.raises(FormatError, match="lookahead"):
        tokenizer_metadata(tmp_path, "mistral3", 305, False, [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (normalizer("NFC"), "NFC"),
        (lambda d: d["model"]["merges"].append(d["model"]["merges"][0]), "occurs twice"),
        (model(ignore_merges=False), "ignore_merges"),
    ],
)
def test_rare_differences_are_told(published, tmp_path, change, words):
    changed(published, tmp_path, change)
    warnings = []
    kv = tokenizer_metadata(tmp_path, "mistral3", 305, False, warnings)
    assert kv["tokenizer.ggml.pre"] == ("str", "tekken")
    assert len(warnings) == 1
    assert words in warnings[0]
