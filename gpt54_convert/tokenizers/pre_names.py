r"""llama.cpp's pre-tokenizers by structure: one table, read in both directions.

Evidence: the regexes that the llama.cpp inside llama-cpp-python 0.3.36 uses for each name
(`src/llama-vocab.cpp`, which quotes most models' own regex in comments), and published tokenizer.json files.
Steps are what a model's own tokenizer.json holds; where llama.cpp approximates them (its regexes know no
`\p{Lu}`), ours stay exact, so an id that differs there is llama.cpp's.

To add a pre-tokenizer, add a row.
"""

from __future__ import annotations

from dataclasses import dataclass

Step = tuple[str, str]


@dataclass(frozen=True)
class Row:
    """A structure and its name; `aliases` are names that llama.cpp treats alike as far as ids go.

    ignore_merges and add_bos are what llama.cpp ties to the name.  normalizer: what the models of this name
    use (llama.cpp itself never normalizes for BPE).  only_restored: never chosen by structure, because an
    earlier row means the same and is better known.
    """

    name: str
    steps: tuple[Step, ...]
    normalizer: str | None = None
    ignore_merges: bool = False
    add_bos: bool = False
    aliases: tuple[str, ...] = ()
    only_restored: bool = False


def _split(regex: str) -> Step:
    return ("Split", regex)


BYTES: Step = ("ByteLevel", "")  # bytes to letters only
GPT2: Step = ("ByteLevel", "regex")  # GPT-2's own regex, then bytes to letters
DIGITS: Step = ("Digits", "individual")

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|" + _SPACES
_SIGNS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|" + _SPACES
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_NOT_WORD = r"[^\r\n\p{L}\p{N}]?"
_HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
)
_HAN_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_BLOOM = r" ?[^(\s|[.,!?" + "\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c" + "])]+"
_LLAMA3 = "|".join((_SHORT, _WORD, r"\p{N}{1,3}", _SIGNS))
_QWEN2 = "|".join((_SHORT, _WORD, r"\p{N}", _SIGNS))
_DEEPSEEK_LETTERS = (
    "[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-"
    "\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-"
    "\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
    "\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-"
    "\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e"
    "\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-"
    "\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-"
    "\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]"
)


def _cased(short: str, digits: str) -> str:
    """GPT-4o's regex: words end where lower case turns into upper case."""
    first = f"{_NOT_WORD}{_UPPER}*{_LOWER}+{short}"
    second = f"{_NOT_WORD}{_UPPER}+{_LOWER}*{short}"
    return "|".join((first, second, digits, _SIGNS_SLASH))


_GPT4O = _cased(_SHORT + "?", r"\p{N}{1,3}")

