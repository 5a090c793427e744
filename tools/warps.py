"""Runs the instructions of a compiled CUDA kernel, block by block, and notes what each warp issues and accesses.

Threads of a warp are columns of arrays. A warp's threads are in groups; each group runs by itself until it waits for
others, as on a GPU since Volta. What single instructions do is in instructions.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from sass import Instruction, Kernel, Operand, float_of

LANES = 32
LANE = np.arange(LANES)
Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Get = Callable[["Warp"], Array]
Run = Callable[["Warp", Mask], None]
Put = Callable[["Warp", Mask, Array], None]

SHARED_BYTES, LOCAL_BYTES = 256 << 10, 4096  # of a block, and of a thread
SECTOR, LINE = 32, 128
SECTORS_A_PASS = 4  # of any lines: with one line a pass, block_sum_12 of gpu_checks.cu could not be as fast as it is
ZERO, TRUE = 255, 7  # a register and a predicate that are never written
NO_LANES = np.zeros(LANES, bool)
ALL_LANES = np.ones(LANES, bool)  # results of this very array's lanes are written without a mask, which is faster
# Where a kernel's parameters begin in constant bank 0; where it has an address of memory at which they are, too, and
# their offset from there.
PARAMETERS = {80: 0x160, 89: 0x160, 90: 0x210}
PARAMETERS_ADDRESS = {80: (0x40, 0x160), 89: (0x40, 0x160), 90: (0x198, 0)}


class Unknown(Exception):
    """An instruction that is not implemented."""


# ---- memory ----------------------------------------------------------------------------------------------------------


@dataclass
class Region:
    """`data` is repeated up to `size`, so that a large tensor takes little memory."""

    base: int
    size: int
    data: Array  # of bytes


@dataclass
class Memory:
    regions: list[Region] = field(default_factory=list)
    next_base: int = 0x7F0000000000

    def add(self, data: Array, size: int = 0) -> int:
        """Returns the address of a copy of the data."""
        region = Region(self.next_base, max(size, data.nbytes), data.reshape(-1).view(np.uint8).copy())
        self.regions.append(region)
        self.next_base += (region.size + 4095) // 4096 * 4096 + 4096
        return region.base

    def cells(self, addresses: Array, width: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """The region's cells, and the indices of the first cells at the addresses."""
        low, high = int(addresses.min()), int(addresses.max()) + width
        for region in self.regions:
            if region.base <= low and high <= region.base + region.size:
                return region.data.view(dtype), (addresses - region.base) % region.data.size // dtype.itemsize
        raise IndexError(f"access to {low:#x}..{high:#x}, outside all tensors")


