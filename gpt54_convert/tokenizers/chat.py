"""Chat templates: chat_template.jinja or tokenizer_config.json here, `tokenizer.chat_template*` in GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt54_convert.errors import InputError
from gpt54_convert.tokenizers.keys import CHAT_TEMPLATE_KEY, CHAT_TEMPLATES_KEY, GgufKey

FILE = "chat_template.jinja"
_FOLDER = "additional_chat_templates/"


def to_keys(files: Mapping[str, bytes], tokenizer_config: Mapping[str, Any]) -> list[GgufKey]:
    """The GGUF keys of the chat templates; files win over tokenizer_config.json, as in transformers."""
    templates = _in_config(tokenizer_config.get("chat_template"))
    for name, content in files.items():
        if name == FILE:
            templates["default"] = _text(content, name)
        elif name.startswith(_FOLDER) and name.endswith(".jinja"):
            templates[name[len(_FOLDER) : -len(".jinja")]] = _text(content, name)
    default = templates.pop("default", None)
    keys = [] if default is None else [GgufKey(CHAT_TEMPLATE_KEY, default, "STRING")]
    if templates:
        keys.append(GgufKey(CHAT_TEMPLATES_KEY, sorted(templates), "ARRAY:STRING"))
        keys += [
            GgufKey(f"{CHAT_TEMPLATE_KEY}.{name}", templates[name], "STRING") for name in sorted(templates)
        ]
    return keys


def _in_config(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        named = value if isinstance(value, dict) else {entry["name"]: entry["template"] for entry in value}
        if all(isinstance(text, str) for pair in named.items() for text in pair):
            return dict(named)
    except (TypeError, KeyError):
        pass
    raise InputError(
        "tokenizer_config.json has a chat_template that is neither text nor a list of named ones; mend it"
    )


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def to_files(keys: Mapping[str, Any]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files to write, and what to add to tokenizer_config.json.

    One template goes to chat_template.jinja, several go as a list to tokenizer_config.json: both forms are
    read by transformers 4.57 and 5.
    """
    default = keys.get(CHAT_TEMPLATE_KEY)
    names = [
        name
        for name in keys.get(CHAT_TEMPLATES_KEY) or ()
        if isinstance(keys.get(f"{CHAT_TEMPLATE_KEY}.{name}"), str)
    ]
    if not names:
        return ({FILE: default.encode()} if isinstance(default, str) else {}), {}
    templates = [{"name": "default", "template": default}] if isinstance(default, str) else []
    templates += [{"name": name, "template": keys[f"{CHAT_TEMPLATE_KEY}.{name}"]} for name in names]
    return {}, {"chat_template": templates}
