"""Whether the artifact cuts text into the same ids as its source, on text chosen to make them differ."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np

from gpt54_convert import data
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.errors import MeasureError
from gpt54_convert.forward.documents import tokenizer
from gpt54_convert.loaders import _folder
from gpt54_convert.verify import chat, runners
from gpt54_convert.verify.artifact import Subject
from gpt54_convert.verify.verdict import FAIL, PASS, Check

Encode = Callable[[str, bool], list[int]]
"""(text, whether to add the special tokens that open and close it) -> ids"""

_SAMPLES = (
    "Hello, world!",
    "The year 2024 had 366 days; 3.14159 and 1,000,000 and 007.",
    "I'm, you're, we'll, they'd, IT'S, he’s",
    "naïve café, Zürich, Straße, Ærøskøbing, İstanbul, ﬁne, Å Å",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "いろはにほへと ちりぬるを 漢字かな交じり文。",
    "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。",
    "다람쥐 헌 쳇바퀴에 타고파",
    "صِف خَلقَ خَودِ كَمِثلِ الشَمسِ",
    "דג סקרן שט בים מאוכזב",
    "ऋषियों को सताने वाले दुष्ट राक्षसों",
    "กว่าบรรดาสรรพสัตว์เดรัจฉาน",
    "😀 😃😄 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 ☃ ❤️",
    "def f(x):\n    return {k: v**2 for k, v in x.items()}  # \ttab\n",
    '{"a": [1, 2.5e-3, null], \'b\': "\\u00e9\\n"}',
    "https://example.org/a?b=c&d=%20#frag user@example.org",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!???...---===___***///\\\\\\",
    "x\u00a0y\u2003z\u200bw\u3000v\ufeffu",
    "line\r\nline\rline\n\n\nline",
    "\t\ttabs\tand  two   three    spaces",
)
_SPACES = (
    "",
    " ",
    "  ",
    "   ",
    " " * 7,
    " " * 33,
    "\n",
    "\n\n",
    "\n\n\n\n",
    "\t",
    "\t\t",
    " \n ",
    "\r\n",
    "\u00a0",
)
_FUZZED = 200


def corpus(specials: list[str]) -> list[str]:
    """The same texts every time: languages, emoji, runs of white space, special tokens, mixtures."""
    generator = random.Random(54)
    texts = [*_SAMPLES, *_SPACES]
    texts += [f"{gap}word{gap}and{gap}" for gap in _SPACES]
    texts += [form.format(s) for s in specials for form in ("{0}", "a{0}b", "a {0} b", "{0}{0}")]
    texts += data.text("heldout").split("\n\n")[:120]
    letters = sorted({letter for text in _SAMPLES for letter in text})
    pieces = [*_SAMPLES, *_SPACES, *specials]
    for _ in range(_FUZZED):
        mixed = [
            generator.choice(generator.choice([letters, pieces])) for _ in range(generator.randint(1, 12))
        ]
        cut = [piece[: generator.randint(1, 12)] if piece not in specials else piece for piece in mixed]
        texts.append("".join(cut))
    return texts


def check(subject: Subject, source: Checkpoint, most: int | None = None) -> list[Check]:
    """Equal ids on the corpus, and equal chat templates.

    most: how many tokens of the vocabulary to try by themselves; by default all.
    Raises MeasureError where either tokenizer cannot be run.
    """
    if "tokenizer.json" not in source.tokenizer:
        return []
    if subject.container != "gguf":
        same = _same_files(subject, source)
        if same:
            return same
    ours = _huggingface(source)
    texts = corpus(_special_tokens(source))
    if subject.container == "gguf":
        vocabulary: Any = runners.load("llama_cpp").Vocabulary(subject.path)
        theirs, template = vocabulary.encode, vocabulary.chat_template
        if vocabulary.is_wordpiece:  # it drops these marks, which BERT's own normalizer keeps
            texts = [text for text in texts if not any(unicodedata.category(c) == "Mc" for c in text)]
    else:
        theirs, template = _folder_tokenizer(subject, source)
    checks = [_check_ids(ours, theirs, [*texts, *_vocabulary(source, most)])]
    checks += chat.check(source.tokenizer, template)
    return checks


def _same_files(subject: Subject, source: Checkpoint) -> list[Check]:
    """A passed check where the folder holds the model's very own tokenizer.json and template."""
    side = _folder.side_files(subject.folder)
    if side.tokenizer.get("tokenizer.json") != source.tokenizer["tokenizer.json"]:
        return []
    found = Check("tokenizer", "ids", PASS, "tokenizer.json is the model's own, byte for byte")
    return [found, *chat.check(source.tokenizer, chat.template(side.tokenizer))]


