"""Tokenizers of folders as GGUF metadata, which transformers' own reader gives the same ids for."""

from __future__ import annotations

import copy
import json
import random

import numpy as np
import pytest
from gguf_fixtures import GGUF_CORPUS as CORPUS
from hypothesis import given, strategies as st
from tokenizers import Tokenizer, processors

import quantry
from quantry_transformers.gguf_vocabulary import tokenizer_keys

SPACE = "\u2581"
KEPT = ("single_word", "lstrip", "rstrip", "normalized")


def pieces(normalizer, pre_tokenizer, prefix):
    """A tokenizer.json by merges of every pair that makes a piece, ranked otherwise than by id.

    Without a prefix two spaces are an added token, as in Gemma.
    """
    run = SPACE * 2
    letters = "".join(CORPUS).lower().replace(" ", "").replace("\n", "").replace("\t", "")
    known = {SPACE, run, *letters}
    for word in " ".join(CORPUS).lower().split():
        for n in range(2, 7):
            known |= {(SPACE + word)[:n], word[-n:]}
    ordered = sorted(known - {""})
    random.Random(3).shuffle(ordered)
    special = ["<unk>", "<s>", "</s>"]
    tokens = [*special, *(f"<0x{b:02X}>" for b in range(256)), *ordered, "<user>"]
    ranked = sorted((p for p in ordered if len(p) > 1), key=lambda p: (p != run, len(p), ordered.index(p)))
    merges = [[p[:i], p[i:]] for p in ranked for i in range(1, len(p)) if p[:i] in known and p[i:] in known]
    added = [(t, True) for t in special] + [("<user>", False), *([] if prefix else [(run, False)])]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": tokens.index(text), "content": text, "special": is_special, **dict.fromkeys(KEPT, False)}
            for text, is_special in added
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": json.loads(
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)]).__getstate__()
        ),
        "decoder": None,
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
            "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges,
        },
    }  # fmt: skip


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Prepend", "prepend": SPACE}
PIECES = {
    # Llama 2 and Phi 3; Mistral; Gemma
    "prepend": ({"type": "Sequence", "normalizers": [PREPEND, REPLACE]}, None, True),
    "metaspace": (
        None,
        {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False},
        True,
    ),
    "replace": (
        REPLACE,
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        False,
    ),
}


@pytest.mark.peer("llama_cpp")
@pytest.mark.parametrize("kind", sorted(PIECES))
def test_piece_ids_are_equal_in_llama_cpp(tokenizer_folder, llama_cpp_ids, gguf_texts, kind):
    """With scheme "first" llama.cpp puts the prefix behind special tokens and before a space as well."""
    state = pieces(*PIECES[kind])
    ids = llama_cpp_ids(tokenizer_keys(tokenizer_folder(state), {}, len(state["model"]["vocab"])))
    tokenizer = Tokenizer.from_str(json.dumps(state))
    for text in gguf_texts:
        if kind != "metaspace" or not (text.startswith(" ") or "<" in text):
            assert ids(text) == tokenizer.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize("kind", sorted(PIECES))
def test_piece_ids_are_equal_in_transformers(tokenizer_folder, read_by_transformers, gguf_texts, kind):
    """Scores are derived from the merges: transformers derives merges from them again."""
    state = pieces(*PIECES[kind])
    keys = tokenizer_keys(tokenizer_folder(state), {}, len(state["model"]["vocab"]))
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.add_space_prefix"] is PIECES[kind][2]
    ours = Tokenizer.from_str(json.dumps(state))
    read = read_by_transformers(keys, "llama")
    # transformers' reader adds the prefix whatever the file says, not before a space nor behind a token
    if kind == "replace":
        read.normalizer, read.pre_tokenizer = ours.normalizer, ours.pre_tokenizer
    for text in (t for t in gguf_texts if t and t[0] not in " \n" and "<" not in t):
        expected = ours.encode(text, add_special_tokens=False).ids
        assert read.encode(text, add_special_tokens=False).ids == expected, text


def test_scores_follow_the_first_merge_that_makes_a_piece(tokenizer_folder):
    state = pieces(*PIECES["replace"])
    keys = tokenizer_keys(tokenizer_folder(state), {}, len(state["model"]["vocab"]))
    score = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"].tolist(), strict=True))
    made = list(
        dict.fromkeys(left + right for left, right in state["model"]["merges"] if left + right != SPACE * 2)
    )
    assert [score[piece] for piece in made] == [-float(i) for i in range(len(made))]
    assert score["<s>"] == score["<user>"] == -1000.0
    assert score["<0x41>"] == 0.0


