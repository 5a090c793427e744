"""What the instructions of compiled CUDA kernels do. Values are right to rounding; unknown instructions are errors.

An instruction is decoded when it first runs, into a function of a warp and of those of its lanes that execute it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sass import Instruction, Operand, float_of
from warps import (
    LANE,
    LANES,
    LOCAL_BYTES,
    ZERO,
    Access,
    Array,
    Get,
    Mask,
    Program,
    Put,
    Run,
    Unknown,
    Warp,
    bank_conflicts,
    global_access,
)

Decoder = Callable[[Program, Instruction], Run]
Function = Callable[..., Any]
DECODERS: dict[str, Decoder] = {}
PREDICATES = ("P", "UP")


def decoder(names: str) -> Callable[[Decoder], Decoder]:
    def register(function: Decoder) -> Decoder:
        DECODERS.update(dict.fromkeys(names.split(), function))
        return function

    return register


def of_values(names: str, sources: str, result: str = "r") -> Callable[[Callable[[Instruction], Function]], None]:
    """Registers instructions that are a function of values alone: f(instruction) returns it. `sources` are the kinds of
    the operands after the results: u, s, f (32 bits), q, d (64), p (a predicate), or i (u or s) and x (f or d) by the
    instruction's modifiers. The result is r (a register), x, 1 or 2 (so many predicates)."""

    def register(function: Callable[[Instruction], Function]) -> None:
        def decode(p: Program, i: Instruction) -> Run:
            is_wide = i.opcode[0] == "D" or "F64" in i.modifiers
            kinds = sources.replace("i", "u" if "U32" in i.modifiers else "s").replace("x", "d" if is_wide else "f")
            count = int(result) if result.isdigit() else 1
            gets = [p.read(kind, operand) for kind, operand in zip(kinds, i.operands[count:], strict=False)]
            f = function(i)
            if result.isdigit():
                puts = [p.put_predicate(out) for out in i.operands[:count]]
                return lambda w, lanes: put_all(w, lanes, puts, f(*[get(w) for get in gets]))
            put = (p.put64 if result == "x" and is_wide else p.put)(i.operands[0])
            return lambda w, lanes: put(w, lanes, f(*[get(w) for get in gets]))

        DECODERS.update(dict.fromkeys(names.split(), decode))

    return register


def put_all(w: Warp, lanes: Mask, puts: Sequence[Put], values: Sequence[Array]) -> None:
    for put, value in zip(puts, values, strict=True):
        put(w, lanes, value)


def split_results(operands: Sequence[Operand]) -> tuple[list[Operand], list[Operand]]:
    """Leading predicates, which are results, and the rest."""
    count = next((n for n, o in enumerate(operands) if o.kind not in PREDICATES), len(operands))
    return list(operands[:count]), list(operands[count:])


def low_bits(x: Array) -> Array:
    return x.astype(np.uint32)  # of an integer array: modulo 2^32


def number_in(names: Sequence[str], letter: str) -> int:
    """Of a suffix such as B2 or H1."""
    return next((int(name[1]) for name in names if name[0] == letter and name[1:2].isdigit()), 0)


@decoder("NOP YIELD DEPBAR LDGDEPBAR ERRBAR CGAERRBAR MEMBAR CCTL NANOSLEEP BMOV FENCE ULEPC")
def nothing(p: Program, i: Instruction) -> Run:
    return lambda w, lanes: None


# ---- moves -----------------------------------------------------------------------------------------------------------

of_values("MOV R2UR", "u")(lambda i: lambda a: a)
of_values("SEL", "uup")(lambda i: lambda a, b, chosen: np.where(chosen, a, b))
of_values("FSEL", "ffp")(lambda i: lambda a, b, chosen: np.where(chosen, a, b))


@decoder("LDC LDCU")
def load_constant(p: Program, i: Instruction) -> Run:
    dtype, words = cells_of(i)
    cells = np.frombuffer(p.banks[i.operands[1].index], dtype)
    address = p.sum_of_parts(i.operands[1].parts)
    puts = [p.put(i.operands[0], word) for word in range(words)]

    def run(w: Warp, lanes: Mask) -> None:
        first = address(w) // dtype.itemsize
        values = [low_bits(cells[np.minimum(first + word, len(cells) - 1)].astype(np.int64)) for word in range(words)]
        put_all(w, lanes, puts, values)

    return run


