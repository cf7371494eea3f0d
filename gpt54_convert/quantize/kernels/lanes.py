"""Sixteen float32 lanes as one value inside Numba functions.

Numba leaves vectorising to LLVM, which does not see across the reductions of a scale search (float sums may
not be reordered).  Here a kernel says itself what runs side by side: each lane holds another group of
weights, so every group's sums stay in their own order and the result is the same on every CPU, whatever its
vector width (LLVM splits the sixteen lanes as the CPU needs).  Nothing is fast-math; `fma` rounds once, by
IEEE 754, on all CPUs.

Inside `@njit` code: `+ - * /` on lanes, comparisons `<` and `<=` giving a mask, and the functions below.
Outside it, none of these can be called.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

WIDTH = 16

_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_VECTOR = ir.VectorType(_F32, WIDTH)
_INTEGERS = ir.VectorType(_I32, WIDTH)
_BYTES = ir.VectorType(ir.IntType(8), WIDTH)
_BITS = ir.VectorType(ir.IntType(1), WIDTH)


class LanesType(types.Type):  # type: ignore[misc]
    """Numba's type of sixteen float32."""

    def __init__(self) -> None:
        super().__init__(name="Lanes16")


class MaskType(types.Type):  # type: ignore[misc]
    """Numba's type of sixteen truth values."""

    def __init__(self) -> None:
        super().__init__(name="Mask16")


LANES, MASK = LanesType(), MaskType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


@register_model(MaskType)
class _MaskModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _BITS)


def _operator(symbol: Any, result: types.Type, emit: Any, operand: types.Type = LANES) -> None:
    """Give `symbol` a meaning for two values of type `operand`."""

    def typing(context: Any) -> Any:
        return lambda left, right: result if left == operand and right == operand else None

    def lowering(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, *args)

    type_callable(symbol)(typing)
    lower_builtin(symbol, type(operand), type(operand))(lowering)


_operator(operator.add, LANES, lambda b, x, y: b.fadd(x, y))
_operator(operator.sub, LANES, lambda b, x, y: b.fsub(x, y))
_operator(operator.mul, LANES, lambda b, x, y: b.fmul(x, y))
_operator(operator.truediv, LANES, lambda b, x, y: b.fdiv(x, y))
_operator(operator.lt, MASK, lambda b, x, y: b.fcmp_ordered("<", x, y))
_operator(operator.le, MASK, lambda b, x, y: b.fcmp_ordered("<=", x, y))
_operator(operator.and_, MASK, lambda b, x, y: b.and_(x, y), MASK)
_operator(operator.or_, MASK, lambda b, x, y: b.or_(x, y), MASK)


def _inside(emitter: Callable[..., Any]) -> Callable[..., Any]:
    """Make `emitter`, which gets Numba's typing context and argument types, a function of compiled code."""
    made: Callable[..., Any] = intrinsic(prefer_literal=True)(emitter)
    return made


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, to: Any) -> Any:
    """Pointer to element `index` of a contiguous one-dimensional array, seen as a vector of type `to`."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(cgutils.gep_inbounds(builder, data, index), to.as_pointer())


@_inside
def load(typing: Any, array: Any, index: Any) -> Any:
    """Lanes at array[index : index + 16]; `array` is contiguous float32, the bounds are the caller's duty."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _address(context, builder, sig.args[0], args[0], args[1], _VECTOR)
        return builder.load(pointer, align=4)

    return LANES(types.Array(types.float32, 1, "C"), types.intp), emit


@_inside
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write lanes to array[index : index + 16] (contiguous float32)."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _address(context, builder, sig.args[0], args[0], args[1], _VECTOR)
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(types.Array(types.float32, 1, "C"), types.intp, LANES), emit


