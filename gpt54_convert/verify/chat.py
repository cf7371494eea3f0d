"""Chat templates: the artifact's must say what the model's says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gpt54_convert.errors import ConvertError
from gpt54_convert.verify.verdict import FAIL, PASS, UNKNOWN, Check

_TALKS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": " a "},
        {"role": "assistant", "content": "b\n"},
        {"role": "user", "content": "ü😀"},
    ],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
)


def template(files: Mapping[str, bytes]) -> str | None:
    """The chat template among a tokenizer's files, or None."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode("utf-8", "replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        try:
            content = json.loads(files.get(name, b"{}"))
        except ValueError:
            continue
        found = content.get("chat_template") if isinstance(content, dict) else None
        if isinstance(found, list):  # several by name
            found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
        if isinstance(found, str):
            return found
    return None


def check(source: Mapping[str, bytes], theirs: str | None) -> list[Check]:
    """Nothing where the model has no template; else one check, by rendering where the texts differ."""
    ours = template(source)
    if ours is None and not theirs:
        return []
    if ours is None or not theirs:
        lacks = "artifact" if ours else "model"
        return [Check("tokenizer", "chat template", FAIL, f"the {lacks} has no chat template, the other has")]
    if ours.strip() == theirs.strip():
        return [Check("tokenizer", "chat template", PASS, "the same template")]
    try:
        different = next((talk for talk in _TALKS if render(ours, talk) != render(theirs, talk)), None)
    except ConvertError as error:
        return [Check("tokenizer", "chat template", UNKNOWN, str(error))]
    if different is None:
        return [Check("tokenizer", "chat template", PASS, "templates render alike")]
    detail = (
        f"{different} renders differently: {render(theirs, different)!r}, not {render(ours, different)!r}"
    )
    return [Check("tokenizer", "chat template", FAIL, detail)]


def render(text: str, talk: list[dict[str, str]]) -> str:
    """A conversation as the template puts it; a template's own refusal is what it says."""
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ConvertError("jinja2 is not installed, so chat templates cannot be rendered") from error

    def refuse(reason: str) -> None:
        raise ValueError(reason)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    values: dict[str, Any] = {"bos_token": "<bos>", "eos_token": "<eos>", "add_generation_prompt": True}
    try:
        return environment.from_string(text).render(messages=talk, **values)
    except Exception as error:  # templates may raise anything
        return f"refuses: {error}"