@decoder("CS2R")
def clear(p: Program, i: Instruction) -> Run:
    if i.operands[1].text != "SRZ":
        raise Unknown(i.text)
    puts = [p.put(i.operands[0], word) for word in range(1 if "32" in i.modifiers else 2)]
    zeros = [np.zeros(LANES, np.uint32)] * len(puts)
    return lambda w, lanes: put_all(w, lanes, puts, zeros)


SPECIAL: dict[str, Callable[[Warp], Any]] = {
    "SR_TID.X": lambda w: LANE + w.first_thread,
    **dict.fromkeys(("SR_TID.Y", "SR_TID.Z", "SR_CgaCtaId", "SR_SWINHI"), lambda w: 0),
    "SR_CTAID.X": lambda w: w.block.index[0],
    "SR_CTAID.Y": lambda w: w.block.index[1],
    "SR_CTAID.Z": lambda w: w.block.index[2],
    "SR_LANEID": lambda w: LANE,
    "SR_LEMASK": lambda w: (2 << LANE) - 1,
    "SR_LTMASK": lambda w: (1 << LANE) - 1,
    "SR_EQMASK": lambda w: 1 << LANE,
}


@decoder("S2R S2UR")
def special(p: Program, i: Instruction) -> Run:
    value, put = SPECIAL.get(i.operands[1].text), p.put(i.operands[0])
    if value is None:
        raise Unknown(i.text)
    return lambda w, lanes: put(w, lanes, low_bits(np.zeros(LANES, np.int64) + value(w)))


def permuted(a: Array, selector: Array, b: Array) -> Array:
    source = np.stack([a, b], axis=1).view(np.uint8)  # 8 bytes of each lane
    nibbles = selector[:, None] >> np.arange(0, 16, 4, dtype=np.uint32) & np.uint32(15)
    values = source[LANE[:, None], nibbles & 7]
    signs = np.where(values & 128, np.uint8(255), np.uint8(0))
    return np.where(nibbles & 8, signs, values).view(np.uint32)[:, 0]


@of_values("PRMT", "uuu")
def permute(i: Instruction) -> Function:
    if i.modifiers:
        raise Unknown(i.text)
    return permuted


@decoder("P2R")
def predicates_to_register(p: Program, i: Instruction) -> Run:
    put, a, mask = p.put(i.operands[0]), p.u32(i.operands[2]), p.u32(i.operands[3])
    shift = np.uint32(8 * number_in(i.modifiers, "B"))

    def run(w: Warp, lanes: Mask) -> None:
        bits = np.packbits(w.p[:7], axis=0, bitorder="little")[0].astype(np.uint32)
        put(w, lanes, a(w) & ~(mask(w) << shift) | (bits & mask(w)) << shift)

    return run


@decoder("R2P")
def register_to_predicates(p: Program, i: Instruction) -> Run:
    a, mask = p.u32(i.operands[1]), p.u32(i.operands[2])
    shift = np.uint32(8 * number_in((*i.modifiers, *i.operands[1].suffixes), "B"))

    def run(w: Warp, lanes: Mask) -> None:
        bits, chosen = (
            np.unpackbits(x.astype(np.uint8)[None], axis=0, bitorder="little") for x in (a(w) >> shift, mask(w))
        )
        np.copyto(w.p[:7], bits[:7] != 0, where=lanes & (chosen[:7] != 0))

    return run


@decoder("B2R")
def barrier_to_register(p: Program, i: Instruction) -> Run:
    put = p.put_predicate(i.operands[-1])
    return lambda w, lanes: put(w, lanes, w.vote)


# ---- integers --------------------------------------------------------------------------------------------------------


def addend(p: Program, operand: Operand) -> Get:
    """As a number of 33 bits: -x is ~x + 1, so that subtracting 0 carries."""
    if operand.kind in PREDICATES:
        return p.predicate(operand)
    get = p.u32(operand) if operand.sign == "~" else p.raw(operand)
    if operand.sign == "-" and operand.kind != "number":
        return lambda w: (1 << 32) - get(w).astype(np.int64)
    return get


