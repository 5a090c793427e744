"""Runs the instructions of a compiled CUDA kernel, block by block, and notes what each warp issues and accesses.

Threads of a warp are columns of arrays. A warp's threads are in groups; each group runs by itself until it waits for
others, as on a GPU since Volta. Values are right to rounding, so results can be compared with a reference. Unknown
instructions raise an error: no path is guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from sass import Instruction, Kernel, Operand

LANES = 32
Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Get = Callable[["Warp"], Array]
Run = Callable[["Warp", Mask], None]

SHARED_BYTES = 256 << 10
SECTOR, LINE = 32, 128
SECTORS_A_PASS = 4  # of any lines: with one line a pass, block_sum_12 of gpu_checks.cu could not be as fast as it is
ZERO, TRUE, UNIFORM_ZERO = 255, 7, (63, 255)
NO_LANES = np.zeros(LANES, bool)
ALL_LANES = np.ones(LANES, bool)  # results of this very array's lanes are written without a mask, which is faster
LANE = np.arange(LANES)
# Where a kernel's parameters begin in constant bank 0.
PARAMETERS = {80: 0x160, 89: 0x160, 90: 0x210}
# Where it says at which address of memory they can be read, too; and their offset from that address.
PARAMETERS_ADDRESS = {80: (0x40, 0x160), 89: (0x40, 0x160), 90: (0x198, 0)}


class Unknown(Exception):
    """An instruction that is not implemented."""


# ---- memory ----------------------------------------------------------------------------------------------------------


@dataclass
class Region:
    """`data` is repeated up to `size`, so that a large tensor that is only read takes little memory."""

    name: str
    base: int
    size: int
    data: Array  # of bytes


@dataclass
class Memory:
    regions: list[Region] = field(default_factory=list)
    next_base: int = 0x7F0000000000

    def add(self, name: str, data: Array, size: int = 0) -> int:
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        region = Region(name, self.next_base, size or data.size, data)
        self.regions.append(region)
        self.next_base += (region.size + 4095) // 4096 * 4096 + 4096
        return region.base

    def find(self, addresses: Array, width: int) -> Region:
        low, high = int(addresses.min()), int(addresses.max())
        for region in self.regions:
            if region.base <= low and high + width <= region.base + region.size:
                return region
        raise IndexError(f"access to {low:#x}..{high + width:#x}, outside all tensors")

    def cells(self, addresses: Array, width: int) -> tuple[Array, Array]:
        """A view of the region in cells of `width` bytes, at most 4, and the indices of the addresses' first cells."""
        region = self.find(addresses, width)
        if int((addresses % width).max()) != 0:
            raise IndexError("misaligned access")
        cell = min(width, 4)
        dtype = {1: np.uint8, 2: np.uint16, 4: np.uint32}[cell]
        return region.data.view(dtype), (addresses - region.base) % region.data.size // cell


@dataclass(frozen=True)
class Access:
    """What one instruction of a warp does in memory."""

    space: str  # global, shared or local
    is_store: bool
    num_bytes: int  # that its threads ask for
    sectors: Array  # numbers of the 32-byte sectors, of global memory
    wavefronts: int  # passes through the multiprocessor's memory pipe