@dataclass(frozen=True)
class Access:
    """What one instruction of a warp does in memory."""

    space: str  # global, shared or local
    is_store: bool
    num_bytes: int  # that its threads ask for
    sectors: Array  # numbers of the 32-byte sectors, of global memory
    passes: int  # through the multiprocessor's memory pipe


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
    passes = max(-(-len(sectors) // SECTORS_A_PASS), len(addresses) * width // LINE, 1)
    return Access("global", is_store, len(addresses) * width, sectors, passes)


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
    barriers: Array = field(
        default_factory=lambda: np.zeros((16, LANES, LANES), bool)
    )  # the lanes that a lane waits for
    ready: list[Group] = field(default_factory=list)
    waiting: dict[tuple[str, int], list[Group]] = field(default_factory=dict)
    alive: Mask = field(default_factory=lambda: ALL_LANES)
    trace: list[int] = field(default_factory=list)  # instructions that were issued
    threads: int = 0  # that executed them, together
    accesses: dict[int, Access] = field(default_factory=dict)  # by position in the trace
    vote: Array = field(default_factory=lambda: np.zeros(LANES, bool))  # of BAR.RED
    local: Array = field(default_factory=lambda: np.zeros(LANES * LOCAL_BYTES, np.uint8))

    def __post_init__(self) -> None:
        self.p[TRUE] = self.up[TRUE] = True
        self.ready = [Group(0, self.alive)]

    def note(self, access: Access) -> None:
        self.accesses[len(self.trace) - 1] = access

    def split(self, group: Group, lanes: Mask, target: int) -> None:
        """These lanes of a group go to `target`, the others to the next instruction."""
        count = np.count_nonzero(lanes)
        if count == group.count:
            group.at = target
            return
        if count > 0:
            self.ready.append(Group(target, lanes))
            group.keep(group.lanes & ~lanes)
        group.at += 1

    def needed(self, key: tuple[str, int], group: Group) -> Mask:
        """The lanes that a group waits for."""
        of_group = self.barriers[key[1], int(np.argmax(group.lanes))] if key[0] == "B" else ALL_LANES
        return of_group & self.alive

    def wait(self, key: tuple[str, int], group: Group) -> Group | None:
        """The group itself, if it has nobody to wait for within the warp."""
        group.at += 1
        if key[0] != "BAR" and not (self.needed(key, group) & ~group.lanes).any():
            return group
        self.waiting.setdefault(key, []).append(group)
        self.release(key)
        return None

    def release(self, key: tuple[str, int]) -> None:
        """Merges the groups that wait for each other, if all of them have come."""
        groups = self.waiting.get(key, [])
        arrived = np.logical_or.reduce([group.lanes for group in groups]) if groups else NO_LANES
        for group in groups:
            needed = self.needed(key, group)
            if (needed & ~arrived).any():
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
        step = self.block.program.step
        while self.ready:
            group: Group | None = self.ready.pop()
            while group is not None and group.count > 0:
                group = step(self, group)


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
                if any(warp.waiting.values()):
                    raise RuntimeError("some threads of a warp wait for others that do not come")
            at_barrier, self.at_barrier = self.at_barrier, []
            running = [warp for warp, _ in at_barrier]
            if running and len(running) != sum(warp.alive.any() for warp in self.warps):
                raise RuntimeError("some warps wait at a barrier that others do not reach")
            every = all(warp.vote[warp.alive].all() for warp in running)
            for warp, group in at_barrier:
                warp.vote[:] = every
                warp.ready = [group]


# ---- control flow ----------------------------------------------------------------------------------------------------


Control = Callable[["Program", Warp, Group, Mask, Instruction], "Group | None"]
CONTROL: dict[str, Control] = {}


def control(*opcodes: str) -> Callable[[Control], Control]:
    def register(function: Control) -> Control:
        CONTROL.update(dict.fromkeys(opcodes, function))
        return function

    return register


@control("EXIT")
def leave(p: Program, w: Warp, group: Group, lanes: Mask, i: Instruction) -> Group:
    group.keep(group.lanes & ~lanes)
    group.at += 1
    w.exit(lanes)
    return group


@control("BRA", "CALL")
def branch(p: Program, w: Warp, group: Group, lanes: Mask, i: Instruction) -> Group:
    *conditions, target = i.operands
    if "DIV" in i.modifiers or "CONV" in i.modifiers:  # where a warp has diverged, or converged
        is_diverged = bool((group.lanes != w.alive).any())
        lanes, conditions = (lanes if is_diverged == ("DIV" in i.modifiers) else NO_LANES, [])
    for condition in conditions:
        lanes = lanes & p.predicate(condition)(w)
    w.split(group, lanes, p.index[int(target.text, 16)])
    return group


@control("BRX", "RET")
def jump(p: Program, w: Warp, group: Group, lanes: Mask, i: Instruction) -> Group:
    register, offset = i.operands[0].text.split()
    rows = w.u if register.startswith("U") else w.r
    base = int(offset, 16) + (i.address + 16 if i.opcode == "BRX" else 0)
    targets = rows[int(register.split(".")[0].strip("UR"))].view(np.int32).astype(np.int64) + base
    first, *others = np.unique(targets[lanes])
    for target in others:
        chosen = lanes & (targets == target)
        w.ready.append(Group(p.index[int(target)], chosen))
        group.keep(group.lanes & ~chosen)
        lanes = lanes & ~chosen
    w.split(group, lanes, p.index[int(first)])
    return group


@control("BSSY")
def set_barrier(p: Program, w: Warp, group: Group, lanes: Mask, i: Instruction) -> Group:
    w.barriers[i.operands[0].index][lanes] = group.lanes
    group.at += 1
    return group


@control("BREAK")
def leave_barrier(p: Program, w: Warp, group: Group, lanes: Mask, i: Instruction) -> Group:
    *conditions, barrier = i.operands
    for condition in conditions:
        lanes = lanes & p.predicate(condition)(w)
    w.barriers[barrier.index][:, lanes] = False
    group.at += 1
    w.release(("B", barrier.index))
    return group


@control("BSYNC")
def wait_at_barrier(p: Program, w: Warp, group: Group, lanes: Mask, i: Instruction) -> Group | None:
    if (lanes != group.lanes).any():
        raise Unknown(i.text)
    return w.wait(("B", i.operands[0].index), group)


@control("WARPSYNC")
def wait_for_warp(p: Program, w: Warp, group: Group, lanes: Mask, i: Instruction) -> Group | None:
    return w.wait(("W", group.at), group)


@control("BAR")
def wait_for_block(p: Program, w: Warp, group: Group, lanes: Mask, i: Instruction) -> None:
    if "RED" in i.modifiers:
        np.copyto(w.vote, p.predicate(i.operands[-1])(w), where=lanes)
    w.wait(("BAR", 0), group)


# ---- programs --------------------------------------------------------------------------------------------------------


class Program:
    """A kernel's instructions with the constants of one launch. They are decoded when they first run."""

    def __init__(
        self, kernel: Kernel, arch: int, grid: tuple[int, int, int], threads: int, parameters: bytes, memory: Memory
    ) -> None:
        self.grid, self.threads, self.memory = grid, threads, memory
        self.code = kernel.instructions
        self.index = {each.address: i for i, each in enumerate(self.code)}
        self.decoded: list[tuple[Get | None, Run | None, Instruction] | None] = [None] * len(self.code)
        bank = bytearray(0x2000)
        bank[0:24] = np.array([threads, 1, 1, *grid], np.uint32).tobytes()
        bank[0x28:0x30] = np.array([0xFFFDC0, 0], np.uint32).tobytes()  # the stack's end
        bank[PARAMETERS[arch] : PARAMETERS[arch] + len(parameters)] = parameters
        at, offset = PARAMETERS_ADDRESS[arch]
        address = memory.add(np.frombuffer(parameters, np.uint8))
        bank[at : at + 8] = np.array([address - offset], np.uint64).tobytes()
        self.banks = {number: bytes(data) for number, data in kernel.constants.items()} | {0: bytes(bank)}

    def block(self, index: int) -> Block:
        x, y, _ = self.grid
        block = Block(self, (index % x, index // x % y, index // (x * y)), self.threads)
        with np.errstate(all="ignore"):
            block.run()
        return block

    def decode(self, instruction: Instruction) -> tuple[Get | None, Run | None, Instruction]:
        from instructions import DECODERS  # which are made of what is here

        guard = self.predicate(instruction.guard) if instruction.guard else None
        opcode = instruction.opcode
        if opcode in CONTROL:
            return guard, None, instruction
        decoder = DECODERS.get(opcode) or DECODERS.get(opcode.removeprefix("U"))
        if decoder is None:
            raise Unknown(instruction.text)
        return guard, decoder(self, instruction), instruction

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
        warp.trace.append(at)
        warp.threads += count
        if run is None:
            return CONTROL[instruction.opcode](self, warp, group, lanes, instruction)
        if count > 0:
            run(warp, lanes)
        group.at = at + 1
        return group

    # ---- reading operands ----

    def read(self, kind: str, operand: Operand) -> Get:
        readers = {"u": self.u32, "s": self.s32, "f": self.f32, "q": self.u64, "d": self.f64, "p": self.predicate}
        return readers[kind](operand)

    def predicate(self, operand: Operand) -> Get:
        index, invert = operand.index, operand.sign == "!"
        if operand.kind == "UP":
            return (lambda w: ~w.up[index]) if invert else (lambda w: w.up[index])
        if operand.kind != "P":
            raise Unknown(operand.text)
        return (lambda w: ~w.p[index]) if invert else (lambda w: w.p[index])

    def raw(self, operand: Operand, word: int = 0) -> Get:
        """The bits of an operand, or of the `word`-th register from it on, without its sign."""
        index = operand.index if operand.index == ZERO else operand.index + word
        if operand.kind == "R":
            return lambda w: w.r[index]
        if operand.kind == "UR":
            return lambda w: w.u[index]
        if operand.kind == "number":
            if "0x" in operand.text:
                return constant(np.full(LANES, operand.index >> 32 * word & 0xFFFFFFFF, np.uint32))
            return constant(np.full(LANES, float_of(operand.text), np.float32).view(np.uint32))
        if operand.kind != "constant":
            raise Unknown(operand.text)
        words = np.frombuffer(self.banks[operand.index], np.uint32)
        if all(part.kind == "number" for part in operand.parts):
            return constant(np.full(LANES, words[sum(part.index for part in operand.parts) // 4 + word]))
        address = self.sum_of_parts(operand.parts)
        return lambda w: words[np.minimum(address(w) // 4 + word, len(words) - 1)]

    def u32(self, operand: Operand) -> Get:
        get = self.raw(operand)
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
        return self.signed(operand, self.raw(operand), np.float32)

    def f64(self, operand: Operand) -> Get:
        if operand.kind == "number":  # or the high half of its bits
            value = np.uint64(operand.index << 32).view(np.float64) if "0x" in operand.text else float_of(operand.text)
            return constant(np.full(LANES, value))
        return self.signed(operand, self.u64(operand), np.float64)

    @staticmethod
    def signed(operand: Operand, get: Get, dtype: type) -> Get:
        negative, absolute = operand.sign == "-", operand.is_absolute

        def read(w: Warp) -> Array:
            x: Array = get(w).view(dtype)
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
            return constant(np.full(LANES, offset, np.int64))
        return lambda w: sum((get(w) for get in gets[1:]), gets[0](w) + offset)

    # ---- writing results ----

    def put(self, operand: Operand, word: int = 0) -> Put:
        index = operand.index + word
        if operand.index == ZERO:
            return lambda w, lanes, value: None
        if operand.kind == "UR":
            return lambda w, lanes, value: set_lanes(w.u, index, ALL_LANES, value.view(np.uint32)[np.argmax(lanes)])
        return lambda w, lanes, value: set_lanes(w.r, index, lanes, value.view(np.uint32))

    def put64(self, operand: Operand) -> Put:
        low, high = self.put(operand), self.put(operand, 1)

        def write(w: Warp, lanes: Mask, value: Array) -> None:
            words = np.ascontiguousarray(value).view(np.uint32)
            low(w, lanes, words[0::2])
            high(w, lanes, words[1::2])

        return write

    def put_predicate(self, operand: Operand) -> Put:
        index = operand.index
        if index == TRUE:
            return lambda w, lanes, value: None
        if operand.kind == "UP":
            return lambda w, lanes, value: set_lanes(w.up, index, ALL_LANES, value[np.argmax(lanes)])
        return lambda w, lanes, value: set_lanes(w.p, index, lanes, value)


def constant(value: Array) -> Get:
    return lambda w: value


def set_lanes(rows: Array, index: int, lanes: Mask, value: Array) -> None:
    if lanes is ALL_LANES:
        rows[index] = value
    else:
        np.copyto(rows[index], value, where=lanes)
