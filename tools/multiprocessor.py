"""How long a multiprocessor takes: bounds by what blocks count up to, and a simulation of the blocks that are resident.

A quarter of a multiprocessor is simulated. It issues the instructions of every fourth warp, and has a fourth of the
memory pipe and of the multiprocessor's part of the device's bandwidth: the other quarters do the same work beside it.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from gpu_devices import Device
from sass import Instruction
from warps import LANES, SECTOR, Block
from warps import Warp as TracedWarp

# ---- pipes -----------------------------------------------------------------------------------------------------------

PIPES = {
    "xu": "MUFU I2F F2I F2F FRND POPC FLO BREV FCHK",
    "fp64": "DADD DMUL DFMA DSETP",
    "imad": "IMAD",
    "fma": "FADD FMUL FFMA HFMA2 HADD2 HMUL2 FADD32I FMUL32I FFMA32I",
    "memory": "LDG STG LDS STS LDL STL LD ST LDGSTS ATOMS ATOMG ATOM RED REDG SHFL",
    "branch": "BRA EXIT CALL BRX RET BSSY BSYNC BREAK WARPSYNC BAR NOP YIELD DEPBAR LDGDEPBAR MEMBAR ERRBAR CCTL",
    "uniform": "LDC S2R S2UR R2UR CS2R B2R",
}
PIPE_OF = {opcode: pipe for pipe, opcodes in PIPES.items() for opcode in opcodes.split()}
# Cycles until a result is there, where no stall count says it.
LATENCIES = {"xu": 20, "fp64": 16, "memory": 29, "uniform": 24}
ISSUE_EFFICIENCY, PIPE_EFFICIENCY = 0.6, 0.9


def pipe_of(instruction: Instruction) -> str:
    return PIPE_OF.get(instruction.opcode, "uniform" if instruction.opcode.startswith("U") else "alu")


def lanes_of(pipe: str, device: Device) -> int:
    return {"alu": 64, "imad": 64, "xu": 16, "fp64": device.fp64_lanes, "fma": device.fp32_lanes}.get(pipe, 128)


# ---- counting --------------------------------------------------------------------------------------------------------


@dataclass
class Counts:
    """Of one block, on average over the blocks that ran."""

    pipes: Counter[str] = field(default_factory=Counter)  # instructions of warps
    threads: float = 0  # instructions of threads
    passes: float = 0  # through the memory pipe
    conflicts: float = 0  # passes beyond what the bytes need, in shared memory
    loaded: float = 0  # bytes of sectors from memory, each counted once
    stored: float = 0

    @property
    def issued(self) -> float:
        return sum(self.pipes.values())

    @property
    def moved(self) -> float:
        return self.loaded + self.stored


Sectors = tuple[set[int], set[int]]


def own_sectors(blocks: list[Block]) -> list[Sectors]:
    """The sectors that each block loads and stores, without those that another block touches, too."""
    touched = []
    for block in blocks:
        both: Sectors = set(), set()
        for warp in block.warps:
            for access in warp.accesses.values():
                both[access.is_store].update(access.sectors.tolist())
        touched.append(both)
    result = []
    for k, (loads, stores) in enumerate(touched):
        others = set().union(*(a | b for j, (a, b) in enumerate(touched) if j != k))
        result.append((loads - others, stores - others))
    return result


def count(blocks: list[Block], sectors: list[Sectors]) -> Counts:
    counts, share = Counts(), 1 / len(blocks)
    for block, (loads, stores) in zip(blocks, sectors, strict=True):
        issued = Counter(at for warp in block.warps for at in warp.trace)
        for at, times in issued.items():
            instruction = block.program.code[at]
            counts.pipes[pipe_of(instruction)] += times * share  # type: ignore[assignment]
            counts.passes += times * share * (instruction.opcode == "SHFL")
        for warp in block.warps:
            counts.threads += warp.threads * share
            for access in warp.accesses.values():
                counts.passes += access.passes * share
                if access.space == "shared":
                    counts.conflicts += (access.passes - max(1, access.num_bytes / 128)) * share
        counts.loaded += len(loads) * SECTOR * share
        counts.stored += len(stores) * SECTOR * share
    return counts


def instruction_cycles(counts: Counts, device: Device) -> dict[str, float]:
    """Cycles that a multiprocessor takes for a block, by each limit."""

    def cycles(pipe: str, instructions: float) -> float:
        return instructions * LANES / lanes_of(pipe, device) / PIPE_EFFICIENCY

    pipes = {pipe: cycles(pipe, counts.pipes[pipe]) for pipe in ("alu", "imad", "xu", "fp64")}
    pipes["fma"] = cycles("fma", counts.pipes["fma"] + counts.pipes["imad"])  # IMAD is executed by the same lanes
    return {"issue": counts.issued / 4 / ISSUE_EFFICIENCY, "memory pipe": counts.passes / PIPE_EFFICIENCY} | pipes


# ---- simulation ------------------------------------------------------------------------------------------------------

QUARTERS = 4
# From the end of a block to the first instruction of the next in its place, and from warp to warp. Blocks of one warp
# that load nothing take 450 cycles on A100 and H100, of 16 warps 580 (gpu-benches, column "init").
BLOCK_START, WARP_START = 350, 9
L1_LATENCY, SHARED_LATENCY, OPERANDS_READ, BARRIER_LATENCY, BRANCH_LATENCY = 36, 29, 12, 30, 8
PLAIN, BARRIER, COPY, COMMIT, WAIT_FOR_COPIES = range(5)
KINDS = {"BAR": BARRIER, "LDGSTS": COPY, "LDGDEPBAR": COMMIT, "DEPBAR": WAIT_FOR_COPIES}


class Step(NamedTuple):
    """An instruction that a warp issues."""

    kind: int
    pipe: str
    busy: float  # cycles that a quarter's pipe takes
    stall: int  # until the warp's next instruction
    waits: tuple[int, ...]  # scoreboards, as in Instruction
    result_board: int
    read_board: int
    latency: float
    num_bytes: int = 0  # between multiprocessor and memory
    is_store: bool = False
    copies_left: int = 0


def step_of(instruction: Instruction, branches: bool, device: Device) -> Step:
    pipe = pipe_of(instruction)
    busy = LANES * QUARTERS / lanes_of(pipe, device)
    latency = max(LATENCIES.get(pipe, 6), busy)
    stall = instruction.stall + (BRANCH_LATENCY if branches else 0)
    left = next((o.index for o in instruction.operands if o.kind == "number"), 0)
    boards = instruction.result_board, instruction.read_board
    kind = KINDS.get(instruction.opcode, PLAIN)
    return Step(kind, pipe, busy, stall, instruction.waits, *boards, latency, copies_left=left)


def steps_of(block: Block, sectors: Sectors, device: Device) -> list[list[Step]]:
    """Of each warp. A sector comes from memory once, but each warp that needs it waits for it."""
    steps: dict[tuple[int, bool], Step] = {}
    own = sectors[0] | sectors[1]
    fetched: set[int] = set()

    def of_warp(warp: TracedWarp) -> list[Step]:
        code, seen, result = block.program.code, set[int](), []
        for position, (at, following) in enumerate(zip(warp.trace, [*warp.trace[1:], -1], strict=True)):
            branches = following not in (at + 1, -1)
            step = steps.get((at, branches))
            if step is None:
                step = steps[at, branches] = step_of(code[at], branches, device)
            access = warp.accesses.get(position)
            if access is not None:
                new = own.intersection(access.sectors.tolist()) - seen
                seen |= new
                latency = device.latency if new and not access.is_store else L1_LATENCY
                step = step._replace(
                    busy=access.passes * QUARTERS,
                    latency=latency if access.space == "global" else SHARED_LATENCY,
                    num_bytes=len(new - fetched) * SECTOR,
                    is_store=access.is_store,
                )
                fetched.update(new)
            result.append(step)
        return result

    return [of_warp(warp) for warp in block.warps]


@dataclass(eq=False)
class ResidentBlock:
    alive: int = 0  # warps
    at_barrier: list[RunningWarp] = field(default_factory=list)
    last: float = 0  # when the last warp came to the barrier, or ended


@dataclass(eq=False)
class RunningWarp:
    steps: list[Step]
    block: ResidentBlock
    at: int = 0
    boards: list[float] = field(default_factory=lambda: [0.0] * 8)  # when each is released; the last two: never used
    copies: float = 0  # when the asynchronous copies so far have come
    groups: list[float] = field(default_factory=list)


@dataclass
class Quarter:
    blocks: list[list[list[Step]]]  # some that stand for all
    cycles_a_byte: float
    turnaround: float
    limit: int  # blocks to run
    events: list[tuple[float, int, RunningWarp]] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)  # of blocks
    started: int = 0
    order: int = 0
    launcher_free: float = 0
    memory_free: float = 0
    storing: float = 0  # cycles that memory spent with stores

    def push(self, time: float, warp: RunningWarp) -> None:
        self.order += 1
        heapq.heappush(self.events, (time, self.order, warp))

    def start_block(self, time: float) -> None:
        steps = self.blocks[self.started % len(self.blocks)]
        first = self.started * len(steps)
        self.started += 1
        block = ResidentBlock()
        self.launcher_free = max(self.launcher_free, time + BLOCK_START)
        for number, of_warp in enumerate(steps, first):
            if number % QUARTERS == 0:
                block.alive += 1
                self.push(self.launcher_free, RunningWarp(of_warp, block))
            self.launcher_free += WARP_START
        if block.alive == 0:  # all its warps are in other quarters
            self.ends.append(time)

    def advance(self, warp: RunningWarp, time: float) -> None:
        """To the warp's next step, not before `time`; at its end, to the next block."""
        if warp.at < len(warp.steps):
            self.push(max([time, *[warp.boards[board] for board in warp.steps[warp.at].waits]]), warp)
            return
        block = warp.block
        block.alive -= 1
        block.last = max(block.last, time)
        if block.alive > 0:
            self.pass_barrier(block)
            return
        self.ends.append(block.last)
        if self.started < self.limit:
            self.start_block(block.last)

    def pass_barrier(self, block: ResidentBlock) -> None:
        if len(block.at_barrier) == block.alive:
            waiting, block.at_barrier = block.at_barrier, []
            for warp in waiting:
                self.advance(warp, block.last + BARRIER_LATENCY)

    def move(self, step: Step, time: float) -> float:
        """When memory is done with an access."""
        cycles = step.num_bytes * self.cycles_a_byte
        self.memory_free = max(self.memory_free, time) + cycles
        self.storing += cycles * step.is_store
        return self.memory_free + self.turnaround * min(1.0, 2 * self.storing / max(time, 1.0))

    def run(self, slots: int) -> list[float]:
        """When each block ends, with so many at a time."""
        for _ in range(min(slots, self.limit)):
            self.start_block(0)
        issue_free = 0.0
        pipes: dict[str, float] = {}
        while self.events:
            time, _, warp = heapq.heappop(self.events)
            step = warp.steps[warp.at]
            warp.at += 1
            time = max(time, issue_free)
            issue_free = time + 1
            if step.busy > 1:  # queues at its pipe, while others can issue
                time = max(time, pipes.get(step.pipe, 0.0))
                pipes[step.pipe] = time + step.busy
            done = step.latency + (self.move(step, time) if step.num_bytes else time)
            boards = warp.boards
            boards[step.result_board] = max(boards[step.result_board], done)
            boards[step.read_board] = max(boards[step.read_board], time + OPERANDS_READ)
            if step.kind == PLAIN:
                self.advance(warp, time + step.stall)
            else:
                self.synchronize(warp, step, time + step.stall, done)
        return sorted(self.ends)

    def synchronize(self, warp: RunningWarp, step: Step, time: float, done: float) -> None:
        if step.kind == BARRIER:
            warp.block.last = time
            warp.block.at_barrier.append(warp)
            self.pass_barrier(warp.block)
            return
        if step.kind == COPY:
            warp.copies = max(warp.copies, done)
        elif step.kind == COMMIT:
            warp.groups.append(warp.copies)
        else:
            time = max([time, *warp.groups[: len(warp.groups) - step.copies_left]])
        self.advance(warp, time)


def cycles_alone(blocks: list[list[list[Step]]]) -> float:
    """Of a block that has the multiprocessor for itself, and memory that moves any number of bytes at once."""
    return Quarter(blocks, 0, 0, limit=1).run(1)[0]


def cycles_together(blocks: list[list[list[Step]]], device: Device, resident: int, total: int) -> float:
    """Of so many blocks on one multiprocessor."""
    limit = min(total, 6 * resident)
    ends = Quarter(blocks, QUARTERS / device.bytes_a_cycle, device.turnaround, limit).run(resident)
    if limit == total:
        return ends[-1]
    # The first round and the last, in which blocks are missing, are no rule for others.
    steady = (ends[-resident - 1] - ends[resident - 1]) / (limit - 2 * resident)
    return ends[-1] + (total - limit) * steady
