"""iq4_nl's sixteen levels (ggml-common.h, kvalues_iq4nl): chains of comparisons with the middles between.

Written out with literal numbers: Numba would read a table of them from memory.
"""

from __future__ import annotations

from gpt54_convert.quantize.kernels.groups import F32, Lanes
from gpt54_convert.quantize.kernels.jit import inlined
from gpt54_convert.quantize.kernels.lanes import select, splat


@inlined
def curved_level(y: Lanes) -> Lanes:
    """The level nearest to y."""
    level = splat(F32(-127))
    level = select(splat(F32(-115.5)) < y, splat(F32(-104)), level)
    level = select(splat(F32(-93.5)) < y, splat(F32(-83)), level)
    level = select(splat(F32(-74)) < y, splat(F32(-65)), level)
    level = select(splat(F32(-57)) < y, splat(F32(-49)), level)
    level = select(splat(F32(-42)) < y, splat(F32(-35)), level)
    level = select(splat(F32(-28.5)) < y, splat(F32(-22)), level)
    level = select(splat(F32(-16)) < y, splat(F32(-10)), level)
    level = select(splat(F32(-4.5)) < y, splat(F32(1)), level)
    level = select(splat(F32(7)) < y, splat(F32(13)), level)
    level = select(splat(F32(19)) < y, splat(F32(25)), level)
    level = select(splat(F32(31.5)) < y, splat(F32(38)), level)
    level = select(splat(F32(45.5)) < y, splat(F32(53)), level)
    level = select(splat(F32(61)) < y, splat(F32(69)), level)
    level = select(splat(F32(79)) < y, splat(F32(89)), level)
    level = select(splat(F32(101)) < y, splat(F32(113)), level)
    return level


@inlined
def curved_code(y: Lanes) -> Lanes:
    """The number of the level nearest to y, from 0."""
    code = splat(F32(0))
    code = select(splat(F32(-115.5)) < y, splat(F32(1)), code)
    code = select(splat(F32(-93.5)) < y, splat(F32(2)), code)
    code = select(splat(F32(-74)) < y, splat(F32(3)), code)
    code = select(splat(F32(-57)) < y, splat(F32(4)), code)
    code = select(splat(F32(-42)) < y, splat(F32(5)), code)
    code = select(splat(F32(-28.5)) < y, splat(F32(6)), code)
    code = select(splat(F32(-16)) < y, splat(F32(7)), code)
    code = select(splat(F32(-4.5)) < y, splat(F32(8)), code)
    code = select(splat(F32(7)) < y, splat(F32(9)), code)
    code = select(splat(F32(19)) < y, splat(F32(10)), code)
    code = select(splat(F32(31.5)) < y, splat(F32(11)), code)
    code = select(splat(F32(45.5)) < y, splat(F32(12)), code)
    code = select(splat(F32(61)) < y, splat(F32(13)), code)
    code = select(splat(F32(79)) < y, splat(F32(14)), code)
    code = select(splat(F32(101)) < y, splat(F32(15)), code)
    return code
