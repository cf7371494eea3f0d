"""Special token ids, and whether a text gets one put in front or behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt54_convert.errors import UnsupportedError
from gpt54_convert.tokenizers.keys import ROLE_KEYS
from gpt54_convert.tokenizers.source import Source
from gpt54_convert.tokenizers.template import Around, read_around

# Texts by which chat models end their turn; llama.cpp looks for the same (src/llama-vocab.cpp).
_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<end_of_utterance>")
_END_OF_MESSAGE = ("<|eom_id|>",)


def special_ids(
    source: Source, ids: Mapping[str, int], stated: Mapping[str, Any], model: str, pre: str | None
) -> tuple[dict[str, int], dict[str, bool]]:
    """Token ids by role, and the flags add_bos_token, add_eos_token and add_sep_token.

    ids: token text -> id.  stated: what config.json and generation_config.json say.  The flags follow what
    transformers does: `add_bos_token` and `add_eos_token` in tokenizer_config.json where they stand there,
    else the post-processor.
    """
    roles = _roles(source, ids, stated)
    around = read_around(source.tokenizer.get("post_processor"), source.file) or Around()
    if model == "bert":
        return _bert(source, roles, around), {}
    flags = {}
    for role, name, template in (
        ("bos", "add_bos_token", around.before),
        ("eos", "add_eos_token", around.after),
    ):
        said = source.config.get(name)
        if isinstance(said, bool):
            flags[name] = said and role in roles
        elif len(template) > 1:
            if pre is None:
                raise UnsupportedError(
                    f"{source.file} puts {len(template)} tokens around a text where GGUF can name one; "
                    "--pre NAME converts it without them"
                )
            flags[name] = False
        else:
            flags[name] = bool(template)
            if template:
                roles[role] = template[0]
    if len(around.between) == 1 and around.between != around.before and not flags["add_eos_token"]:
        flags["add_sep_token"] = True
    for role, texts in (("eot", _END_OF_TURN), ("eom", _END_OF_MESSAGE)):
        found = [ids[text] for text in texts if text in ids]
        if found and found[0] != roles.get("eos"):
            roles[role] = found[0]
    return roles, flags


def _roles(source: Source, ids: Mapping[str, int], stated: Mapping[str, Any]) -> dict[str, int]:
    roles = {role: ids[text] for role, text in source.roles.items() if text in ids}
    unknown = source.model.get("unk_token")
    if "unk" not in roles and isinstance(unknown, str) and unknown in ids:
        roles["unk"] = ids[unknown]
    if source.model["type"] == "Unigram" and isinstance(source.model.get("unk_id"), int):
        roles["unk"] = source.model["unk_id"]
    known = set(ids.values())
    for role in ROLE_KEYS:
        value = stated.get(f"{role}_token_id")
        value = (
            value[0] if isinstance(value, list) and value else value
        )  # several ends: the first is the usual one
        if role not in roles and isinstance(value, int) and not isinstance(value, bool) and value in known:
            roles[role] = value
    if roles.get("cls") == roles.get("bos"):
        roles.pop("cls", None)
    return roles


def _bert(source: Source, roles: dict[str, int], around: Around) -> dict[str, int]:
    """llama.cpp puts bos and sep around a text, always; BERT's [CLS] is that bos."""
    if len(around.before) != 1 or len(around.after) != 1:
        raise UnsupportedError(
            f"{source.file} does not put one token before and one behind a text, as llama.cpp does for every "
            "WordPiece tokenizer; use one with BERT's template"
        )
    first, last = around.before[0], around.after[0]
    roles.pop("eos", None)
    return {**roles, "bos": first, "cls": first, "sep": last}