def test_scores_are_sentencepieces_own_where_ids_follow_the_merges(tokenizer_folder):
    """Its trainer numbers pieces in the order in which it made them: 0, -1, -2 …, characters last."""
    tokens = ["<unk>", "ab", "abc", "bc", "a", "b", "c", SPACE]
    state = pieces(*PIECES["replace"])
    state["added_tokens"] = []
    state["model"]["vocab"] = {t: i for i, t in enumerate(tokens)}
    state["model"]["merges"] = ["a b", "ab c", "a bc", "b c"]
    keys = tokenizer_keys(tokenizer_folder(state), {}, 8)
    assert keys["tokenizer.ggml.scores"].tolist() == [0, 0, -1, -2, -3, -4, -5, -6]
    assert keys["tokenizer.ggml.scores"].dtype == np.float32
    assert keys["tokenizer.ggml.token_type"].dtype == np.int32


def test_kinds_of_tokens(tokenizer_folder):
    """Normal 1, unknown 2, control 3, user-defined 4, unused 5, byte 6; spaces as they stand in text."""
    state = pieces(*PIECES["replace"])
    size = len(state["model"]["vocab"])
    state["added_tokens"] += [
        {"id": size, "content": "<|end|>", "special": False, **dict.fromkeys(KEPT, False)},
        {"id": size + 7, "content": "<beyond>", "special": True, **dict.fromkeys(KEPT, False)},
    ]
    source = tokenizer_folder(
        state, added_tokens_decoder={str(size + 1): {"content": "<late>", "special": True}}
    )
    keys = tokenizer_keys(source, {}, size + 4)
    kind = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"].tolist(), strict=True))
    assert (kind["<s>"], kind["<user>"], kind["  "], kind["<0x00>"], kind[SPACE]) == (3, 4, 4, 6, 1)
    assert (kind["<|end|>"], kind["<late>"]) == (3, 3)
    assert kind[f"[PAD{size + 2}]"] == kind[f"[PAD{size + 3}]"] == 5
    assert "<beyond>" not in kind
    state["added_tokens"] = state["added_tokens"][1:]
    assert tokenizer_keys(tokenizer_folder(state), {}, size + 1)["tokenizer.ggml.token_type"][0] == 2


def special(keys):
    return {k.removeprefix("tokenizer.ggml."): v for k, v in keys.items() if k.endswith("_id")}


def test_special_tokens_are_the_tokenizers_then_the_configurations(tokenizer_folder):
    state = pieces(*PIECES["replace"])
    size = len(state["model"]["vocab"])
    source = tokenizer_folder(
        state, bos_token={"content": "<s>", "special": True}, eos_token="</s>", add_eos_token=True
    )
    keys = tokenizer_keys(source, {"bos_token_id": 0, "pad_token_id": 7, "eos_token_id": [2, 9]}, size)
    assert special(keys) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "eot_token_id": 9,
        "unknown_token_id": 0,
        "padding_token_id": 7,
    }
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.add_eos_token"] is True


def test_ends_of_turn_and_message_are_known_by_name(tokenizer_folder):
    """Llama 3.1's instruct models: three ends, of which the tokenizer names one."""
    state = pieces(*PIECES["replace"])
    size = len(state["model"]["vocab"])
    for i, text in enumerate(["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]):
        state["added_tokens"].append(
            {"id": size + i, "content": text, "special": True, **dict.fromkeys(KEPT, False)}
        )
    source = tokenizer_folder(state, eos_token="<|eot_id|>")
    (source.root / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [size, size + 1, size + 2]})
    )
    found = special(tokenizer_keys(quantry.Source(source.root), {}, size + 3))
    assert (found["eos_token_id"], found["eom_token_id"], found["eot_token_id"]) == (size + 2, size + 1, size)


@pytest.mark.parametrize(("template", "begins"), [("<s> $A", True), ("$A", False), ("<user> $A", False)])
def test_whether_a_text_begins_with_bos_is_read_from_the_template(tokenizer_folder, template, begins):
    state = pieces(*PIECES["replace"])
    ids = [(t["content"], t["id"]) for t in state["added_tokens"]]
    processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    state["post_processor"] = {"type": "Sequence", "processors": [json.loads(processor.__getstate__())]}
    keys = tokenizer_keys(tokenizer_folder(state, bos_token="<s>"), {}, len(state["model"]["vocab"]))
    assert keys["tokenizer.ggml.add_bos_token"] is begins
    assert keys["tokenizer.ggml.add_eos_token"] is False


def test_chat_templates(tokenizer_folder):
    state = pieces(*PIECES["replace"])
    size = len(state["model"]["vocab"])
    keys = tokenizer_keys(tokenizer_folder(state, chat_template="one"), {}, size)
    assert keys["tokenizer.chat_template"] == "one"
    listed = [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}]
    keys = tokenizer_keys(tokenizer_folder(state, chat_template=listed), {}, size)
    assert {k: v for k, v in keys.items() if "chat" in k} == {
        "tokenizer.chat_template": "a",
        "tokenizer.chat_template.tools": "b",
        "tokenizer.chat_templates": ["tools"],
    }
    source = tokenizer_folder(state)
    (source.root / "chat_template.jinja").write_text("{{ three }}")
    assert tokenizer_keys(source, {}, size)["tokenizer.chat_template"] == "{{ three }}"


