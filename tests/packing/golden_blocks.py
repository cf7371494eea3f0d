"""One block of every GGUF type, frozen: codes and scales made by a rule, and their bytes.

The bytes were checked with gguf-py when they were frozen: its `dequantize` gave the values that the rule's
codes and scales stand for.  Codes, scales and minima differ, so a swap of any two fields or bits shows.
"""

from __future__ import annotations

import numpy as np

from gpt54_convert.quantize.grids import SUPER, grid
from gpt54_convert.quantize.qtensor import QTensor


def example(name: str) -> QTensor:
    """Code i is (7 i + 3 + i // 16) mod 2**bits; d = -1.25, minimum 0.375; sub-scale j is 11 j + 2 mod 64."""
    target = grid(name)
    elements = np.arange(target.block)
    codes = ((elements * 7 + 3 + elements // 16) % (1 << target.bits)).astype(np.uint8)[None]
    d, minimum = np.full((1, 1), -1.25, np.float16), np.full((1, 1), 0.375, np.float16)
    if name == "mxfp4":
        return QTensor(target, codes, np.full((1, 1), 125, np.uint8))
    if target.kind != SUPER:
        return QTensor(target, codes, d, None if target.symmetric else minimum)
    groups = np.arange(target.block // target.group)
    limit = 16 if name == "q2_k" else 64
    scale = ((groups * 11 + 2) % limit).astype(np.uint8)[None]
    if name == "q6_k":
        return QTensor(target, codes, (scale.astype(np.int8) - 30), None, d)
    offset = None if target.symmetric else ((groups * 13 + 5) % limit).astype(np.uint8)[None]
    return QTensor(target, codes, scale, offset, d, None if offset is None else minimum)


GOLDEN = {
    "q4_0": ("00bd43ba21980f76ed54cb32a91087fe65dc"),
    "q4_1": ("00bd003643ba21980f76ed54cb32a91087fe65dc"),
    "q5_0": ("00bd9c3973c643ba21980f76ed54cb32a91087fe65dc"),
    "q5_1": ("00bd00369c3973c643ba21980f76ed54cb32a91087fe65dc"),
    "q8_0": ("00bd838a91989fa6adb4bbc2c9d0d7dee5ecf4fb020910171e252c333a41484f565d"),
    "iq4_nl": ("00bd43ba21980f76ed54cb32a91087fe65dc"),
    "mxfp4": ("7d43ba21980f76ed54cb32a91087fe65dc"),
    "q2_k": (
        "522df8c39e69340fdaa5704b16e1bc877722dd887722dd887722dd887722dd88887722dd887722dd887722dd887722dd"
        "7722dd887722dd887722dd887722dd88887722dd887722dd887722dd887722dd00bd0036"
    ),
    "q3_k": (
        "6666cccc999933336666cccc99993333336666cccc999933336666cccc9999337722dd887722dd887722dd887722dd88"
        "887722dd887722dd887722dd887722dd7722dd887722dd887722dd887722dd88887722dd887722dd887722dd887722dd"
        "a25d08b36e19c47f186c71b200bd"
    ),
    "q4_k": (
        "00bd003682cd1823c5125fac9e69340f53ca31a81f86fd64db42b920970e75ec64db42b920970e75ec53ca31a81f86fd"
        "970e75ec53ca31a81f86fd64db42b920a81f86fd64db42b920970e75ec53ca31db42b920970e75ec53ca31a81f86fd64"
        "ec53ca31a81f86fd64db42b920970e751f86fd64db42b920970e75ec53ca31a820970e75ec53ca31a81f86fd64db42b9"
    ),
    "q5_k": (
        "00bd003682cd1823c5125fac9e69340f80f8ff0f01e0fc3f0780f0ff1f01c0fc3f0780f0ff1f01c0fc7f0700f0fe1f03"
        "53ca31a81f86fd64db42b920970e75ec64db42b920970e75ec53ca31a81f86fd970e75ec53ca31a81f86fd64db42b920"
        "a81f86fd64db42b920970e75ec53ca31db42b920970e75ec53ca31a81f86fd64ec53ca31a81f86fd64db42b920970e75"
        "1f86fd64db42b920970e75ec53ca31a820970e75ec53ca31a81f86fd64db42b9"
    ),
    "q6_k": (
        "73ea51c83fa61d84fb62d940b72e950c84fb62d940b72e950c73ea51c83fa61d950c73ea51c83fa61d84fb62d940b72e"
        "a61d84fb62d940b72e950c73ea51c83ffb62d940b72e950c73ea51c83fa61d840c73ea51c83fa61d84fb62d940b72e95"
        "1d84fb62d940b72e950c73ea51c83fa62e950c73ea51c83fa61d84fb62d940b788c8dddd21227277b78888dddd212272"
        "77b78888dddd21227277b78888dcdd2dc8dddd222276778788c8dddd212272778788c8dddd21227277b78888dddd2122"
        "e4effa05101be6f1fc07121de8f3fe0900bd"
    ),
    "iq4_xs": (
        "00bd900ed2389ef443ba21980f76ed54cb32a91087fe65dc65dc43ba21980f76ed54cb32a91087fe87fe65dc43ba2198"
        "0f76ed54cb32a910a91087fe65dc43ba21980f76ed54cb32cb32a91087fe65dc43ba21980f76ed54ed54cb32a91087fe"
        "65dc43ba21980f760f76ed54cb32a91087fe65dc43ba219821980f76ed54cb32a91087fe65dc43ba"
    ),
}