def put_sum(p: Program, i: Instruction, outs: list[Operand], sum_of: Get) -> Run:
    """Writes 32 bits of a sum; passing their end k times sets the first k predicates."""
    put, puts = p.put(i.operands[0]), [p.put_predicate(out) for out in outs]

    def run(w: Warp, lanes: Mask) -> None:
        total = sum_of(w)
        put(w, lanes, low_bits(total))
        for k, put_carry in enumerate(puts):
            put_carry(w, lanes, total >> 32 > k)

    return run


@decoder("IADD3 VIADD IADD")
def add(p: Program, i: Instruction) -> Run:
    outs, rest = split_results(i.operands[1:])
    gets = [addend(p, operand) for operand in rest]
    return put_sum(p, i, outs, lambda w: sum((get(w) for get in gets), np.zeros(LANES, np.int64)))


@decoder("IMAD")
def multiply_add(p: Program, i: Instruction) -> Run:
    names = i.modifiers
    outs, (a, b, c, *rest) = split_results(i.operands[1:])
    carried = [p.predicate(operand) for operand in rest] if "X" in names else []
    if "WIDE" not in names and "HI" not in names:
        x, y, z = p.u32(a), p.u32(b), p.u32(c)
        addends = [lambda w: (x(w) * y(w)).astype(np.int64), z, *carried]
        return put_sum(p, i, outs, lambda w: sum((get(w) for get in addends[1:]), addends[0](w)))
    read, put = ((p.u32 if "U32" in names else p.s32), (p.put if "HI" in names else p.put64)(i.operands[0]))
    x, y, z, puts = read(a), read(b), p.u64(c), [p.put_predicate(out) for out in outs]

    def run(w: Warp, lanes: Mask) -> None:
        product = (x(w).astype(np.int64) * y(w).astype(np.int64)).view(np.uint64)
        total = product - z(w) if c.sign == "-" else product + z(w)
        carries = total < product
        for get in carried:
            total = total + get(w).astype(np.uint64)
        put(w, lanes, low_bits(total >> np.uint64(32)) if "HI" in names else total)
        put_all(w, lanes, puts, [carries] * len(puts))

    return run


@decoder("LEA")
def scaled_add(p: Program, i: Instruction) -> Run:
    outs, rest = split_results(i.operands[1:])
    carried = [p.predicate(rest.pop())] if rest[-1].kind in PREDICATES else []
    shift, a, is_high = rest.pop().index, rest[0], "HI" in i.modifiers
    low, added, high = (p.raw(a), p.u32(rest[1]), p.u32(rest[2]) if len(rest) > 2 else None)

    def sum_of(w: Warp) -> Array:
        value = low(w).astype(np.int64) if high else low(w).view(np.int32).astype(np.int64)
        value = value | high(w).astype(np.int64) << 32 if high else value
        value = (-value if a.sign == "-" else value) << shift
        part = (value >> 32 if is_high else value) & 0xFFFFFFFF
        return sum((get(w) for get in carried), part + added(w))

    return put_sum(p, i, outs, sum_of)


@of_values("SHF", "uuu")
def shift_funnel(i: Instruction) -> Function:
    names = i.modifiers
    bits = 64 if "U64" in names or "S64" in names else 32
    is_signed = "S32" in names or "S64" in names

    def shifted(a: Array, shift: Array, c: Array) -> Array:
        value = a.astype(np.uint64) | c.astype(np.uint64) << np.uint64(32)
        value = value.view(np.int64) if is_signed else value
        count = (shift & np.uint32(bits - 1) if "W" in names else np.minimum(shift, np.uint32(bits))).astype(
            value.dtype
        )
        whole = np.minimum(count, value.dtype.type(63))  # a shift by 64 takes two steps
        value = value << whole << count - whole if "L" in names else value >> whole >> count - whole
        return low_bits(value >> value.dtype.type(32) if "HI" in names else value)

    return shifted


def lookup(table: int, a: Array, b: Array, c: Array) -> Array:
    """Bitwise function of three arrays of bits, by its table of 8 results."""
    cases = [case for case in range(8) if table >> case & 1]
    parts = [(a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c) for case in cases]
    return np.bitwise_or.reduce(parts) if parts else np.zeros_like(a)


