"""A folder's tokenizer as GGUF key-values: what `vocabulary.backend_tokenizer` reads, written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantry import HeaderError, UsageError
from quantry_transformers.gguf_pieces import (
    is_byte_level,
    merge_lines,
    piece_scores,
    space_prefix,
    split_name,
)
from quantry_transformers.vocabulary import no_garbage_collection

if TYPE_CHECKING:
    from quantry import Source

__all__ = ["tokenizer_keys"]

# tokenizer.ggml.token_type (llama.cpp include/llama.h, llama_token_type)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>\Z")
# added tokens that vocabularies forget to call special (llama.cpp conversion/base.py)
_LOOKS_SPECIAL = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<｜.*｜>|<unused.*>", re.DOTALL)
_KINDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}
# ends of a turn by name (llama.cpp src/llama-vocab.cpp, special_eot_id, special_eom_id)
_TURN_ENDS = frozenset({"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"})
_MESSAGE_END = "<|eom_id|>"


@dataclass(frozen=True)
class _Vocabulary:
    """Texts by id as transformers spells them, the kinds of GGUF, what the backend and its settings say."""

    texts: list[str]
    kinds: list[int]
    backend: Mapping[str, Any]
    settings: Mapping[str, Any]
    file: str

    def id_of(self, token: object) -> int | None:
        """The id of a token, stated as text or as in `added_tokens_decoder`."""
        text = token.get("content") if isinstance(token, Mapping) else token
        return self.texts.index(text) if isinstance(text, str) and text in self.texts else None


def tokenizer_keys(source: Source, config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Keys below `tokenizer.`, with as many tokens as the embedding has rows; ids beyond them are unused.

    config: `config.json`. scores are float32, token types int32.
    Raises UsageError for a folder without tokenizer.json, and for vocabularies that llama.cpp would cut
    otherwise; HeaderError for one that does not fit the model.
    """
    try:
        with no_garbage_collection():
            return _keys(source, config, rows)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        # the files are nested freely: what is no object, list or text where one belongs shows when it is used
        raise HeaderError(
            f"or a file beside it is not made like a tokenizer's: {e!r}", file=source.root / "tokenizer.json"
        ) from e