ROWS: tuple[Row, ...] = (
    Row(
        "gpt-2",
        (GPT2,),
        aliases=(
            *("phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum"),
            *("exaone4", "jais", "trillion", "granite-docling", "jina-v1-en", "jina-v2-code", "roberta-bpe"),
        ),
    ),
    Row("olmo", (GPT2,), "NFC", aliases=("mpt", "modern-bert")),
    Row(
        "smollm",
        (DIGITS, GPT2),
        aliases=("starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    Row("command-r", (DIGITS, GPT2), "NFC"),
    Row(
        "llama-bpe",
        (_split(_LLAMA3), BYTES),
        ignore_merges=True,
        add_bos=True,
        aliases=("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    ),
    Row("glm4", (_split(_LLAMA3), BYTES), ignore_merges=True, aliases=("glm5",), only_restored=True),
    Row("dbrx", (_split(_LLAMA3), BYTES), aliases=("smaug-bpe", "chatglm-bpe")),
    Row(
        "qwen2",
        (_split(_QWEN2), BYTES),
        "NFC",
        aliases=("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"),
    ),
    Row(
        "stablelm2",
        (_split(_QWEN2), BYTES),
        aliases=("hunyuan", "solar-open", "grok-2"),
        only_restored=True,
    ),
    Row(
        "qwen35",
        (
            _split(
                _SHORT
                + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|"
                + _SPACES
            ),
            BYTES,
        ),
    ),
    Row("ufakzeka", (_split("|".join((_WORD, r"\p{N}", _SIGNS))), BYTES)),
    Row("laguna", (_split(r"[^\n]+|[\n]+"), _split(_QWEN2), BYTES)),
    Row(
        "minicpm5",
        (_split(r"\p{N}{1,3}"), _split("|".join((_SHORT, _WORD, r"\p{N}+", _SIGNS))), BYTES),
        ignore_merges=True,
    ),
    Row(
        "seed-coder",
        (
            _split("|".join((_SHORT, _WORD, r"\p{N}{1}", r" ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+", _SPACES))),
            BYTES,
        ),
    ),
    Row(
        "bailingmoe",
        (
            _split(
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}|"
                r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|" + _SPACES
            ),
            BYTES,
        ),
        aliases=("bailingmoe2", "llada-moe"),
    ),
    Row(
        "exaone-moe",
        (
            _split(
                _SHORT
                + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|"
                + r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|"
                + _SPACES
            ),
            BYTES,
        ),
    ),
    Row(
        "jais-2",
        (
            _split(
                "|".join((_SHORT, _WORD, r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"))
                + "".join(rf"\s{{{count}}}(?!\S)|" for count in (512, 256, 128, 64, 32, 16, 8, 4))
                + r"\s{1,2}(?!\S)|\s{1}"
            ),
            BYTES,
        ),
    ),
    Row("gpt-4o", (_split(_GPT4O), BYTES), aliases=("llama4", "kanana2", "talkie", "minimax-m2")),
    Row("tekken", (_split(_cased("", r"\p{N}")), BYTES), ignore_merges=True, add_bos=True),
    Row("tiny_aya", (_split(r"\d{1,3}(?=(?:\d{3})*\b)"), _split(_GPT4O), BYTES), aliases=("cohere2moe",)),
    Row(
        "deepseek-llm",
        (
            _split(r"[\r\n]"),
            _split(r"\s?" + _DEEPSEEK_LETTERS + "+"),
            _split(r"\s?[!-/:-~" + "\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002" + "]+"),
            _split(r"\s+$"),
            _split(_HAN_HANGUL),
            DIGITS,
            BYTES,
        ),
    ),
    Row(
        "deepseek-coder",
        (_split(r"[\r\n]"), _split(r"\s?\p{L}+"), _split(r"\s?\p{P}+"), _split(_HAN_HANGUL), DIGITS, BYTES),
    ),
    Row(
        "deepseek-v3",
        (
            _split(r"\p{N}{1,3}"),
            _split(_HAN_KANA),
            _split(_DEEPSEEK3 + r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|" + _SPACES),
            BYTES,
        ),
        aliases=("hunyuan-dense", "joyai-llm", "hy_v4"),
    ),
    Row(
        "spark2_5",
        (
            _split(r"\p{N}{1,3}"),
            _split(_HAN_KANA),
            _split(_DEEPSEEK3 + r" ?[\p{P}\p{S}]+|[\r\n]|" + _SPACES),
            DIGITS,
            BYTES,
        ),
    ),
    Row("falcon", (("Punctuation", "Contiguous"), GPT2, ("Digits", "runs"), _split("[0-9][0-9][0-9]"))),
    Row("bloom", (_split(_BLOOM), BYTES), aliases=("poro-chat", "gpt3-finnish")),
    Row("viking", (_split(_BLOOM), DIGITS, BYTES)),
    # No model's own structure: what llama.cpp does with a file that names none.
    Row(
        "default",
        (
            _split(r"[\p{P}\$\+<=>\^~\|]+"),
            _split(_GPT2),
            _split(r"\p{N}+"),
            _split("[0-9][0-9][0-9]"),
            BYTES,
        ),
    ),
)

# Loaded by llama.cpp, but with a structure that is not (yet) a row: accepted when the user names them.
_ONLY_BY_NAME = (
    *("afmoe", "chameleon", "gemma4", "granite-embed-multi-311m", "granite-embed-multi-97m", "kimi-k2"),
    *("sarvam-moe", "superbpe", "whitespace", "youtu"),
)
KNOWN_NAMES = frozenset({name for row in ROWS for name in (row.name, *row.aliases)} | set(_ONLY_BY_NAME))