@decoder("LOP3")
def logic(p: Program, i: Instruction) -> Run:
    outs, rest = split_results(i.operands)
    put, puts = p.put(rest[0]), [p.put_predicate(out) for out in outs]
    a, b, c = (p.u32(operand) for operand in rest[1:4])
    or_else = p.predicate(rest[5]) if len(rest) > 5 else None

    def run(w: Warp, lanes: Mask) -> None:
        result = lookup(rest[4].index, a(w), b(w), c(w))
        put(w, lanes, result)
        for each in puts:
            each(w, lanes, (result != 0) | or_else(w) if or_else else result != 0)

    return run


@of_values("PLOP3", "ppp", "2")
def logic_of_predicates(i: Instruction) -> Function:
    tables = [operand.index for operand in i.operands[5:7]]
    return lambda a, b, c: [lookup(table, a, b, c) for table in tables]


COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "LT": np.less,
    "EQ": np.equal,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "NE": lambda a, b: (a < b) | (a > b) if a.dtype.kind == "f" else a != b,
    "NUM": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "NAN": lambda a, b: np.isnan(a) | np.isnan(b),
    "LTU": lambda a, b: ~(a >= b),
    "EQU": lambda a, b: ~((a < b) | (a > b)),
    "LEU": lambda a, b: ~(a > b),
    "GTU": lambda a, b: ~(a <= b),
    "NEU": np.not_equal,
    "GEU": lambda a, b: ~(a < b),
    "T": lambda a, b: np.ones(LANES, bool),
    "F": lambda a, b: np.zeros(LANES, bool),
}
COMBINE: dict[str, Callable[[Array, Array], Array]] = {
    "AND": np.logical_and,
    "OR": np.logical_or,
    "XOR": np.logical_xor,
}


def comparison(i: Instruction) -> Function:
    """Of integers with EX, the result is that of the low halves where the high ones are equal."""
    compare, combine = (COMPARE[i.modifiers[0]], COMBINE[next(name for name in i.modifiers if name in COMBINE)])
    is_extended = "EX" in i.modifiers

    def compared(a: Array, b: Array, other: Array, low: Array) -> tuple[Array, Array]:
        result = np.where(a == b, low, compare(a, b)) if is_extended else compare(a, b)
        return combine(result, other), combine(~result, other)

    return compared if is_extended else lambda a, b, other, *_: compared(a, b, other, other)


of_values("ISETP", "iipp", "2")(comparison)
of_values("FSETP DSETP", "xxp", "2")(comparison)


def least(a: Array, b: Array, is_min: Array) -> Array:
    return np.where(is_min, np.minimum(a, b), np.maximum(a, b))


of_values("IMNMX VIMNMX", "iip")(lambda i: least)
of_values("VIADDMNMX", "iiip")(lambda i: lambda a, b, c, is_min: least(a + b, c, is_min))
of_values("IABS", "s")(lambda i: np.abs)
of_values("POPC", "u")(lambda i: lambda a: np.bitwise_count(a).astype(np.uint32))


@of_values("FLO", "u")
def leading_bit(i: Instruction) -> Function:
    def place(a: Array) -> Array:
        bit = np.frexp(a.astype(np.float64))[1] - 1
        return np.where(a == 0, np.uint32(0xFFFFFFFF), (31 - bit if "SH" in i.modifiers else bit).astype(np.uint32))

    return place


# ---- floating point --------------------------------------------------------------------------------------------------


ARITHMETIC: dict[str, Function] = {
    "ADD": lambda a, b, *_: a + b,
    "MUL": lambda a, b, *_: a * b,
    "FMA": lambda a, b, c: a * b + c,
}


@of_values("FADD FMUL FFMA", "fff")
def float_arithmetic(i: Instruction) -> Function:
    """Without its rounding to others than the nearest number, and with subnormal numbers."""
    f = ARITHMETIC[i.opcode[1:4]]
    if i.opcode == "FFMA":
        return lambda a, b, c: f(a.astype(np.float64), b, c).astype(np.float32)
    return f if "SAT" not in i.modifiers else lambda *values: np.fmin(np.fmax(f(*values), 0), 1)


of_values("DADD DMUL DFMA", "ddd", "x")(lambda i: ARITHMETIC[i.opcode[1:]])


@of_values("FMNMX", "ffp")
def smaller_float(i: Instruction) -> Function:
    less, more = (np.minimum, np.maximum) if "NAN" in i.modifiers else (np.fmin, np.fmax)
    return lambda a, b, is_min: np.where(is_min, less(a, b), more(a, b))