def bank_conflicts(addresses: Array, width: int) -> int:
    """Passes that an access to shared memory takes: 32 banks of 4 bytes, each giving one word at a time. An access of 8
    or 16 bytes goes by halves or quarters of the warp."""
    passes, lanes = 0, LANES if width <= 4 else LANES * 4 // width
    for first in range(0, len(addresses), lanes):
        part = addresses[first : first + lanes]
        words = np.unique(np.concatenate([part // 4 + i for i in range(max(1, width // 4))]))
        passes += int(np.bincount(words % 32).max())
    return passes


def global_access(addresses: Array, width: int, is_store: bool) -> Access:
    sectors = np.unique(np.concatenate([addresses // SECTOR, (addresses + width - 1) // SECTOR]))
    wavefronts = max(-(-len(sectors) // SECTORS_A_PASS), len(addresses) * width // LINE, 1)
    return Access("global", is_store, len(addresses) * width, sectors, wavefronts)


# ---- warps and blocks ------------------------------------------------------------------------------------------------


class Group:
    """Threads of a warp that run together; `at` is the index of their next instruction."""

    def __init__(self, at: int, lanes: Mask) -> None:
        self.at = at
        self.keep(lanes)

    def keep(self, lanes: Mask) -> None:
        self.count = int(np.count_nonzero(lanes))
        self.lanes = ALL_LANES if self.count == LANES else lanes


@dataclass(eq=False)
class Warp:
    block: Block
    first_thread: int
    r: Array = field(default_factory=lambda: np.zeros((256, LANES), np.uint32))
    u: Array = field(default_factory=lambda: np.zeros((256, LANES), np.uint32))
    p: Array = field(default_factory=lambda: np.zeros((8, LANES), bool))
    up: Array = field(default_factory=lambda: np.zeros((8, LANES), bool))
    barriers: Array = field(default_factory=lambda: np.zeros((16, LANES, LANES), bool))
    ready: list[Group] = field(default_factory=list)
    waiting: dict[tuple[str, int], list[Group]] = field(default_factory=dict)
    alive: Mask = field(default_factory=lambda: ALL_LANES)
    trace: list[tuple[int, int]] = field(default_factory=list)  # instruction, number of threads
    accesses: dict[int, Access] = field(default_factory=dict)  # by position in the trace
    vote: Array = field(default_factory=lambda: np.zeros(LANES, bool))  # of BAR.RED
    local: Array = field(default_factory=lambda: np.zeros((LANES, 1024), np.uint32))

    def __post_init__(self) -> None:
        self.p[TRUE] = self.up[TRUE] = True
        self.ready = [Group(0, self.alive)]

    def note(self, access: Access) -> None:
        self.accesses[len(self.trace) - 1] = access

    # ---- control flow ----

    def split(self, group: Group, lanes: Mask, target: int) -> None:
        """These lanes of a group go to `target`, the others to the next instruction."""
        count = np.count_nonzero(lanes)
        if count == group.count:
            group.at = target
        elif count > 0:
            self.ready.append(Group(target, lanes))
            group.keep(group.lanes & ~lanes)
            group.at += 1
        else:
            group.at += 1

    def wait(self, key: tuple[str, int], group: Group) -> None:
        group.at += 1
        self.waiting.setdefault(key, []).append(group)
        self.release(key)

    def release(self, key: tuple[str, int]) -> None:
        """Merges the groups that wait for each other, if all of them have come."""
        groups = self.waiting.get(key, [])
        arrived = np.logical_or.reduce([group.lanes for group in groups]) if groups else NO_LANES
        for group in groups:
            needed = self.barriers[key[1], int(np.argmax(group.lanes))] if key[0] == "B" else self.alive
            if (needed & self.alive & ~arrived).any():
                continue
            merged = [other for other in groups if other is group or (other.lanes & needed).any()]
            self.waiting[key] = [other for other in groups if other not in merged]
            whole = Group(group.at, np.logical_or.reduce([other.lanes for other in merged]))
            if key[0] == "BAR":
                self.block.at_barrier.append((self, whole))
            else:
                self.ready.append(whole)
            return

    def exit(self, lanes: Mask) -> None:
        self.alive = self.alive & ~lanes
        for key in list(self.waiting):
            self.release(key)

    def run(self) -> None:
        program = self.block.program
        while self.ready:
            group = self.ready.pop()
            while group is not None and group.count > 0:
                group = program.step(self, group)  # type: ignore[assignment]


@dataclass(eq=False)
class Block:
    program: Program
    index: tuple[int, int, int]
    num_threads: int
    shared: Array = field(default_factory=lambda: np.full(SHARED_BYTES, 0xA5, np.uint8))
    at_barrier: list[tuple[Warp, Group]] = field(default_factory=list)
    warps: list[Warp] = field(default_factory=list)

    def run(self) -> None:
        self.warps = [Warp(self, first) for first in range(0, self.num_threads, LANES)]
        running = list(self.warps)
        while running:
            for warp in running:
                warp.run()
            at_barrier, self.at_barrier = self.at_barrier, []
            for warp in running:
                if any(warp.waiting.values()):
                    raise RuntimeError("some threads of a warp wait for others that do not come")
            running = [warp for warp, _ in at_barrier]
            if running and len(running) != sum(1 for warp in self.warps if warp.alive.any()):
                raise RuntimeError("some warps wait at a barrier that others do not reach")
            self.vote([warp for warp, _ in at_barrier])
            for warp, group in at_barrier:
                warp.ready = [group]

    @staticmethod
    def vote(warps: list[Warp]) -> None:
        every = all(warp.vote[warp.alive].all() for warp in warps)
        for warp in warps:
            warp.vote[:] = every


# ---- operands --------------------------------------------------------------------------------------------------------


def row(value: int) -> Array:
    return np.full(LANES, value & 0xFFFFFFFF, np.uint32)


def float_bits(text: str) -> int:
    value = float(text.replace("QNAN", "nan").replace("SNAN", "nan"))
    return int(np.float32(value).view(np.uint32))


def set_lanes(rows: Array, index: int, lanes: Mask, value: Array) -> None:
    if lanes is ALL_LANES:
        rows[index] = value
    else:
        np.copyto(rows[index], value, where=lanes)


COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "LT": np.less,
    "EQ": np.equal,
    "LE": np.less_equal,
    "GT": np.greater,
    "NE": lambda a, b: (a < b) | (a > b) if a.dtype.kind == "f" else a != b,
    "GE": np.greater_equal,
    "NUM": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "NAN": lambda a, b: np.isnan(a) | np.isnan(b),
    "LTU": lambda a, b: ~(a >= b),
    "EQU": lambda a, b: ~((a < b) | (a > b)),
    "LEU": lambda a, b: ~(a > b),
    "GTU": lambda a, b: ~(a <= b),
    "NEU": np.not_equal,
    "GEU": lambda a, b: ~(a < b),
}
COMBINE: dict[str, Callable[[Array, Array], Array]] = {
    "AND": np.logical_and,
    "OR": np.logical_or,
    "XOR": np.logical_xor,
}


class Program:
    """A kernel's instructions with the constants of one launch. They are decoded when they first run."""

    def __init__(
        self,
        kernel: Kernel,
        arch: int,
        grid: tuple[int, int, int],
        threads: int,
        parameters: bytes,
        memory: Memory,
    ) -> None:
        self.kernel, self.arch, self.grid, self.threads = kernel, arch, grid, threads
        self.code = kernel.instructions
        self.index = {each.address: i for i, each in enumerate(self.code)}
        self.decoded: list[tuple[Get | None, Run | None, Instruction] | None] = [None] * len(self.code)
        bank = bytearray(max(0x2000, PARAMETERS[arch] + len(parameters) + 64))
        bank[0:24] = np.array([threads, 1, 1, *grid], np.uint32).tobytes()
        bank[0x28:0x30] = np.array([0xFFFDC0, 0], np.uint32).tobytes()  # the stack's end
        bank[PARAMETERS[arch] : PARAMETERS[arch] + len(parameters)] = parameters
        self.memory = memory
        if arch in PARAMETERS_ADDRESS:
            address = memory.add("parameters", np.frombuffer(parameters, np.uint8).copy())
            at, offset = PARAMETERS_ADDRESS[arch]
            bank[at : at + 8] = np.array([address - offset], np.uint64).tobytes()
        self.banks = {number: bytes(data) for number, data in kernel.constants.items()} | {0: bytes(bank)}

    def block(self, index: int) -> Block:
        x, y, _ = self.grid
        block = Block(self, (index % x, index // x % y, index // (x * y)), self.threads)
        with np.errstate(all="ignore"):
            block.run()
        return block

    def step(self, warp: Warp, group: Group) -> Group | None:
        """Runs one instruction for a group. None if the group has to wait or is gone."""
        at = group.at
        entry = self.decoded[at]
        if entry is None:
            entry = self.decoded[at] = self.decode(self.code[at])
        guard, run, instruction = entry
        lanes, count = group.lanes, group.count
        if guard is not None:
            chosen = lanes & guard(warp)
            chosen_count = int(np.count_nonzero(chosen))
            if chosen_count != count:
                lanes, count = chosen, chosen_count
        warp.trace.append((at, count))
        if run is not None:
            if count > 0:
                run(warp, lanes)
            group.at = at + 1
            return group
        return self.control(warp, group, lanes, instruction)

    def decode(self, instruction: Instruction) -> tuple[Get | None, Run | None, Instruction]:
        guard = self.predicate(instruction.guard) if instruction.guard else None
        if instruction.opcode in CONTROL:
            return guard, None, instruction
        decoder = OPERATIONS.get(instruction.opcode)
        if decoder is None and instruction.opcode.startswith("U"):
            decoder = OPERATIONS.get(instruction.opcode[1:])
        if decoder is None:
            raise Unknown(instruction.text)
        return guard, decoder(self, instruction), instruction

    # ---- control flow ----

    def control(self, warp: Warp, group: Group, lanes: Mask, instruction: Instruction) -> Group | None:
        opcode, operands = instruction.opcode, instruction.operands
        if opcode == "EXIT":
            group.keep(group.lanes & ~lanes)
            group.at += 1
            warp.exit(lanes)
        elif opcode in ("BRA", "CALL"):
            target = self.index[int(operands[-1].text, 16)]
            if "DIV" in instruction.modifiers or "CONV" in instruction.modifiers:
                is_diverged = bool((group.lanes != warp.alive).any())
                lanes = lanes if is_diverged == ("DIV" in instruction.modifiers) else NO_LANES
                operands = operands[-1:]
            for operand in operands[:-1]:
                lanes = lanes & self.predicate(operand)(warp)
            warp.split(group, lanes, target)
        elif opcode in ("BRX", "RET"):
            self.jump(warp, group, lanes, instruction)
        elif opcode == "BSSY":
            warp.barriers[operands[0].index][lanes] = group.lanes
            group.at += 1
        elif opcode == "BREAK":
            barrier = operands[-1].index
            for operand in operands[:-1]:
                lanes = lanes & self.predicate(operand)(warp)
            warp.barriers[barrier][:, lanes] = False
            group.at += 1
            warp.release(("B", barrier))
        elif opcode == "BSYNC":
            barrier = operands[0].index
            if (lanes != group.lanes).any():
                raise Unknown(instruction.text)
            needed = warp.barriers[barrier, int(np.argmax(lanes))] & warp.alive
            if (needed & ~lanes).any():
                warp.wait(("B", barrier), group)
                return None
            group.at += 1
        elif opcode == "WARPSYNC":
            if not (warp.alive & ~group.lanes).any():
                group.at += 1
                return group
            warp.wait(("W", group.at), group)
            return None
        elif opcode == "BAR":
            if "RED" in instruction.modifiers:
                set_lanes(warp.vote[None], 0, lanes, self.predicate(operands[-1])(warp))
            warp.wait(("BAR", 0), group)
            return None
        return group

    def jump(self, warp: Warp, group: Group, lanes: Mask, instruction: Instruction) -> None:
        register, offset = instruction.operands[0].text.split()
        number = int(register.split(".")[0].strip("UR"))
        rows = warp.u if register.startswith("U") else warp.r
        base = int(offset, 16) + (instruction.address + 16 if instruction.opcode == "BRX" else 0)
        targets = rows[number].astype(np.int64).astype(np.uint32).view(np.int32).astype(np.int64) + base
        places = np.unique(targets[lanes])
        for target in places[1:]:
            chosen = lanes & (targets == target)
            warp.ready.append(Group(self.index[int(target)], chosen))
            group.keep(group.lanes & ~chosen)
            lanes = lanes & ~chosen
        warp.split(group, lanes, self.index[int(places[0])])

    # ---- reading operands ----

    def predicate(self, operand: Operand) -> Get:
        index, invert = operand.index, operand.sign == "!"
        if operand.kind == "UP":
            return (lambda w: ~w.up[index]) if invert else (lambda w: w.up[index])
        if operand.kind != "P":
            raise Unknown(operand.text)
        return (lambda w: ~w.p[index]) if invert else (lambda w: w.p[index])

    def raw(self, operand: Operand, word: int = 0, is_float: bool = False) -> Get:
        """The bits of an operand, or of the `word`-th register from it on, without its sign."""
        if operand.kind in ("R", "UR"):
            index = operand.index
            if operand.kind == "R":
                index = index if index == ZERO else index + word
                return lambda w: w.r[index]
            index = ZERO if index in UNIFORM_ZERO else index + word
            return lambda w: w.u[index]
        if operand.kind == "number":
            is_bits = "0x" in operand.text
            value = row(operand.index >> 32 * word if is_bits else float_bits(operand.text))
            return lambda w: value
        if operand.kind == "constant":
            return self.constant(operand, word)
        raise Unknown(operand.text)

    def constant(self, operand: Operand, word: int) -> Get:
        bank = self.banks[operand.index]
        words = np.frombuffer(bank[: len(bank) // 4 * 4], np.uint32)
        if all(part.kind == "number" for part in operand.parts):
            value = row(int(words[sum(part.index for part in operand.parts) // 4 + word]))
            return lambda w: value
        address = self.sum_of_parts(operand.parts)
        return lambda w: words[np.minimum((address(w) // 4 + word), len(words) - 1)]

    def u32(self, operand: Operand, word: int = 0) -> Get:
        get = self.raw(operand, word)
        if operand.sign == "-" and operand.kind != "number":
            return lambda w: np.uint32(0) - get(w)
        return (lambda w: ~get(w)) if operand.sign == "~" else get

    def s32(self, operand: Operand) -> Get:
        get = self.u32(operand)
        return lambda w: get(w).view(np.int32)

    def u64(self, operand: Operand) -> Get:
        low, high = self.raw(operand), self.raw(operand, 1)
        return lambda w: low(w).astype(np.uint64) | high(w).astype(np.uint64) << np.uint64(32)

    def f32(self, operand: Operand) -> Get:
        get, negative, absolute = self.raw(operand), operand.sign == "-", operand.is_absolute
        if operand.kind == "number":
            value = get(None).view(np.float32)  # type: ignore[arg-type]
            return lambda w: value

        def read(w: Warp) -> Array:
            bits = get(w)
            bits = bits & np.uint32(0x7FFFFFFF) if absolute else bits
            bits = bits ^ np.uint32(0x80000000) if negative else bits
            return bits.view(np.float32)

        return read

    def f64(self, operand: Operand) -> Get:
        if operand.kind == "number":
            value = float(operand.text.replace("QNAN", "nan")) if "0x" not in operand.text else 0.0
            if "0x" in operand.text:
                value = float(np.uint64(operand.index << 32).view(np.float64))
            constant = np.full(LANES, value)
            return lambda w: constant
        get, negative, absolute = self.u64(operand), operand.sign == "-", operand.is_absolute

        def read(w: Warp) -> Array:
            x = get(w).view(np.float64)
            x = np.abs(x) if absolute else x
            return -x if negative else x

        return read

    def sum_of_parts(self, parts: tuple[Operand, ...], wide: bool = False) -> Get:
        """An address as int64. In global memory (`wide`) registers are pairs."""
        offset = sum(part.index for part in parts if part.kind == "number")
        gets: list[Get] = []
        for part in parts:
            if part.kind in ("R", "UR"):
                scale = next((int(name[1:]) for name in part.suffixes if name[0] == "X"), 1)
                is_pair = "64" in part.suffixes or (wide and "U32" not in part.suffixes)
                get = self.u64(part) if is_pair else self.raw(part)
                gets.append(lambda w, get=get, scale=scale: get(w).astype(np.int64) * scale)  # type: ignore[misc]
        if not gets:
            value = np.full(LANES, offset, np.int64)
            return lambda w: value
        return lambda w: sum((get(w) for get in gets[1:]), gets[0](w) + offset)

    # ---- writing results ----

    def put(self, operand: Operand, word: int = 0) -> Callable[[Warp, Mask, Array], None]:
        index = operand.index
        if index == ZERO or (operand.kind == "UR" and index in UNIFORM_ZERO):
            return lambda w, lanes, value: None
        if operand.kind == "UR":
            return lambda w, lanes, value: set_lanes(w.u, index + word, ALL_LANES, value[np.argmax(lanes)])
        return lambda w, lanes, value: set_lanes(w.r, index + word, lanes, value)

    def put64(self, operand: Operand) -> Callable[[Warp, Mask, Array], None]:
        low, high = self.put(operand), self.put(operand, 1)

        def write(w: Warp, lanes: Mask, value: Array) -> None:
            bits = value.view(np.uint64)
            low(w, lanes, (bits & np.uint64(0xFFFFFFFF)).astype(np.uint32))
            high(w, lanes, (bits >> np.uint64(32)).astype(np.uint32))

        return write

    def put_predicate(self, operand: Operand) -> Callable[[Warp, Mask, Array], None]:
        index = operand.index
        if index == TRUE:
            return lambda w, lanes, value: None
        if operand.kind == "UP":
            return lambda w, lanes, value: set_lanes(w.up, index, ALL_LANES, value[np.argmax(lanes)])
        return lambda w, lanes, value: set_lanes(w.p, index, lanes, value)


CONTROL = {"EXIT", "BRA", "CALL", "BRX", "RET", "BSSY", "BREAK", "BSYNC", "WARPSYNC", "BAR"}
Decoder = Callable[[Program, Instruction], Run]
OPERATIONS: dict[str, Decoder] = {}


def operation(*names: str) -> Callable[[Decoder], Decoder]:
    def register(decoder: Decoder) -> Decoder:
        OPERATIONS.update(dict.fromkeys(names, decoder))
        return decoder

    return register


def nothing(w: Warp, lanes: Mask) -> None:
    pass


@operation(
    "NOP",
    "YIELD",
    "DEPBAR",
    "LDGDEPBAR",
    "ERRBAR",
    "CGAERRBAR",
    "MEMBAR",
    "CCTL",
    "NANOSLEEP",
    "BMOV",
    "FENCE",
    "ULEPC",
)
def no_operation(p: Program, i: Instruction) -> Run:
    return nothing


def split_predicates(operands: tuple[Operand, ...]) -> tuple[list[Operand], list[Operand]]:
    """Leading predicates, which are results, and the rest."""
    count = next((n for n, o in enumerate(operands) if o.kind not in ("P", "UP")), len(operands))
    return list(operands[:count]), list(operands[count:])


# ---- moves -----------------------------------------------------------------------------------------------------------


@operation("MOV", "R2UR", "IADD32I")
def move(p: Program, i: Instruction) -> Run:
    put, get = p.put(i.operands[0]), p.u32(i.operands[1])
    return lambda w, lanes: put(w, lanes, get(w))


@operation("LDC", "ULDC", "LDCU")
def load_constant(p: Program, i: Instruction) -> Run:
    words = {"64": 2, "128": 4}.get(i.modifiers[-1] if i.modifiers else "", 1)
    narrow = next((name for name in i.modifiers if name in ("U8", "S8", "U16", "S16")), "")
    puts = [p.put(i.operands[0], word) for word in range(words)]
    gets = [p.constant(i.operands[1], word) for word in range(words)]
    if narrow:
        return load_narrow_constant(p, i, narrow)

    def run(w: Warp, lanes: Mask) -> None:
        values = [get(w).copy() for get in gets]
        for put, value in zip(puts, values, strict=True):
            put(w, lanes, value)

    return run


def load_narrow_constant(p: Program, i: Instruction, narrow: str) -> Run:
    bank = np.frombuffer(p.banks[i.operands[1].index], np.uint8)
    address, put = p.sum_of_parts(i.operands[1].parts), p.put(i.operands[0])
    dtype = {"U8": np.uint8, "S8": np.int8, "U16": np.uint16, "S16": np.int16}[narrow]
    size = np.dtype(dtype).itemsize

    def run(w: Warp, lanes: Mask) -> None:
        at = address(w)
        cells = np.stack([bank[np.minimum(at + k, len(bank) - 1)] for k in range(size)], -1)
        put(w, lanes, np.ascontiguousarray(cells).view(dtype)[:, 0].astype(np.int64).astype(np.uint32))

    return run


@operation("CS2R")
def clear(p: Program, i: Instruction) -> Run:
    if i.operands[1].text != "SRZ":
        raise Unknown(i.text)
    puts = [p.put(i.operands[0], word) for word in range(1 if "32" in i.modifiers else 2)]
    zero = row(0)

    def run(w: Warp, lanes: Mask) -> None:
        for put in puts:
            put(w, lanes, zero)

    return run


@operation("S2R", "S2UR")
def special(p: Program, i: Instruction) -> Run:
    name, put = i.operands[1].text, p.put(i.operands[0])

    def value(w: Warp) -> Array:
        x, y, z = w.block.index
        threads = (LANE + w.first_thread).astype(np.uint32)
        known = {
            "SR_TID.X": threads,
            "SR_TID.Y": row(0),
            "SR_TID.Z": row(0),
            "SR_CTAID.X": row(x),
            "SR_CTAID.Y": row(y),
            "SR_CTAID.Z": row(z),
            "SR_LANEID": LANE.astype(np.uint32),
            "SR_CgaCtaId": row(0),
            "SR_SWINHI": row(0),
            "SR_LEMASK": ((np.uint64(2) << LANE.astype(np.uint64)) - np.uint64(1)).astype(np.uint32),
            "SR_LTMASK": ((np.uint64(1) << LANE.astype(np.uint64)) - np.uint64(1)).astype(np.uint32),
            "SR_EQMASK": (np.uint64(1) << LANE.astype(np.uint64)).astype(np.uint32),
        }
        if name not in known:
            raise Unknown(i.text)
        return known[name]

    return lambda w, lanes: put(w, lanes, value(w))


@operation("SEL", "FSEL")
def select(p: Program, i: Instruction) -> Run:
    put, chosen = p.put(i.operands[0]), p.predicate(i.operands[3])
    if i.opcode == "FSEL":
        a, b = p.f32(i.operands[1]), p.f32(i.operands[2])
        return lambda w, lanes: put(w, lanes, np.where(chosen(w), a(w), b(w)).view(np.uint32))
    a, b = p.u32(i.operands[1]), p.u32(i.operands[2])
    return lambda w, lanes: put(w, lanes, np.where(chosen(w), a(w), b(w)))


@operation("PRMT")
def permute(p: Program, i: Instruction) -> Run:
    if i.modifiers:
        raise Unknown(i.text)
    put, a, s, b = p.put(i.operands[0]), p.u32(i.operands[1]), p.u32(i.operands[2]), p.u32(i.operands[3])

    def run(w: Warp, lanes: Mask) -> None:
        both = a(w).astype(np.uint64) | b(w).astype(np.uint64) << np.uint64(32)
        selector, result = s(w), np.zeros(LANES, np.uint32)
        for byte in range(4):
            nibble = selector >> np.uint32(4 * byte) & np.uint32(15)
            value = (both >> (nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8) & np.uint64(255)).astype(
                np.uint32
            )
            sign = np.where(value & 0x80, np.uint32(255), np.uint32(0))
            result |= np.where(nibble & 8, sign, value) << np.uint32(8 * byte)
        put(w, lanes, result)

    return run


@operation("P2R")
def predicates_to_register(p: Program, i: Instruction) -> Run:
    put, a, mask = p.put(i.operands[0]), p.u32(i.operands[2]), p.u32(i.operands[3])
    shift = next((int(name[1]) * 8 for name in i.modifiers if name[0] == "B"), 0)

    def run(w: Warp, lanes: Mask) -> None:
        bits = np.zeros(LANES, np.uint32)
        for k in range(7):
            bits |= w.p[k].astype(np.uint32) << np.uint32(k)
        chosen = mask(w)
        put(w, lanes, (a(w) & ~(chosen << np.uint32(shift))) | (bits & chosen) << np.uint32(shift))

    return run


@operation("R2P")
def register_to_predicates(p: Program, i: Instruction) -> Run:
    a, mask = p.u32(i.operands[1]), p.u32(i.operands[2])
    shift = next((int(name[1]) * 8 for name in (*i.modifiers, *i.operands[1].suffixes) if name[0] == "B"), 0)

    def run(w: Warp, lanes: Mask) -> None:
        bits, chosen = a(w) >> np.uint32(shift), mask(w)
        for k in range(7):
            set_lanes(w.p, k, lanes & (chosen >> np.uint32(k) & np.uint32(1) != 0), bits >> np.uint32(k) & 1 != 0)

    return run


@operation("B2R")
def barrier_to_register(p: Program, i: Instruction) -> Run:
    put = p.put_predicate(i.operands[-1])
    return lambda w, lanes: put(w, lanes, w.vote)


# ---- integers --------------------------------------------------------------------------------------------------------


@operation("IADD3", "VIADD", "IADD")
def add(p: Program, i: Instruction) -> Run:
    put = p.put(i.operands[0])
    outs, rest = split_predicates(i.operands[1:])
    carries = [p.put_predicate(out) for out in outs]
    sources = [o for o in rest if o.kind not in ("P", "UP")]
    ins = [p.predicate(o) for o in rest if o.kind in ("P", "UP")]
    # As numbers of 33 bits: -x is ~x + 1, so that subtracting 0 carries.
    gets = [p.u32(o) if o.sign == "~" else p.raw(o) for o in sources]
    is_negative = [o.sign == "-" and o.kind != "number" for o in sources]

    def run(w: Warp, lanes: Mask) -> None:
        total = np.zeros(LANES, np.int64)
        for get, negative in zip(gets, is_negative, strict=True):
            value = get(w).astype(np.int64)
            total += (1 << 32) - value if negative else value
        for get in ins:
            total += get(w)
        put(w, lanes, (total & 0xFFFFFFFF).astype(np.uint32))
        for k, carry in enumerate(carries):
            carry(w, lanes, total >> 32 > k)

    return run


@operation("IMAD")
def multiply_add(p: Program, i: Instruction) -> Run:
    names = i.modifiers
    outs, rest = split_predicates(i.operands[1:])
    a, b, c = rest[:3]
    carry_in = p.predicate(rest[3]) if "X" in names and len(rest) > 3 else None
    is_signed = "U32" not in names and ("WIDE" in names or "HI" in names)
    read_a, read_b = p.u32(a), p.u32(b)
    widen = (lambda x: x.view(np.int32).astype(np.int64)) if is_signed else (lambda x: x.astype(np.int64))
    if "WIDE" in names or "HI" in names:
        return multiply_wide(p, i, outs, (read_a, read_b, p.u64(c)), widen, carry_in)
    put, read_c = p.put(i.operands[0]), p.u32(c)
    carries = [p.put_predicate(out) for out in outs]

    def run(w: Warp, lanes: Mask) -> None:
        total = (read_a(w) * read_b(w)).astype(np.int64) + read_c(w).astype(np.int64)
        total = total + carry_in(w) if carry_in else total
        put(w, lanes, (total & 0xFFFFFFFF).astype(np.uint32))
        for carry in carries:
            carry(w, lanes, total >> 32 > 0)

    return run


def multiply_wide(
    p: Program, i: Instruction, outs: list[Operand], gets: tuple[Get, Get, Get], widen: Any, carry_in: Get | None
) -> Run:
    a, b, c = gets
    negative = i.operands[-1].sign == "-" or i.operands[len(outs) + 3].sign == "-"
    put64, put = p.put64(i.operands[0]), p.put(i.operands[0])
    carries = [p.put_predicate(out) for out in outs]

    def run(w: Warp, lanes: Mask) -> None:
        product = (widen(a(w)) * widen(b(w))).view(np.uint64)  # int64 wraps to the right bits
        added = np.uint64(0) - c(w) if negative else c(w)
        total = product + added
        carry = total < product
        if carry_in:
            total = total + carry_in(w).astype(np.uint64)
        if "HI" in i.modifiers:
            put(w, lanes, (total >> np.uint64(32)).astype(np.uint32))
        else:
            put64(w, lanes, total)
        for each in carries:
            each(w, lanes, carry)

    return run


@operation("LEA")
def scaled_add(p: Program, i: Instruction) -> Run:
    put = p.put(i.operands[0])
    outs, rest = split_predicates(i.operands[1:])
    carry_in = p.predicate(rest.pop()) if rest[-1].kind in ("P", "UP") else None
    shift = np.uint64(rest.pop().index)
    a, b = rest[0], rest[1]
    is_high = "HI" in i.modifiers
    read_b, read_a, negative = p.u32(b), p.raw(a), a.sign == "-"
    read_c = p.u32(rest[2]) if len(rest) > 2 else None
    carries = [p.put_predicate(out) for out in outs]

    def run(w: Warp, lanes: Mask) -> None:
        low = read_a(w)
        high = read_c(w) if read_c else np.where(low >> np.uint32(31), np.uint32(0xFFFFFFFF), np.uint32(0))
        value = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        value = np.uint64(0) - value if negative else value
        part = value << shift
        part = part >> np.uint64(32) if is_high else part & np.uint64(0xFFFFFFFF)
        total = part.astype(np.int64) + read_b(w).astype(np.int64)
        total = total + carry_in(w) if carry_in else total
        put(w, lanes, (total & 0xFFFFFFFF).astype(np.uint32))
        for carry in carries:
            carry(w, lanes, total >> 32 > 0)

    return run


@operation("SHF")
def shift_funnel(p: Program, i: Instruction) -> Run:
    names = i.modifiers
    put, a, s, c = p.put(i.operands[0]), p.u32(i.operands[1]), p.u32(i.operands[2]), p.u32(i.operands[3])
    bits = 64 if any(name in names for name in ("U64", "S64")) else 32
    is_signed = "S32" in names or "S64" in names

    def run(w: Warp, lanes: Mask) -> None:
        value = a(w).astype(np.uint64) | c(w).astype(np.uint64) << np.uint64(32)
        count = s(w).astype(np.uint64)
        count = count & np.uint64(bits - 1) if "W" in names else np.minimum(count, np.uint64(bits))
        whole = np.minimum(count, np.uint64(63))
        rest = count - whole  # 1 for a shift by 64
        if "L" in names:
            value = value << whole << rest
        elif is_signed:
            value = (value.view(np.int64) >> whole.astype(np.int64) >> rest.astype(np.int64)).view(np.uint64)
        else:
            value = value >> whole >> rest
        value = value >> np.uint64(32) if "HI" in names else value & np.uint64(0xFFFFFFFF)
        put(w, lanes, value.astype(np.uint32))

    return run


def lookup(table: int, values: list[Array]) -> Array:
    """Bitwise function of three arrays of bits, by its table of 8 results."""
    a, b, c = values
    result = np.zeros_like(a)
    for case in range(8):
        if table >> case & 1:
            result = result | (a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c)
    return result


@operation("LOP3")
def logic(p: Program, i: Instruction) -> Run:
    outs, rest = split_predicates(i.operands)
    put, gets, table = p.put(rest[0]), [p.u32(o) for o in rest[1:4]], rest[4].index
    carry = p.predicate(rest[5]) if len(rest) > 5 else None
    puts = [p.put_predicate(out) for out in outs]

    def run(w: Warp, lanes: Mask) -> None:
        result = lookup(table, [get(w) for get in gets])
        put(w, lanes, result)
        for each in puts:
            each(w, lanes, (result != 0) | (carry(w) if carry else False))

    return run


@operation("PLOP3")
def logic_of_predicates(p: Program, i: Instruction) -> Run:
    puts = [p.put_predicate(o) for o in i.operands[:2]]
    gets = [p.predicate(o) for o in i.operands[2:5]]
    tables = [o.index for o in i.operands[5:7]]

    def run(w: Warp, lanes: Mask) -> None:
        values = [np.asarray(get(w), bool) for get in gets]
        for put, result in zip(puts, [lookup(table, values) for table in tables], strict=True):
            put(w, lanes, result)

    return run


@operation("ISETP")
def compare_integers(p: Program, i: Instruction) -> Run:
    name, combine = i.modifiers[0], COMBINE[next(m for m in i.modifiers if m in COMBINE)]
    is_signed, extended = "U32" not in i.modifiers, "EX" in i.modifiers
    puts = [p.put_predicate(o) for o in i.operands[:2]]
    read = p.s32 if is_signed else p.u32
    a, b, other = read(i.operands[2]), read(i.operands[3]), p.predicate(i.operands[4])
    low = p.predicate(i.operands[5]) if extended else None

    def run(w: Warp, lanes: Mask) -> None:
        x, y = a(w), b(w)
        result = COMPARE[name](x, y) if name in COMPARE else np.full(LANES, name == "T")
        result = np.where(x == y, low(w), result) if low else result
        rest = other(w).copy()
        puts[0](w, lanes, combine(result, rest))
        puts[1](w, lanes, combine(~result, rest))

    return run


@operation("IMNMX", "VIMNMX")
def smaller_integer(p: Program, i: Instruction) -> Run:
    read = p.u32 if "U32" in i.modifiers else p.s32
    put, a, b, is_min = p.put(i.operands[0]), read(i.operands[1]), read(i.operands[2]), p.predicate(i.operands[3])

    def run(w: Warp, lanes: Mask) -> None:
        x, y = a(w), b(w)
        put(w, lanes, np.where(is_min(w), np.minimum(x, y), np.maximum(x, y)).view(np.uint32))

    return run


@operation("VIADDMNMX")
def smaller_sum(p: Program, i: Instruction) -> Run:
    dtype = np.uint32 if "U32" in i.modifiers else np.int32
    put, a, b, c = p.put(i.operands[0]), p.u32(i.operands[1]), p.u32(i.operands[2]), p.u32(i.operands[3])
    is_min = p.predicate(i.operands[4])

    def run(w: Warp, lanes: Mask) -> None:
        x, y = (a(w) + b(w)).view(dtype), c(w).view(dtype)
        put(w, lanes, np.where(is_min(w), np.minimum(x, y), np.maximum(x, y)).view(np.uint32))

    return run


@operation("IABS")
def absolute(p: Program, i: Instruction) -> Run:
    put, a = p.put(i.operands[0]), p.s32(i.operands[1])
    return lambda w, lanes: put(w, lanes, np.abs(a(w)).view(np.uint32))


@operation("POPC")
def count_bits(p: Program, i: Instruction) -> Run:
    put, a = p.put(i.operands[0]), p.u32(i.operands[1])
    return lambda w, lanes: put(w, lanes, np.array([int(x).bit_count() for x in a(w)], np.uint32))


@operation("FLO")
def leading_bit(p: Program, i: Instruction) -> Run:
    put, a, is_shift = p.put(i.operands[0]), p.u32(i.operands[-1]), "SH" in i.modifiers

    def run(w: Warp, lanes: Mask) -> None:
        places = [int(x).bit_length() - 1 for x in a(w)]
        put(w, lanes, np.array([0xFFFFFFFF if x < 0 else 31 - x if is_shift else x for x in places], np.uint32))

    return run


@operation("BREV")
def reverse_bits(p: Program, i: Instruction) -> Run:
    put, a = p.put(i.operands[0]), p.u32(i.operands[1])
    return lambda w, lanes: put(w, lanes, np.array([int(f"{int(x):032b}"[::-1], 2) for x in a(w)], np.uint32))


@operation("SGXT")
def sign_extend(p: Program, i: Instruction) -> Run:
    put, a, bits, is_unsigned = p.put(i.operands[0]), p.u32(i.operands[1]), p.u32(i.operands[2]), "U32" in i.modifiers

    def run(w: Warp, lanes: Mask) -> None:
        rest = np.uint32(32) - np.minimum(bits(w), np.uint32(32))
        value = a(w) << rest
        put(w, lanes, value >> rest if is_unsigned else (value.view(np.int32) >> rest.view(np.int32)).view(np.uint32))

    return run


# ---- floating point --------------------------------------------------------------------------------------------------


def rounded(exact: Array, i: Instruction) -> Array:
    """From double to float by the instruction's rounding."""
    x = exact.astype(np.float32)
    wide = x.astype(np.float64)
    if "RM" in i.modifiers:
        x = np.where(wide > exact, np.nextafter(x, np.float32(-np.inf)), x)
    elif "RP" in i.modifiers:
        x = np.where(wide < exact, np.nextafter(x, np.float32(np.inf)), x)
    elif "RZ" in i.modifiers:
        x = np.where(np.abs(wide) > np.abs(exact), np.nextafter(x, np.float32(0)), x)
    x = np.clip(np.nan_to_num(x, nan=0.0), 0, 1) if "SAT" in i.modifiers else x
    if "FTZ" in i.modifiers:
        x = np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)
    return x.astype(np.float32)


@operation("FADD", "FMUL", "FFMA", "FADD32I", "FMUL32I", "FFMA32I")
def float_arithmetic(p: Program, i: Instruction) -> Run:
    put, gets = p.put(i.operands[0]), [p.f32(o) for o in i.operands[1:]]
    kind = i.opcode.removesuffix("32I")

    def run(w: Warp, lanes: Mask) -> None:
        a, b, *c = (get(w).astype(np.float64) for get in gets)
        exact = a + b if kind == "FADD" else a * b if kind == "FMUL" else a * b + c[0]
        put(w, lanes, rounded(exact, i).view(np.uint32))

    return run


@operation("DADD", "DMUL", "DFMA")
def double_arithmetic(p: Program, i: Instruction) -> Run:
    put, gets = p.put64(i.operands[0]), [p.f64(o) for o in i.operands[1:] if o.text != "RZ" or i.opcode != "DADD"]
    zero = np.zeros(LANES)

    def run(w: Warp, lanes: Mask) -> None:
        values = [get(w) for get in gets] + [zero]
        a, b = values[:2]
        put(w, lanes, a + b if i.opcode == "DADD" else a * b if i.opcode == "DMUL" else a * b + values[2])

    return run


@operation("FSETP", "DSETP")
def compare_floats(p: Program, i: Instruction) -> Run:
    name, combine = i.modifiers[0], COMBINE[next(m for m in i.modifiers if m in COMBINE)]
    puts = [p.put_predicate(o) for o in i.operands[:2]]
    read = p.f32 if i.opcode == "FSETP" else p.f64
    a, b, other = read(i.operands[2]), read(i.operands[3]), p.predicate(i.operands[4])

    def run(w: Warp, lanes: Mask) -> None:
        result, rest = COMPARE[name](a(w), b(w)), other(w).copy()
        puts[0](w, lanes, combine(result, rest))
        puts[1](w, lanes, combine(~result, rest))

    return run


@operation("FMNMX")
def smaller_float(p: Program, i: Instruction) -> Run:
    put, a, b, is_min = p.put(i.operands[0]), p.f32(i.operands[1]), p.f32(i.operands[2]), p.predicate(i.operands[3])

    def run(w: Warp, lanes: Mask) -> None:
        x, y = a(w), b(w)
        least, most = (np.minimum(x, y), np.maximum(x, y)) if "NAN" in i.modifiers else (np.fmin(x, y), np.fmax(x, y))
        put(w, lanes, np.where(is_min(w), least, most).view(np.uint32))

    return run


MUFU: dict[str, Callable[[Array], Array]] = {
    "EX2": np.exp2,
    "LG2": np.log2,
    "RCP": lambda x: 1 / x,
    "RSQ": lambda x: 1 / np.sqrt(x),
    "SQRT": np.sqrt,
    "SIN": np.sin,
    "COS": np.cos,
    "TANH": np.tanh,
}


@operation("MUFU")
def special_function(p: Program, i: Instruction) -> Run:
    name, put = i.modifiers[0], p.put(i.operands[0])
    if name in ("RCP64H", "RSQ64H"):
        bits = p.u32(i.operands[1])

        def run_high(w: Warp, lanes: Mask) -> None:
            x = (bits(w).astype(np.uint64) << np.uint64(32)).view(np.float64)
            y = 1 / x if name == "RCP64H" else 1 / np.sqrt(x)
            put(w, lanes, (y.view(np.uint64) >> np.uint64(32)).astype(np.uint32))

        return run_high
    get = p.f32(i.operands[1])
    return lambda w, lanes: put(w, lanes, MUFU[name](get(w).astype(np.float64)).astype(np.float32).view(np.uint32))


@operation("FCHK")
def check_division(p: Program, i: Instruction) -> Run:
    """True where a quotient needs the slow path: exponents that can overflow on the way."""
    put, a, b = p.put_predicate(i.operands[0]), p.f32(i.operands[1]), p.f32(i.operands[2])

    def run(w: Warp, lanes: Mask) -> None:
        x, y = (value.view(np.uint32) >> np.uint32(23) & np.uint32(255) for value in (a(w), b(w)))
        x, y = x.astype(np.int64), y.astype(np.int64)
        put(w, lanes, (y == 0) | (y >= 253) | (x == 255) | (x - y > 125) | (x - y < -125) | (x < 24))

    return run


@operation("I2F", "I2FP")
def integer_to_float(p: Program, i: Instruction) -> Run:
    names, operand = i.modifiers, i.operands[-1]
    source = next((name for name in names if name[0] in "US" and name[1:].isdigit()), "S32")
    bits, is_signed = int(source[1:]), source[0] == "S"
    get = p.u64(operand) if bits == 64 else p.u32(operand)
    offset = next((int(name[1]) * 8 for name in operand.suffixes if name[0] == "B"), 0)
    offset += next((int(name[1]) * 16 for name in operand.suffixes if name[0] == "H"), 0)
    dtype = np.dtype(f"{'i' if is_signed else 'u'}{bits // 8}")
    put, put64 = p.put(i.operands[0]), p.put64(i.operands[0])

    def run(w: Warp, lanes: Mask) -> None:
        value = get(w) if bits == 64 else get(w) >> np.uint32(offset)
        number = value.astype(dtype.str.replace("i", "u")).view(dtype)
        if "F64" in names:
            put64(w, lanes, number.astype(np.float64))
        else:
            exact = number.astype(np.float64)
            put(w, lanes, rounded(exact, i).view(np.uint32))

    return run


@operation("F2I")
def float_to_integer(p: Program, i: Instruction) -> Run:
    names = i.modifiers
    get = p.f64(i.operands[1]) if "F64" in names else p.f32(i.operands[1])
    target = next((name for name in names if name[0] in "US" and name[1:].isdigit()), "S32")
    bits, is_signed = int(target[1:]), target[0] == "S"
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)
    turn = np.trunc if "TRUNC" in names else np.floor if "FLOOR" in names else np.ceil if "CEIL" in names else np.rint
    put, put64 = p.put(i.operands[0]), p.put64(i.operands[0])

    def run(w: Warp, lanes: Mask) -> None:
        exact = np.nan_to_num(turn(get(w).astype(np.float64)), nan=0.0)
        values = [min(max(int(x), low), high) & 0xFFFFFFFFFFFFFFFF if np.isfinite(x) else 0 for x in exact]
        result = np.array(values, np.uint64)
        if bits == 64:
            put64(w, lanes, result)
        else:
            put(w, lanes, (result & np.uint64(0xFFFFFFFF)).astype(np.uint32))

    return run


def bfloat16_bits(x: Array) -> Array:
    bits = x.astype(np.float32).view(np.uint32)
    even = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), even)


def half_bits(x: Array, is_bfloat16: bool) -> Array:
    return bfloat16_bits(x) if is_bfloat16 else x.astype(np.float16).view(np.uint16).astype(np.uint32)


def half_value(bits: Array, is_bfloat16: bool) -> Array:
    if is_bfloat16:
        return (bits << np.uint32(16)).view(np.float32)
    return bits.astype(np.uint16).view(np.float16).astype(np.float32)


@operation("F2F")
def float_to_float(p: Program, i: Instruction) -> Run:
    kinds = [name for name in i.modifiers if name in ("F64", "F32", "F16", "BF16", "BF16_V2")]
    to, source = kinds[0], kinds[1] if len(kinds) > 1 else "F32"
    put, put64 = p.put(i.operands[0]), p.put64(i.operands[0])
    get = p.f64(i.operands[1]) if source == "F64" else p.f32(i.operands[1])

    def run(w: Warp, lanes: Mask) -> None:
        value = get(w)
        if source == "F16":
            value = half_value(value.view(np.uint32) & np.uint32(0xFFFF), False)
        if to == "F64":
            put64(w, lanes, value.astype(np.float64))
        elif to == "F32":
            put(w, lanes, value.astype(np.float32).view(np.uint32))
        else:
            put(w, lanes, half_bits(value, to.startswith("BF16")))

    return run


@operation("F2FP")
def pack_floats(p: Program, i: Instruction) -> Run:
    if "PACK_AB" not in i.modifiers:
        raise Unknown(i.text)
    put, a, b = p.put(i.operands[0]), p.f32(i.operands[1]), p.f32(i.operands[2])
    is_bfloat16, relu = "BF16" in i.modifiers, "RELU" in i.modifiers

    def run(w: Warp, lanes: Mask) -> None:
        high, low = (np.maximum(x, 0) if relu else x for x in (a(w), b(w)))
        put(w, lanes, half_bits(high, is_bfloat16) << np.uint32(16) | half_bits(low, is_bfloat16))

    return run


@operation("FRND")
def round_float(p: Program, i: Instruction) -> Run:
    names = i.modifiers
    turn = np.trunc if "TRUNC" in names else np.floor if "FLOOR" in names else np.ceil if "CEIL" in names else np.rint
    if "F64" in names:
        put64, get = p.put64(i.operands[0]), p.f64(i.operands[1])
        return lambda w, lanes: put64(w, lanes, turn(get(w)))
    put, get = p.put(i.operands[0]), p.f32(i.operands[1])
    return lambda w, lanes: put(w, lanes, turn(get(w)).view(np.uint32))


def halves(p: Program, operand: Operand, is_bfloat16: bool) -> Callable[[Warp], tuple[Array, Array]]:
    """Both numbers of an operand of 16-bit instructions, low first."""
    if operand.kind == "number" and "0x" not in operand.text:
        value = np.full(LANES, float(operand.text.replace("QNAN", "nan")), np.float32)
        return lambda w: (value, value)
    get = p.raw(operand)
    chosen = next((name for name in operand.suffixes if name.startswith("H")), "")

    def read(w: Warp) -> tuple[Array, Array]:
        bits = get(w)
        both = [half_value(part, is_bfloat16) for part in (bits & np.uint32(0xFFFF), bits >> np.uint32(16))]
        both = [both[0], both[0]] if chosen == "H0_H0" else [both[1], both[1]] if chosen == "H1_H1" else both
        both = [np.abs(x) if operand.is_absolute else x for x in both]
        low, high = (-x if operand.sign == "-" else x for x in both)
        return low, high

    return read


@operation("HADD2", "HMUL2", "HFMA2", "HMNMX2")
def half_arithmetic(p: Program, i: Instruction) -> Run:
    names, operands = i.modifiers, list(i.operands[1:])
    is_bfloat16 = any(name.startswith("BF16") for name in names)
    put = p.put(i.operands[0])
    if i.opcode == "HFMA2" and len(operands) == 4:  # two immediate halves
        immediate = next(k for k, o in enumerate(operands) if o.kind == "number")
        high, low = (np.full(LANES, float(o.text), np.float32) for o in operands[immediate : immediate + 2])
        gets = [halves(p, o, is_bfloat16) for o in operands[:immediate] + operands[immediate + 2 :]]
        gets.insert(immediate, lambda w: (low, high))
    else:
        gets = [halves(p, o, is_bfloat16) for o in operands if o.kind not in ("P", "UP")]
    is_min = p.predicate(operands[-1]) if i.opcode == "HMNMX2" else None

    def combine(w: Warp, values: list[Array]) -> Array:
        a, b = values[:2]
        if i.opcode == "HMNMX2" and is_min:
            return np.where(is_min(w), np.fmin(a, b), np.fmax(a, b))
        return a + b if i.opcode == "HADD2" else a * b if i.opcode == "HMUL2" else a * b + values[2]

    def run(w: Warp, lanes: Mask) -> None:
        pairs = [get(w) for get in gets]
        low = combine(w, [pair[0] for pair in pairs])
        if "F32" in names:
            put(w, lanes, low.astype(np.float32).view(np.uint32))
            return
        high = combine(w, [pair[1] for pair in pairs])
        put(w, lanes, half_bits(high, is_bfloat16) << np.uint32(16) | half_bits(low, is_bfloat16))

    return run


# ---- between the threads of a warp -----------------------------------------------------------------------------------


@operation("SHFL")
def shuffle(p: Program, i: Instruction) -> Run:
    put_valid, put = p.put_predicate(i.operands[0]), p.put(i.operands[1])
    get, distance, bounds = p.u32(i.operands[2]), p.u32(i.operands[3]), p.u32(i.operands[4])
    kind = i.modifiers[0]

    def run(w: Warp, lanes: Mask) -> None:
        value, n, c = get(w), distance(w).astype(np.int64) & 31, bounds(w).astype(np.int64)
        clamp, segment = c & 31, c >> 8 & 31
        least, most = LANE & segment, (LANE & segment) | (clamp & ~segment & 31)
        other = {"BFLY": LANE ^ n, "UP": LANE - n, "DOWN": LANE + n, "IDX": least | (n & ~segment & 31)}[kind]
        valid = other >= most if kind == "UP" else other <= most
        source = np.where(valid, other, LANE)
        put_valid(w, lanes, valid)
        put(w, lanes, value[np.clip(source, 0, 31)])

    return run


def ballot(values: Array, lanes: Mask) -> int:
    return int(sum(1 << int(lane) for lane in np.flatnonzero(values & lanes)))


@operation("VOTE", "VOTEU")
def vote(p: Program, i: Instruction) -> Run:
    nowhere = Operand("R", ZERO), Operand("P", TRUE)
    registers = [o for o in i.operands if o.kind in ("R", "UR")]
    *results, source = [o for o in i.operands if o.kind in ("P", "UP")]
    put, put_result = p.put([*registers, nowhere[0]][0]), p.put_predicate([*results, nowhere[1]][0])
    get, kind = p.predicate(source), i.modifiers[0]

    def run(w: Warp, lanes: Mask) -> None:
        values = np.asarray(get(w), bool)
        chosen = values[lanes]
        result = {"ANY": chosen.any(), "ALL": chosen.all(), "EQ": chosen.all() or not chosen.any()}[kind]
        put(w, lanes, row(ballot(values, lanes)))
        put_result(w, lanes, np.full(LANES, bool(result)))

    return run


@operation("MATCH")
def match_lanes(p: Program, i: Instruction) -> Run:
    if "ANY" not in i.modifiers:
        raise Unknown(i.text)
    put, get = p.put(i.operands[0]), p.u32(i.operands[1])

    def run(w: Warp, lanes: Mask) -> None:
        values = get(w)
        put(w, lanes, np.array([ballot(values == value, lanes) for value in values], np.uint32))

    return run


@operation("REDUX")
def reduce_lanes(p: Program, i: Instruction) -> Run:
    put, get = p.put(i.operands[0]), p.u32(i.operands[1])

    def run(w: Warp, lanes: Mask) -> None:
        values = get(w)[lanes]
        values = values.view(np.int32) if "S32" in i.modifiers else values
        if "SUM" in i.modifiers:
            result = int(values.astype(np.int64).sum())
        elif "OR" in i.modifiers or "AND" in i.modifiers:
            result = int((np.bitwise_or if "OR" in i.modifiers else np.bitwise_and).reduce(values))
        else:
            result = int(values.max() if "MAX" in i.modifiers else values.min())
        put(w, lanes, row(result))

    return run


# ---- memory ----------------------------------------------------------------------------------------------------------


def access_width(i: Instruction) -> tuple[int, bool]:
    """Bytes for each thread, and whether the value is signed."""
    narrow = {
        "U8": (1, False),
        "S8": (1, True),
        "U16": (2, False),
        "S16": (2, True),
        "64": (8, False),
        "128": (16, False),
    }
    return next((narrow[name] for name in i.modifiers if name in narrow), (4, False))


def memory_operand(i: Instruction) -> Operand:
    return next(o for o in i.operands if o.kind == "memory")


def gather(cells: Array, first: Array, width: int, is_signed: bool) -> list[Array]:
    if width < 4:
        value = cells[first].astype(np.uint32)
        rest = np.uint32(32 - 8 * width)
        return [(value << rest).view(np.int32) >> rest.view(np.int32)] if is_signed else [value]
    return [cells[first + word] for word in range(width // 4)]


def scatter(cells: Array, first: Array, values: list[Array], width: int) -> None:
    for word, value in enumerate(values):
        cells[first + word] = value & np.uint32((1 << 8 * width) - 1) if width < 4 else value


def spread(values: list[Array], lanes: Mask) -> list[Array]:
    result: list[Array] = []
    for value in values:
        whole = np.zeros(LANES, np.uint32)
        whole[lanes] = value
        result.append(whole)
    return result


def shared_cells(w: Warp, addresses: Array, width: int) -> tuple[Array, Array]:
    if int((addresses % width).max()) != 0:
        raise IndexError("misaligned access to shared memory")
    cell = min(width, 4)
    dtype = {1: np.uint8, 2: np.uint16, 4: np.uint32}[cell]
    return w.block.shared.view(dtype), (addresses & 0xFFFFFF) // cell


def places(p: Program, i: Instruction) -> Callable[[Warp, Mask], tuple[Array, Array]]:
    """The cells that a load or store accesses, and where; the access is noted."""
    width, _ = access_width(i)
    is_store, is_global = i.opcode.startswith("ST"), i.opcode in ("LDG", "STG", "LD", "ST")
    address = p.sum_of_parts(memory_operand(i).parts, wide=is_global)

    def find(w: Warp, lanes: Mask) -> tuple[Array, Array]:
        addresses = address(w)[lanes]
        if is_global:
            w.note(global_access(addresses, width, is_store))
            return p.memory.cells(addresses, width)
        passes = bank_conflicts(addresses & 0xFFFFFF, width)
        w.note(Access("shared", is_store, len(addresses) * width, addresses[:0], passes))
        return shared_cells(w, addresses, width)

    return find


@operation("LDG", "LDS", "LD")
def load(p: Program, i: Instruction) -> Run:
    width, is_signed = access_width(i)
    find = places(p, i)
    puts = [p.put(i.operands[0], word) for word in range(max(1, width // 4))]

    def run(w: Warp, lanes: Mask) -> None:
        values = gather(*find(w, lanes), width, is_signed)
        for put, value in zip(puts, spread(values, lanes), strict=True):
            put(w, lanes, value)

    return run


@operation("STG", "STS", "ST")
def store(p: Program, i: Instruction) -> Run:
    width, _ = access_width(i)
    find = places(p, i)
    gets = [p.raw(i.operands[-1], word) for word in range(max(1, width // 4))]

    def run(w: Warp, lanes: Mask) -> None:
        cells, first = find(w, lanes)
        scatter(cells, first, [get(w)[lanes] for get in gets], width)

    return run


@operation("LDGSTS")
def copy_to_shared(p: Program, i: Instruction) -> Run:
    width, _ = access_width(i)
    to, source = (o for o in i.operands if o.kind == "memory")
    to_address, from_address = p.sum_of_parts(to.parts), p.sum_of_parts(source.parts, wide=True)

    def run(w: Warp, lanes: Mask) -> None:
        addresses = from_address(w)[lanes]
        w.note(global_access(addresses, width, False))
        values = gather(*p.memory.cells(addresses, width), width, False)
        scatter(*shared_cells(w, to_address(w)[lanes], width), values, width)

    return run


@operation("LDL", "STL")
def access_local(p: Program, i: Instruction) -> Run:
    width, _ = access_width(i)
    if width < 4:
        raise Unknown(i.text)
    address = p.sum_of_parts(memory_operand(i).parts)
    words = range(width // 4)
    is_store = i.opcode == "STL"
    gets = [p.raw(i.operands[-1], word) for word in words] if is_store else []
    puts = [] if is_store else [p.put(i.operands[0], word) for word in words]

    def run(w: Warp, lanes: Mask) -> None:
        cells = (address(w) & 0xFFFFFF) // 4 % w.local.shape[1]
        w.note(Access("local", is_store, int(np.count_nonzero(lanes)) * width, cells[:0], width // 4))
        for word in words:
            if is_store:
                w.local[LANE[lanes], cells[lanes] + word] = gets[word](w)[lanes]
            else:
                puts[word](w, lanes, w.local[LANE, cells + word])

    return run


@operation("ATOMS", "ATOMG", "RED", "REDG", "ATOM")
def add_atomically(p: Program, i: Instruction) -> Run:
    is_shared, is_increment = i.opcode == "ATOMS", "INC" in i.modifiers and "POPC" in i.modifiers
    if not ("ADD" in i.modifiers or is_increment) or any(
        name.startswith(("F16", "BF16", "F64")) for name in i.modifiers
    ):
        raise Unknown(i.text)
    width = 8 if "64" in i.modifiers else 4
    address = p.sum_of_parts(memory_operand(i).parts, wide=not is_shared)
    is_float = "F32" in i.modifiers
    value = p.u64(i.operands[-1]) if width == 8 else p.raw(i.operands[-1]) if not is_increment else None
    put = p.put(i.operands[0] if i.operands[0].kind == "R" else Operand("R", ZERO))

    def run(w: Warp, lanes: Mask) -> None:
        addresses = address(w)[lanes]
        amounts = value(w)[lanes] if value else np.ones(len(addresses), np.uint32)
        if is_shared:
            w.note(Access("shared", True, len(addresses) * width, addresses[:0], bank_conflicts(addresses, width)))
            cells, first = shared_cells(w, addresses, width)
        else:
            w.note(global_access(addresses, width, True))
            cells, first = p.memory.cells(addresses, width)
        put(w, lanes, spread([cells[first]], lanes)[0])
        wide = cells.view(np.uint64) if width == 8 else cells.view(np.float32) if is_float else cells
        np.add.at(wide, first // (width // 4), amounts.view(np.float32) if is_float else amounts)

    return run
