"""Texts that tokenizers like to disagree on; the same in every run."""

from __future__ import annotations

import random
import unicodedata

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Fünf süße Bären, Straße, ÄÖÜ, naïve café, œuvre, señor, Ångström, İstanbul, ǅ ﬁne",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "今天天气很好，我们去公园吧。 東京都に住んでいます。カタカナ・ひらがな 한국어 문장입니다.",
    "مرحبا بالعالم، كيف حالك؟ שלום עולם, מה שלומך?",
    "हिन्दी में एक वाक्य। বাংলা ভাষা தமிழ் మాట్లాడు ภาษาไทย ລາວ မြန်မာ ខ្មែរ",
    "Ελληνικά, Հայերեն, ქართული, አማርኛ, ᏣᎳᎩ, ᠮᠣᠩᠭᠣᠯ",
    "e\u0301 cafe\u0301 A\u030a \u1100\u1161\u11a8 \u0928\u093f\u0902",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇫🇷 ❤️ ☎︎ 1️⃣ 🤷🏾‍♀️🦙",
    "I'm you're we've they'll he'd it's 'S 'RE don'T O'Neill’s rock'n'roll ''' 'tis",
    "3 33 333 3333 33333 333333 3333333 1234567890 3.14159 1,000,000 ½ ² ٣٤٥ १२३ 四五 Ⅷ 2024-05-17T12:34:56Z",
    'def f(x: int) -> str:\n\treturn f"{x!r:>10}"  # comment\n\n\nclass A(B):\n    pass\n',
    "for (int i = 0; i < n; ++i) { a[i] += b[i] << 2; } // ok?\r\n#include <stdio.h>\r\n",
    '<div class="a b">&nbsp;</div><br/>\n{"k": [1, 2.5e-3, null, true]}\n',
    "$x^2 + \\frac{a}{b}$ `code` **bold** _it_ ~~no~~ > quote",
    "http://example.com/a_b-c?d=e&f=%20#g user.name+tag@mail.example C:\\Users\\x ../../etc",
    "   leading",
    "trailing   ",
    " \t mixed \t\t tabs \n \n\n  newlines \r\n\r\n end",
    "a  b   c    d     e      f",
    "\n",
    "\n\n",
    "\n\n\n",
    "\t",
    " ",
    "  ",
    "   ",
    "\r\n",
    " \n ",
    "\n \n",
    "\u00a0",
    "\u3000全角\u3000",
    "\u2003em\u2009thin",
    "!!!???...,,,;;;:::---___===+++***///\\\\\\|||~~~@@@###$$$%%%^^^&&&((()))[[[]]]{{{}}}<<<>>>",
    " ! ? . , ; : - _ = + * / \\ | ~ @ # $ % ^ & ( ) [ ] { } < >",
    "«»„“”‘’…–—•·§¶†‡°±×÷€£¥¢₿™®©",
    "ALLCAPS CamelCase snake_case kebab-case iPhone eBay McDonald XMLHttpRequest HTTPServer2Go",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa hahahahahaha ........................ ============",
    "ﷺ ﷽ \U0001d54f\U0001d7d8 \U00020000\U0002a6df ꙮ \ue000 \uffef ﬀ ｆｕｌｌ　ｗｉｄｔｈ ㌀ Ａ１",
    "word\u200bzero\u200cwidth\u200djoin\ufeffbom\u00adsoft\u2060",
    "a\u0001b\u0007c\u001bd\u007fe\u0085f",
)

# Characters for random strings: (first, last) code points.
_RANGES = (
    (32, 126),
    (32, 126),
    (32, 126),
    (9, 13),
    (0xA0, 0x24F),
    (0x370, 0x3FF),
    (0x400, 0x4FF),
    (0x4E00, 0x4FFF),
    (0x3040, 0x30FF),
    (0xAC00, 0xAD00),
    (0x600, 0x6FF),
    (0x900, 0x97F),
    (0x1F300, 0x1F6FF),
    (0x2000, 0x206F),
    (0x300, 0x36F),
    (0x1E00, 0x1EFF),
)


def texts(count: int = 400, special: tuple[str, ...] = (), seed: int = 54) -> list[str]:
    """All SENTENCES, then `count` strings made at random; `special` tokens are mixed in."""
    rng = random.Random(seed)
    made = list(SENTENCES)
    for token in special:
        made += [token, f"a{token}b", f"{token} {token}\n{token}", f" {token} "]
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 6)):
            choice = rng.random()
            if choice < 0.4:
                words = rng.choice(SENTENCES).split(" ")
                at = rng.randrange(len(words))
                parts.append(" ".join(words[at : at + rng.randint(1, 4)]))
            elif choice < 0.5 and special:
                parts.append(rng.choice(special))
            elif choice < 0.6:
                parts.append(rng.choice((" ", "  ", "\n", "\n\n", "\t", "    ", "\r\n")) * rng.randint(1, 3))
            elif choice < 0.7:
                parts.append(str(rng.randrange(10 ** rng.randint(1, 9))))
            else:
                low, high = rng.choice(_RANGES)
                parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8))))
        made.append("".join(parts))
    return made


def plain_for_bert(text: str) -> bool:
    """False for texts that llama.cpp's WordPiece is known to read differently from BERT.

    It drops every combining mark, and the vowels and finals of Hangul, where BERT drops class Mn only; and it
    takes other characters for controls.
    """
    decomposed = unicodedata.normalize("NFD", text)
    return not any(
        "\u1100" <= char <= "\u11ff" or (unicodedata.category(char)[0] in "MC" and char not in "\t\n\r")
        for char in decomposed
    )


def without_wide_space(text: str) -> bool:
    """False for texts with a white space beyond ASCII."""
    return all(ord(char) < 128 or not char.isspace() for char in text)


def without_controls(text: str) -> bool:
    """False for texts with ASCII control characters other than tab and line break."""
    return all(char in "\t\n\r" or (ord(char) >= 32 and ord(char) != 127) for char in text)