def _keys(source: Source, config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    vocabulary = _read(source, rows)
    model = vocabulary.backend["model"]
    keys: dict[str, Any]
    if is_byte_level(vocabulary.backend, vocabulary.file):
        keys = {
            "model": "gpt2",
            "pre": split_name(vocabulary.backend, vocabulary.file),
            "tokens": vocabulary.texts,
            "token_type": np.array(vocabulary.kinds, np.int32),
            "merges": merge_lines(model, vocabulary.file),
        }
    else:
        normal = [kind == NORMAL for kind in vocabulary.kinds]
        prefix = space_prefix(vocabulary.backend, vocabulary.texts, normal, vocabulary.file)
        scores = piece_scores(model, vocabulary.texts, normal, vocabulary.file)
        added, unused = (np.isin(vocabulary.kinds, kinds) for kinds in ((CONTROL, USER_DEFINED), (UNUSED,)))
        scores[added], scores[unused] = -1000.0, -10000.0  # as llama.cpp's converter has them
        keys = {
            "model": "llama",
            "pre": "default",
            "tokens": [
                # llama.cpp finds these in the text as it comes
                text.replace("\u2581", " ") if kind == USER_DEFINED else text
                for text, kind in zip(vocabulary.texts, vocabulary.kinds, strict=True)
            ],
            "scores": scores,
            "token_type": np.array(vocabulary.kinds, np.int32),
            "add_space_prefix": prefix,
        }
    _check_unique(keys["tokens"], vocabulary.file)
    ids = _special_ids(vocabulary, source, config)
    keys |= {f"{kind}_token_id": id for kind, id in ids.items()}
    keys["add_bos_token"] = _adds(vocabulary, "bos", ids.get("bos"), 0, keys["model"] == "llama")
    keys["add_eos_token"] = _adds(vocabulary, "eos", ids.get("eos"), -1, False)
    return {
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
        **_templates(source, vocabulary),
    }


def _read(source: Source, rows: int) -> _Vocabulary:
    if source.sibling("tokenizer.json") is None:
        raise UsageError(
            "has no tokenizer.json",
            file=source.root,
            hint="transformers writes it: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    file = str(source.root / "tokenizer.json")
    backend = source.read_json("tokenizer.json")
    settings = source.read_json("tokenizer_config.json") if source.sibling("tokenizer_config.json") else {}
    model = backend.get("model") if isinstance(backend, dict) else None
    if not isinstance(model, dict) or not isinstance(settings, dict):
        raise HeaderError("has no model", file=file)
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise UsageError(
            f"is a {model.get('type')} vocabulary",
            file=file,
            hint="GGUF's are merged pair by pair (BPE); others would give other ids.",
        )
    texts: dict[int, str] = {}
    kinds: dict[int, int] = {}
    for text, id in model["vocab"].items():
        if not isinstance(id, int) or not 0 <= id < rows:
            raise HeaderError(f"gives {text!r} the id {id}; the embedding has {rows} rows", file=file)
        texts[id] = text
        byte = model.get("byte_fallback") and _BYTE_TOKEN.match(text)
        kinds[id] = BYTE if byte else UNKNOWN if text == model.get("unk_token") else NORMAL
    for id, text, special in _added(backend, settings, file):
        if 0 <= id < rows:  # Gemma 3 names tokens for pictures that its text model has no rows for
            texts[id] = text
            kinds[id] = CONTROL if special or _LOOKS_SPECIAL.fullmatch(text) else USER_DEFINED
    return _Vocabulary(
        [texts.get(i, f"[PAD{i}]") for i in range(rows)],
        [kinds.get(i, UNUSED) for i in range(rows)],
        backend,
        settings,
        file,
    )


def _added(backend: Mapping[str, Any], settings: Mapping[str, Any], file: str) -> list[tuple[int, str, bool]]:
    """(id, text, whether special) of tokens beside the model's; tokenizer.json comes before its settings."""
    found: dict[int, tuple[int, str, bool]] = {}
    decoder = settings.get("added_tokens_decoder") or {}
    stated = [{**token, "id": id} for id, token in decoder.items() if isinstance(token, dict)]
    for token in [*stated, *(backend.get("added_tokens") or ())]:
        try:
            id, text = int(token["id"]), token["content"]
        except (TypeError, ValueError, KeyError) as e:
            raise HeaderError(f"has an added token without id or content: {token!r}", file=file) from e
        found[id] = (id, str(text), bool(token.get("special")))
    return list(found.values())


def _check_unique(tokens: Sequence[str], file: str) -> None:
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(t for t in tokens if t in seen or seen.add(t))  # type: ignore[func-returns-value]
        raise HeaderError(f"holds {twice!r} twice, which llama.cpp does not load", file=file)


def _special_ids(vocabulary: _Vocabulary, source: Source, config: Mapping[str, Any]) -> dict[str, int]:
    """Ids by GGUF's kinds: the tokenizer's word, then the configuration's."""
    found: dict[str, int] = {}
    for kind, key in _KINDS.items():
        id = vocabulary.id_of(vocabulary.settings.get(f"{kind}_token"))
        stated = config.get(f"{kind}_token_id")
        if id is None and isinstance(stated, int) and not isinstance(stated, bool):
            id = stated
        if id is None and kind == "unk":
            id = vocabulary.id_of(vocabulary.backend["model"].get("unk_token"))
        if id is not None and 0 <= id < len(vocabulary.texts):
            found[key] = id
    ends = [id for id in _ends(source, config) if 0 <= id < len(vocabulary.texts)]
    if "eos" not in found and ends:
        found["eos"] = ends[0]
    rest = [id for id in ends if id != found.get("eos")]
    for kind, names in (("eot", _TURN_ENDS), ("eom", {_MESSAGE_END})):
        named = next((id for id in rest if vocabulary.texts[id] in names), None)
        if named is not None:
            found[kind] = named
            rest.remove(named)
    for kind in ("eot", "eom"):
        if kind not in found and rest:
            found[kind] = rest.pop(0)
    return found


def _ends(source: Source, config: Mapping[str, Any]) -> list[int]:
    """Every id that ends generation; GGUF has room for three."""
    generation = (
        source.read_json("generation_config.json") if source.sibling("generation_config.json") else {}
    )
    found: list[int] = []
    for stated in (generation, config):
        ids = stated.get("eos_token_id") if isinstance(stated, Mapping) else None
        found += [id for id in (ids if isinstance(ids, list) else [ids]) if isinstance(id, int)]
    return list(dict.fromkeys(found))


def _adds(vocabulary: _Vocabulary, kind: str, id: int | None, end: int, default: bool) -> bool:
    """Whether texts begin (end 0) or end (end -1) with the token: stated, else as the template does it."""
    stated = vocabulary.settings.get(f"add_{kind}_token")
    if isinstance(stated, bool):
        return stated
    processor = vocabulary.backend.get("post_processor") or {}
    templates = [p for p in processor.get("processors", [processor]) if p.get("type") == "TemplateProcessing"]
    if not templates:
        return default and not processor and id is not None
    single = templates[0].get("single") or [{}]
    token = single[end].get("SpecialToken", {}).get("id")
    return token is not None and id is not None and vocabulary.id_of(token) == id


def _templates(source: Source, vocabulary: _Vocabulary) -> dict[str, Any]:
    """The chat template; further ones by name."""
    found = vocabulary.settings.get("chat_template")
    if found is None and (path := source.sibling("chat_template.jinja")) is not None:
        found = path.read_text(encoding="utf-8")
    if found is None and source.sibling("chat_template.json") is not None:
        found = source.read_json("chat_template.json").get("chat_template")
    if isinstance(found, str):
        return {"tokenizer.chat_template": found}
    named = {
        t["name"]: t["template"]
        for t in found or ()
        if isinstance(t, Mapping) and {"name", "template"} <= set(t)
    }
    keys = {f"tokenizer.chat_template.{name}": text for name, text in named.items() if name != "default"}
    if keys:
        keys["tokenizer.chat_templates"] = [name for name in named if name != "default"]
    return {"tokenizer.chat_template": named["default"], **keys} if "default" in named else keys