MUFU: dict[str, Function] = {
    "EX2": np.exp2,
    "LG2": np.log2,
    "RCP": np.reciprocal,
    "RSQ": lambda x: 1 / np.sqrt(x),
    "SQRT": np.sqrt,
}


@decoder("MUFU")
def special_function(p: Program, i: Instruction) -> Run:
    put, f = p.put(i.operands[0]), MUFU[i.modifiers[0].removesuffix("64H")]
    if i.modifiers[0].endswith("64H"):  # of the high half of a double
        high = p.u32(i.operands[1])
        return lambda w, lanes: put(
            w, lanes, f((high(w).astype(np.uint64) << 32).view(np.float64)).view(np.uint32)[1::2]
        )
    get = p.f32(i.operands[1])
    return lambda w, lanes: put(w, lanes, f(get(w).astype(np.float64)).astype(np.float32))


def kinds_in(i: Instruction) -> tuple[str, ...]:
    """The types that an instruction's name has, such as F64 or U8."""
    return tuple(name for name in i.modifiers if name.startswith("BF16") or (name[0] in "FUS" and name[1:].isdigit()))


@decoder("I2F I2FP")
def integer_to_float(p: Program, i: Instruction) -> Run:
    operand, kinds = i.operands[-1], kinds_in(i)
    source = next((kind for kind in kinds if kind[0] != "F"), "S32")
    dtype = np.dtype(f"{'i' if source[0] == 'S' else 'u'}{int(source[1:]) // 8}")
    shift = np.uint32(8 * number_in(operand.suffixes, "B") + 16 * number_in(operand.suffixes, "H"))
    get = p.u64(operand) if dtype.itemsize == 8 else p.u32(operand)
    put = (p.put64 if "F64" in kinds else p.put)(i.operands[0])

    def run(w: Warp, lanes: Mask) -> None:
        bits = get(w) if dtype.itemsize == 8 else get(w) >> shift
        exact = bits.astype(f"u{dtype.itemsize}").view(dtype).astype(np.float64)
        x = exact.astype(np.float32)
        x = np.where(x < exact, np.nextafter(x, np.float32(np.inf)), x) if "RP" in i.modifiers else x
        put(w, lanes, exact if "F64" in kinds else x)

    return run