@_inside
def store_bytes(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write lanes of integers -128…255 to array[index : index + 16] (uint8; negative: two's complement)."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _address(context, builder, sig.args[0], args[0], args[1], _BYTES)
        builder.store(builder.trunc(builder.fptosi(args[2], _INTEGERS), _BYTES), pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.Array(types.uint8, 1, "C"), types.intp, LANES), emit


@_inside
def splat(typing: Any, value: Any) -> Any:
    """The same number in all lanes, rounded to float32."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        single = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), args[0], _I32(0))
        first = ir.Constant(_INTEGERS, [0] * WIDTH)
        return builder.shuffle_vector(single, ir.Constant(_VECTOR, ir.Undefined), first)

    return LANES(types.float32), emit


def _llvm(name: str, arity: int) -> Any:
    """An intrinsic function of LLVM on lanes."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * arity)
        return builder.call(builder.module.declare_intrinsic(f"llvm.{name}.v16f32", fnty=kind), args)

    return LANES(*[LANES] * arity), emit


@_inside
def fma(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once."""
    return _llvm("fma", 3)


@_inside
def rint(typing: Any, x: Any) -> Any:
    """The nearest integer, ties to even."""
    return _llvm("rint", 1)


@_inside
def magnitude(typing: Any, x: Any) -> Any:
    """Absolute value."""
    return _llvm("fabs", 1)


@_inside
def eleven_bits(typing: Any, x: Any) -> Any:
    """x rounded to eleven significant bits, ties to even: float16's precision, with float32's range."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def constant(value: int) -> Any:
            return ir.Constant(_INTEGERS, [value] * WIDTH)

        bits = builder.bitcast(args[0], _INTEGERS)
        odd = builder.and_(builder.lshr(bits, constant(13)), constant(1))
        bits = builder.add(bits, builder.add(odd, constant(0x0FFF)))
        return builder.bitcast(builder.and_(bits, constant(~0x1FFF)), _VECTOR)

    return LANES(LANES), emit


def _pick(comparison: str) -> Any:
    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(comparison, *args), *args)

    return LANES(LANES, LANES), emit


@_inside
def lower(typing: Any, x: Any, y: Any) -> Any:
    """x where x < y, else y (so y where either is NaN)."""
    return _pick("<")


@_inside
def upper(typing: Any, x: Any, y: Any) -> Any:
    """x where x > y, else y (so y where either is NaN)."""
    return _pick(">")


@_inside
def select(typing: Any, mask: Any, x: Any, y: Any) -> Any:
    """x where the mask holds, else y."""
    return LANES(MASK, LANES, LANES), lambda context, builder, sig, args: builder.select(*args)


@_inside
def swap(typing: Any, x: Any, distance: Any) -> Any:
    """Lane i gets lane i xor `distance`, a literal power of two below 16."""
    if not isinstance(distance, types.IntegerLiteral):
        return None
    order = ir.Constant(_INTEGERS, [lane ^ distance.literal_value for lane in range(WIDTH)])

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.shuffle_vector(args[0], args[0], order)

    return LANES(LANES, distance), emit


@_inside
def interleave(typing: Any, x: Any, y: Any, half: Any) -> Any:
    """x0 y0 x1 y1 … x7 y7 for a literal `half` of 0, x8 y8 … x15 y15 for 1."""
    if not isinstance(half, types.IntegerLiteral):
        return None
    order = [8 * half.literal_value + i // 2 + WIDTH * (i % 2) for i in range(WIDTH)]

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.shuffle_vector(args[0], args[1], ir.Constant(_INTEGERS, order))

    return LANES(LANES, LANES, half), emit


@_inside
def transpose(typing: Any, source: Any, start: Any, stride: Any, target: Any, to: Any) -> Any:
    """target[to + 16 j + i] = source[start + stride i + j] for i, j < 16; both contiguous float32."""
    array = types.Array(types.float32, 1, "C")
    low = ir.Constant(_INTEGERS, [i // 2 + WIDTH * (i % 2) for i in range(WIDTH)])
    high = ir.Constant(_INTEGERS, [8 + i // 2 + WIDTH * (i % 2) for i in range(WIDTH)])

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def at(which: int, offset: Any) -> Any:
            index = builder.add(args[which + 1], offset)
            return _address(context, builder, sig.args[which], args[which], index, _VECTOR)

        count = args[2].type
        rows = [builder.load(at(0, builder.mul(args[2], count(i))), align=4) for i in range(WIDTH)]
        for _ in range(4):  # a perfect shuffle of all 256 numbers, four times, is a transposition
            pairs = list(zip(rows[:8], rows[8:], strict=True))
            rows = [builder.shuffle_vector(x, y, part) for x, y in pairs for part in (low, high)]
        for i, row in enumerate(rows):
            builder.store(row, at(3, count(WIDTH * i)), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, array, types.intp), emit