def changed(edit):
    state = copy.deepcopy(pieces(*PIECES["replace"]))
    edit(state)
    return state


SPLIT_AT_X = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ],
}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


@pytest.mark.parametrize(
    ("edit", "error", "said"),
    [
        (lambda s: s["model"].update(type="Unigram", vocab=[["a", 0.0]]), quantry.UsageError, "Unigram"),
        (lambda s: s["model"].update(type="WordPiece"), quantry.UsageError, "WordPiece"),
        (lambda s: s["model"]["merges"].pop(), quantry.UsageError, "1 pairs of tokens apart"),
        (lambda s: s["model"]["merges"].append(["a"]), quantry.HeaderError, "no pair of tokens"),
        (lambda s: s["model"].update(end_of_word_suffix="</w>"), quantry.UsageError, "end_of_word_suffix"),
        (lambda s: s["model"].update(byte_fallback=False), quantry.UsageError, "neither spells bytes"),
        (lambda s: s.update(normalizer={"type": "NFKC"}), quantry.UsageError, "NFKC"),
        (lambda s: s.update(normalizer=None, pre_tokenizer=None), quantry.UsageError, r"U\+2581"),
        (lambda s: s.update(pre_tokenizer={"type": "Whitespace"}), quantry.UsageError, "Whitespace"),
        (
            lambda s: s.update(pre_tokenizer={**BYTES, "add_prefix_space": True}, normalizer=None),
            quantry.UsageError,
            "add_prefix_space",
        ),
        (lambda s: s.update(pre_tokenizer=BYTES), quantry.UsageError, "normalizes text by Replace"),
        (
            lambda s: s.update(pre_tokenizer=SPLIT_AT_X, normalizer=None),
            quantry.UsageError,
            r"no name for: \['x'\]",
        ),
        (lambda s: s["model"]["vocab"].update({"zzz": 10**6}), quantry.HeaderError, "'zzz' the id 1000000"),
        (lambda s: s["added_tokens"].append({"id": 3}), quantry.HeaderError, "without id or content"),
        (
            lambda s: s["added_tokens"].append({"id": 0, "content": "<s>", "special": True}),
            quantry.HeaderError,
            "'<s>' twice",
        ),
        (lambda s: s.pop("model"), quantry.HeaderError, "has no model"),
    ],
)
def test_vocabularies_that_gguf_cannot_hold_are_refused(tokenizer_folder, edit, error, said):
    state = changed(edit)
    with pytest.raises(error, match=said) as caught:
        tokenizer_keys(tokenizer_folder(state), {}, 10_000)
    assert caught.value.file.endswith("tokenizer.json")


def paths(value, found=()):
    """Where something stands in a tree of JSON; of long lists and objects the first few."""
    yield found
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:6]:
        yield from paths(inner, (*found, key))


SMALL_JSON = st.sampled_from([None, True, 0, -1, 2.5, "", "ByteLevel", [], [[]], {}, {"type": 1}, [None]])


@given(data=st.data(), settings_too=st.booleans())
def test_any_json_is_a_tokenizer_or_an_error_of_ours(tokenizer_folder, data, settings_too):
    state = {"tokenizer": copy.deepcopy(pieces(*PIECES["prepend"])), "settings": {}}
    state["tokenizer"]["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": []}
    if settings_too:
        decoder = {"3": {"content": "<0x00>", "special": False}}
        state["settings"] = {"bos_token": {"content": "<s>"}, "added_tokens_decoder": decoder,
                             "chat_template": [{"name": "default", "template": "a"}]}  # fmt: skip
    path = data.draw(st.sampled_from([p for p in paths(state) if len(p) > 1]))
    target = state
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = data.draw(SMALL_JSON)
    settings = state["settings"] if isinstance(state["settings"], dict) else {}
    try:
        keys = tokenizer_keys(tokenizer_folder(state["tokenizer"], **settings), {}, 900)
    except quantry.QuantryError:
        return
    assert len(keys["tokenizer.ggml.tokens"]) == 900


def test_words_cut_at_spaces_and_pieces_across_them_are_refused(tokenizer_folder):
    def edit(state):
        state["normalizer"], state["pre_tokenizer"] = None, {"type": "Metaspace", "replacement": SPACE}
        state["model"]["vocab"][f"a{SPACE}b"] = len(state["model"]["vocab"])

    with pytest.raises(quantry.UsageError, match="goes across one"):
        tokenizer_keys(tokenizer_folder(changed(edit)), {}, 10_000)


def test_a_folder_without_tokenizer_says_how_to_get_one(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(quantry.UsageError, match="save_pretrained") as caught:
        tokenizer_keys(quantry.Source(tmp_path), {}, 8)
    assert "has no tokenizer.json" in str(caught.value)