def check_structure(source: Checkpoint, artifact: Checkpoint) -> list[Check]:
    """Vocabulary, merges and added tokens of a GGUF file, compared without running either tokenizer.

    Less than equal ids, since llama.cpp cuts words by code of its own, but it needs no runtime.
    """
    if "tokenizer.json" not in source.tokenizer or "tokenizer.json" not in artifact.tokenizer:
        return []
    ours, theirs = (json.loads(held.tokenizer["tokenizer.json"]) for held in (source, artifact))
    wrong = ""
    if _tokens(ours) != _tokens(theirs):
        wrong = "tokens"
    elif _byte_level(ours) and _merges(ours) != _merges(theirs):  # elsewhere scores stand for merges
        wrong = "merges"
    elif not _added(ours) <= _added(theirs):
        wrong = "added tokens"
    if wrong:
        return [Check("tokenizer", "vocabulary", FAIL, f"the {wrong} are not those of the model")]
    detail = "tokens, merges and added tokens are the model's"
    template = chat.template(artifact.tokenizer)
    return [Check("tokenizer", "vocabulary", PASS, detail), *chat.check(source.tokenizer, template)]


def _tokens(content: Any) -> Any:
    found = content["model"].get("vocab")
    if isinstance(found, dict):
        return sorted((at, token) for token, at in found.items())
    return [(token, np.float32(score)) for token, score in found]


def _merges(content: Any) -> Any:
    found = content["model"].get("merges") or ()
    return [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in found]


def _byte_level(content: Any) -> bool:
    return bool((content.get("decoder") or {}).get("type") == "ByteLevel")


def _added(content: Any) -> set[Any]:
    return {(token["id"], token["content"]) for token in content.get("added_tokens") or ()}


def _check_ids(ours: Encode, theirs: Encode, texts: list[str]) -> Check:
    differing = [
        (text, added) for text in texts for added in (False, True) if ours(text, added) != theirs(text, added)
    ]
    if not differing:
        return Check("tokenizer", "ids", PASS, f"equal ids on {len(texts)} texts")
    text, added = min(differing, key=lambda case: len(case[0]))
    text = shrink(text, lambda part: ours(part, added) != theirs(part, added))
    wanted, found = ours(text, added), theirs(text, added)
    extra = " with special tokens added" if added else ""
    detail = (
        f"{len(differing)} of {2 * len(texts)} cases differ, the smallest {text!r}{extra}: the artifact "
        f"makes {_ids(found)}, the model's tokenizer {_ids(wanted)}"
    )
    return Check("tokenizer", "ids", FAIL, detail)


def _ids(ids: list[int]) -> str:
    return f"{ids[:12]}…" if len(ids) > 12 else str(ids)


def shrink(text: str, differs: Callable[[str], bool]) -> str:
    """A shortest part of `text` for which `differs` still holds: pieces are left out until none can be."""
    size = len(text) // 2
    while size >= 1:
        at = 0
        while at < len(text):
            shorter = text[:at] + text[at + size :]
            if differs(shorter):
                text = shorter
            else:
                at += size
        size //= 2
    return text


def _vocabulary(source: Checkpoint, most: int | None) -> list[str]:
    """Every token's own text: a merge that is missing shows there, if nowhere else."""
    found = tokenizer(source)
    size = found.get_vocab_size()
    texts = (found.decode([token]) for token in range(0, size, -(-size // most) if most else 1))
    return [text for text in dict.fromkeys(texts) if text and "\ufffd" not in text]


def _special_tokens(source: Checkpoint) -> list[str]:
    content = json.loads(source.tokenizer["tokenizer.json"])
    found = [str(token.get("content", "")) for token in content.get("added_tokens") or ()]
    return [text for text in found if text][:64]


def _huggingface(source: Checkpoint) -> Encode:
    found = tokenizer(source)
    return lambda text, added: list(found.encode(text, add_special_tokens=added).ids)


def _folder_tokenizer(subject: Subject, source: Checkpoint) -> tuple[Encode, str | None]:
    side = _folder.side_files(subject.folder)
    if "tokenizer.json" not in side.tokenizer:
        raise MeasureError(f"{subject.folder} has no tokenizer.json to compare with the model's")
    held = Checkpoint({}, {}, source.source, tokenizer=side.tokenizer)
    return _huggingface(held), chat.template(side.tokenizer)
