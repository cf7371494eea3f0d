"""`tokenizer.ggml.pre`: which of llama.cpp's built-in pre-tokenizers has the structure of this tokenizer.

The decision is structural: the pre-tokenizer of tokenizer.json is brought into one canonical form (a tuple of
steps) and looked up in `pre_names`.  Nothing is guessed from a model's name, nothing is hashed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from gpt54_convert.errors import InputError, UnsupportedError, UsageError
from gpt54_convert.tokenizers.pre_names import KNOWN_NAMES, ROWS, Row, Step


def steps_of(pre_tokenizer: Any, file: str) -> tuple[Step, ...]:
    """The canonical steps of a `pre_tokenizer` of tokenizer.json; nested sequences are flattened."""
    if pre_tokenizer is None:
        return ()
    if not isinstance(pre_tokenizer, Mapping) or not isinstance(pre_tokenizer.get("type"), str):
        raise InputError(f"{file} has a pre_tokenizer without a type; save the tokenizer again")
    if pre_tokenizer["type"] == "Sequence":
        inner = pre_tokenizer.get("pretokenizers")
        if not isinstance(inner, list):
            raise InputError(f"{file} has a Sequence without pretokenizers; save the tokenizer again")
        return tuple(step for part in inner for step in steps_of(part, file))
    return (_step(pre_tokenizer, file),)


def _step(part: Mapping[str, Any], file: str) -> Step:
    kind = str(part["type"])
    if kind == "ByteLevel":
        prefix = ":prefix" if part.get("add_prefix_space", True) else ""
        return ("ByteLevel" + prefix, "regex" if part.get("use_regex", True) else "")
    if kind == "Digits":
        return ("Digits", "individual" if part.get("individual_digits") else "runs")
    if kind == "Punctuation":
        return ("Punctuation", str(part.get("behavior", "Isolated")))
    if kind == "Split":
        return _split_step(part, file)
    return (kind, "")


def _split_step(part: Mapping[str, Any], file: str) -> Step:
    pattern = part.get("pattern")
    if not isinstance(pattern, Mapping) or not {"Regex", "String"} & set(pattern):
        raise InputError(f"{file} has a Split without a pattern; save the tokenizer again")
    regex = pattern["Regex"] if "Regex" in pattern else re.escape(str(pattern["String"]))
    behavior = str(part.get("behavior"))
    if (behavior, bool(part.get("invert"))) == ("Removed", True):
        # Keeps the matches and drops what lies between them: the same, for a regex that matches everything.
        behavior = "Isolated"
    elif part.get("invert"):
        behavior = "Inverted" + behavior
    return ("Split" if behavior == "Isolated" else f"Split:{behavior}", same_spelling(str(regex)))


def same_spelling(regex: str) -> str:
    """One spelling for regexes that differ in nothing but how a line break is written, or in `{1}`."""
    return regex.replace("\r", r"\r").replace("\n", r"\n").replace("{1}", "")


def rows_for(steps: tuple[Step, ...]) -> list[Row]:
    """The rows of the table with exactly these steps; more than one where only ignore_merges differs."""
    return [row for row in ROWS if tuple((kind, same_spelling(text)) for kind, text in row.steps) == steps]


def unknown_structure(steps: tuple[Step, ...], file: str) -> UnsupportedError:
    """The error for a pre-tokenizer that is in no row: says what is new in it."""
    known = {(kind, same_spelling(text)) for row in ROWS for kind, text in row.steps}
    new = [step for step in steps if step not in known]
    what = " then ".join(f"{kind} {text}".strip() for kind, text in (new or steps)) or "none at all"
    names = ", ".join(sorted(row.name for row in ROWS))
    return UnsupportedError(
        f"{file} pre-tokenizes in a way that no llama.cpp pre-tokenizer is known for ({what}); "
        f"if you know which one fits, say --pre NAME with one of {names}"
    )


def check_name(name: str) -> str:
    """`name`, refused where llama.cpp 0.3.36 would not load it."""
    if name in KNOWN_NAMES:
        return name
    close = difflib.get_close_matches(name, sorted(KNOWN_NAMES), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}" if close else f"known are {', '.join(sorted(KNOWN_NAMES))}"
    raise UsageError(f"--pre {name} is no pre-tokenizer that llama.cpp knows; {hint}")


def row_named(name: str) -> Row:
    """The structure behind a `tokenizer.ggml.pre`, for rebuilding tokenizer.json."""
    for row in ROWS:
        if name == row.name or name in row.aliases:
            return row
    raise UnsupportedError(
        f"tokenizer.ggml.pre is {name!r}, whose pre-tokenizer is not known to this version; "
        "use the tokenizer files of the original model instead"
    )


def to_json(steps: tuple[Step, ...]) -> dict[str, Any] | None:
    """A `pre_tokenizer` of tokenizer.json with these steps."""
    parts = [_part(kind, text) for kind, text in steps]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "ByteLevel":
        return {"type": kind, "add_prefix_space": False, "trim_offsets": True, "use_regex": text == "regex"}
    if kind == "Digits":
        return {"type": kind, "individual_digits": text == "individual"}
    if kind == "Punctuation":
        return {"type": kind, "behavior": text}
    return {"type": "Split", "pattern": {"Regex": text}, "behavior": "Isolated", "invert": False}