@decoder("F2I")
def float_to_integer(p: Program, i: Instruction) -> Run:
    target = next((kind for kind in kinds_in(i) if kind[0] in "US"), "S32")
    bits, is_signed = int(target[1:]), target[0] == "S"
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)
    turns = {"TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil}
    turn = next((turns[name] for name in i.modifiers if name in turns), np.rint)
    get = p.read("d" if "F64" in i.modifiers else "f", i.operands[1])
    put = (p.put64 if bits == 64 else p.put)(i.operands[0])

    def run(w: Warp, lanes: Mask) -> None:
        values = [min(max(int(x), low), high) if np.isfinite(x) else 0 for x in turn(get(w)).tolist()]
        put(
            w,
            lanes,
            np.array([value & 0xFFFFFFFFFFFFFFFF for value in values], np.uint64).astype(f"u{max(bits, 32) // 8}"),
        )

    return run


def half_bits(x: Array, is_bfloat16: bool) -> Array:
    if not is_bfloat16:
        return x.astype(np.float16).view(np.uint16).astype(np.uint32)
    bits = x.astype(np.float32).view(np.uint32)
    to_even = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return np.where(np.isnan(x), np.uint32(0x7FFF), to_even >> np.uint32(16))


def half_value(bits: Array, is_bfloat16: bool) -> Array:
    if is_bfloat16:
        return (bits << np.uint32(16)).view(np.float32)
    return bits.astype(np.uint16).view(np.float16).astype(np.float32)


def packed(low: Array, high: Array, is_bfloat16: bool) -> Array:
    both: Array = half_bits(low, is_bfloat16) | half_bits(high, is_bfloat16) << np.uint32(16)
    return both


def is_bfloat16(i: Instruction) -> bool:
    return any(name.startswith("BF16") for name in i.modifiers)


@decoder("F2F")
def float_to_float(p: Program, i: Instruction) -> Run:
    to, source = (*kinds_in(i), "F32")[:2]
    get = p.f64(i.operands[1]) if source == "F64" else p.f32(i.operands[1])
    put = (p.put64 if to == "F64" else p.put)(i.operands[0])

    def run(w: Warp, lanes: Mask) -> None:
        value = half_value(get(w).view(np.uint32) & np.uint32(0xFFFF), False) if source == "F16" else get(w)
        wide = {"F64": np.float64, "F32": np.float32}.get(to)
        put(w, lanes, value.astype(wide) if wide else half_bits(value, is_bfloat16(i)))

    return run


@of_values("F2FP", "ff")
def pack_floats(i: Instruction) -> Function:
    if "PACK_AB" not in i.modifiers or "RELU" in i.modifiers:
        raise Unknown(i.text)
    return lambda high, low: packed(low, high, is_bfloat16(i))


@decoder("HFMA2")
def constant_halves(p: Program, i: Instruction) -> Run:
    """Of two immediate numbers, to which the product of zeros is added: a move."""
    put, (a, b, *numbers) = p.put(i.operands[0]), i.operands[1:]
    if not a.index == b.index == ZERO or len(numbers) != 2:
        raise Unknown(i.text)
    high, low = (np.full(LANES, float_of(number.text), np.float32) for number in numbers)
    value = packed(low, high, is_bfloat16(i))
    return lambda w, lanes: put(w, lanes, value)


@decoder("HADD2")
def half_to_float(p: Program, i: Instruction) -> Run:
    put, get, (zero, operand) = p.put(i.operands[0]), p.raw(i.operands[2]), i.operands[1:]
    if "F32" not in i.modifiers or zero.index != ZERO or operand.sign or len(operand.suffixes) != 1:
        raise Unknown(i.text)
    shift = np.uint32(16 * (operand.suffixes[0] == "H1_H1"))
    return lambda w, lanes: put(w, lanes, half_value(get(w) >> shift & np.uint32(0xFFFF), is_bfloat16(i)))


# ---- between the threads of a warp -----------------------------------------------------------------------------------


@decoder("SHFL")
def shuffle(p: Program, i: Instruction) -> Run:
    put_valid, put = p.put_predicate(i.operands[0]), p.put(i.operands[1])
    get, distance, bounds = (p.u32(operand) for operand in i.operands[2:5])
    kind = i.modifiers[0]

    def run(w: Warp, lanes: Mask) -> None:
        n, c = distance(w).astype(np.int64) & 31, bounds(w).astype(np.int64)
        clamp, segment = c & 31, c >> 8 & 31
        first, last = LANE & segment, (LANE & segment) | (clamp & ~segment & 31)
        other = {"BFLY": LANE ^ n, "UP": LANE - n, "DOWN": LANE + n, "IDX": first | (n & ~segment & 31)}[kind]
        valid = other >= last if kind == "UP" else other <= last
        put_valid(w, lanes, valid)
        put(w, lanes, get(w)[np.where(valid, other, LANE)])

    return run


def ballot(values: Array, lanes: Mask) -> int:
    return int((1 << LANE)[values & lanes].sum())


@decoder("VOTE VOTEU")
def vote(p: Program, i: Instruction) -> Run:
    puts = [p.put(operand) for operand in i.operands if operand.kind in ("R", "UR")]
    *outs, source = (operand for operand in i.operands if operand.kind in PREDICATES)
    get, kind, puts_result = (p.predicate(source), i.modifiers[0], [p.put_predicate(out) for out in outs])

    def run(w: Warp, lanes: Mask) -> None:
        values = get(w)
        every, some = values[lanes].all(), values[lanes].any()
        result = {"ANY": some, "ALL": every, "EQ": every or not some}[kind]
        put_all(w, lanes, puts, [np.full(LANES, ballot(values, lanes), np.uint32)] * len(puts))
        put_all(w, lanes, puts_result, [np.full(LANES, result)] * len(puts_result))

    return run


# ---- memory ----------------------------------------------------------------------------------------------------------


def cells_of(i: Instruction) -> tuple[np.dtype[Any], int]:
    """What a thread accesses: cells of a type, and how many."""
    narrow = {"U8": np.uint8, "S8": np.int8, "U16": np.uint16, "S16": np.int16}
    dtype = next((narrow[name] for name in i.modifiers if name in narrow), np.uint32)
    return np.dtype(dtype), 4 if "128" in i.modifiers else 2 if "64" in i.modifiers else 1


def places(
    p: Program, i: Instruction, operand: Operand, space: str, is_store: bool
) -> Callable[[Warp, Mask], tuple[Array, Array]]:
    """The cells that an instruction accesses, and the index of each thread's first; the access is noted."""
    dtype, words = cells_of(i)
    width = dtype.itemsize * words
    address = p.sum_of_parts(operand.parts, wide=space == "global")

    def find(w: Warp, lanes: Mask) -> tuple[Array, Array]:
        at = address(w)[lanes]
        if (at % width).any():
            raise IndexError(f"misaligned: {i.text}")
        if space == "global":
            w.note(global_access(at, width, is_store))
            return p.memory.cells(at, width, dtype)
        at = at & 0xFFFFFF  # the higher bits name the space
        passes = bank_conflicts(at, width) if space == "shared" else words
        w.note(Access(space, is_store, len(at) * width, at[:0], passes))
        if space == "shared":
            return w.block.shared.view(dtype), at // dtype.itemsize
        return w.local.view(dtype), (LANE[lanes] * LOCAL_BYTES + at % LOCAL_BYTES) // dtype.itemsize

    return find


def load_from(cells: Array, first: Array, words: int, lanes: Mask) -> list[Array]:
    """A value of each lane for each word."""
    result = np.zeros((words, LANES), np.uint32)
    for word in range(words):
        result[word, lanes] = low_bits(cells[first + word].astype(np.int64))
    return list(result)


SPACES = {"G": "global", "S": "shared", "L": "local", "": "global"}


@decoder("LDG LDS LDL LD")
def load(p: Program, i: Instruction) -> Run:
    words = cells_of(i)[1]
    find = places(p, i, next(o for o in i.operands if o.kind == "memory"), SPACES[i.opcode[2:]], False)
    puts = [p.put(i.operands[0], word) for word in range(words)]
    return lambda w, lanes: put_all(w, lanes, puts, load_from(*find(w, lanes), words, lanes))


@decoder("STG STS STL ST")
def store(p: Program, i: Instruction) -> Run:
    find = places(p, i, next(o for o in i.operands if o.kind == "memory"), SPACES[i.opcode[2:]], True)
    gets = [p.raw(i.operands[-1], word) for word in range(cells_of(i)[1])]

    def run(w: Warp, lanes: Mask) -> None:
        cells, first = find(w, lanes)
        for word, get in enumerate(gets):
            cells[first + word] = get(w)[lanes].astype(cells.dtype)

    return run


@decoder("LDGSTS")
def copy_to_shared(p: Program, i: Instruction) -> Run:
    words = cells_of(i)[1]
    to, source = (operand for operand in i.operands if operand.kind == "memory")
    find_to, find = (places(p, i, to, "shared", True), places(p, i, source, "global", False))

    def run(w: Warp, lanes: Mask) -> None:
        cells, first = find_to(w, lanes)
        for word, value in enumerate(load_from(*find(w, lanes), words, lanes)):  # the access that is noted last counts
            cells[first + word] = value[lanes]

    return run


@decoder("ATOMS ATOMG RED REDG ATOM")
def add_atomically(p: Program, i: Instruction) -> Run:
    is_increment = "INC" in i.modifiers and "POPC" in i.modifiers
    if not ("ADD" in i.modifiers or is_increment) or any(name[-3:] in ("F16", "F64") for name in kinds_in(i)):
        raise Unknown(i.text)
    is_wide, outs = ("64" in i.modifiers, [p.put(operand) for operand in i.operands[:1] if operand.kind == "R"])
    space = "shared" if i.opcode == "ATOMS" else "global"
    find = places(p, i, next(o for o in i.operands if o.kind == "memory"), space, True)
    value = p.u64(i.operands[-1]) if is_wide else p.raw(i.operands[-1]) if not is_increment else None
    dtype = np.float32 if "F32" in i.modifiers else np.uint64 if is_wide else np.uint32

    def run(w: Warp, lanes: Mask) -> None:
        cells, first = find(w, lanes)
        put_all(w, lanes, outs, load_from(cells, first, 1, lanes)[: len(outs)])
        amounts = value(w)[lanes].view(dtype) if value else np.ones(len(first), dtype)
        np.add.at(cells.view(dtype), first // (2 if is_wide else 1), amounts)

    return run
