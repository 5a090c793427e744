"""How long a launch takes, and what the model says of a call.

The kernels are compiled, and some blocks of them interpreted (warps.py). From the instructions that warps issue and the
sectors of memory that they touch come three bounds: by bytes, by instructions, and by latency, as if each block had its
multiprocessor for itself. Where they meet, a launch takes longer; multiprocessor.py runs the resident blocks together.

A share is the time in which a copy would move the bytes that the call has to move at least, over the time that all its
kernels take: by their largest bounds, and together, where that is longer.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_checks import Check
from gpu_compile import Toolkit, digest, short_name
from gpu_devices import Device
from gpu_problems import Launch, Problem, random_logits
from multiprocessor import Counts, count, cycles_alone, cycles_together, instruction_cycles, own_sectors, steps_of
from sass import Kernel
from warps import LANES, Block, Memory, Program

Row = dict[str, Any]

# Seconds from the end of a kernel to the next one of a stream. On an H200 kernels of 4096 numbers take 2.3 us each, one
# after another (gpu-benches, gpu-small-kernels/h200_graph.txt), of which the model has 0.4.
LAUNCH_GAP = 1.9e-6


@dataclass
class Prediction:
    launch: Launch
    kernel: Kernel
    blocks: list[Block]  # that were interpreted
    counts: Counts
    resident: int  # blocks on a multiprocessor
    bounds: dict[str, float]  # seconds, each alone
    together: float  # seconds, where the bounds meet
    cycles_alone: float
    cycles: dict[str, float]  # of a block, by each kind of instructions

    @property
    def bound(self) -> float:
        return max(self.bounds.values())

    @property
    def time(self) -> float:
        return max(self.bound, self.together)


def resident_blocks(kernel: Kernel, launch: Launch, device: Device) -> int:
    warps = -(-launch.threads // LANES)
    registers = -(-max(kernel.registers, 1) * LANES // 256) * 256 * warps
    system = 0 if device.arch >= 90 and kernel.shared else 1024  # bytes of each block, which sm_90 counts as static
    shared = -(-(kernel.shared + launch.shared_bytes + system) // 128) * 128
    limits = [device.blocks, device.warps // warps, device.registers // registers, device.shared_bytes // shared]
    return max(1, min(limits))


def predict(kernel: Kernel, launch: Launch, memory: Memory, device: Device, resident: int = 0) -> Prediction:
    resident = resident or resident_blocks(kernel, launch, device)
    program = Program(kernel, device.arch, launch.grid, launch.threads, launch.parameters(kernel), memory)
    first = launch.blocks // 3
    blocks = [program.block(first)]
    if launch.blocks > 1 and len(blocks[0].warps[0].trace) < 10000:  # the second tells which sectors all of them touch
        blocks.append(program.block((first + (launch.blocks + 1) // 2) % launch.blocks))
    sectors = own_sectors(blocks)
    counts = count(blocks, sectors)
    steps = [steps_of(block, of_block, device) for block, of_block in zip(blocks, sectors, strict=True)]
    of_multiprocessor = -(-launch.blocks // device.multiprocessors)
    cycles = instruction_cycles(counts, device)
    alone = cycles_alone(steps)
    bounds = {
        "bytes": counts.moved * launch.blocks / device.copy_rate,
        "issue": of_multiprocessor * max(cycles.values()) / device.clock,
        "latency": -(-of_multiprocessor // resident) * alone / device.clock,
    }
    together = cycles_together(steps, device, resident, of_multiprocessor) / device.clock
    return Prediction(launch, kernel, blocks, counts, resident, bounds, together, alone, cycles)


def row_of(problem: Problem, device: Device, predictions: list[Prediction]) -> Row:
    main = max(predictions, key=lambda p: p.time)
    floor, gaps = problem.floor_bytes / device.copy_rate, LAUNCH_GAP * (len(predictions) - 1)
    a_logit = LANES * main.launch.blocks / (problem.voxels * problem.classes)
    in_flight = main.resident * main.counts.loaded * device.latency / main.cycles_alone
    return {
        "device": device.name,
        **asdict(problem),
        "kernel": short_name(main.kernel.name),
        "kernels": len(predictions),
        "instructions": round(main.counts.issued * a_logit, 1),
        "registers": main.kernel.registers,
        "blocks": main.resident,
        "moved": round(sum(p.counts.moved * p.launch.blocks for p in predictions) / problem.floor_bytes, 3),
        "in_flight": round(in_flight / 1024, 1),
        "bounds": {name: round(floor / seconds, 3) for name, seconds in main.bounds.items()},
        "share": round(floor / (sum(p.bound for p in predictions) + gaps), 3),
        "together": round(floor / (sum(p.time for p in predictions) + gaps), 3),
    }


def details_of(problem: Problem, p: Prediction, device: Device, folder: Path) -> str:
    a_logit = LANES * p.launch.blocks / (problem.voxels * problem.classes)
    listing = folder / f"{digest(device.arch, p.kernel.name, str(problem))}.txt"
    times = Counter(at for block in p.blocks for warp in block.warps for at in warp.trace)
    lines = [
        f"{times[at] / len(p.blocks):8.0f}  {each.stall:2} {each.address:05x}  {each.text}"
        for at, each in enumerate(p.kernel.instructions)
    ]
    heading = [short_name(p.kernel.name), "issued by a block's warps, stall, address, instruction"]
    listing.write_text("\n".join(heading + lines))
    bounds = ", ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in p.bounds.items())
    pipes = ", ".join(f"{pipe} {number * a_logit:.2f}" for pipe, number in sorted(p.counts.pipes.items()))
    slowest = max(p.cycles, key=lambda name: p.cycles[name])
    return (
        f"    {short_name(p.kernel.name)}: {p.together * 1e6:.1f} us together; bounds: {bounds}\n"
        f"        {p.launch.blocks} blocks of {p.launch.threads} threads, {p.resident} resident, {p.kernel.registers} "
        f"registers, {p.kernel.shared + p.launch.shared_bytes} bytes of shared memory, {p.kernel.stack} of stack\n"
        f"        a logit: {p.counts.issued * a_logit:.1f} instructions ({p.counts.threads * a_logit / LANES:.1f} of "
        f"threads): {pipes}; the slowest are {slowest}\n"
        f"        bank conflicts: {p.counts.conflicts:.0f} of {p.counts.passes:.0f} passes; {listing}"
    )


def check_row(check: Check, toolkit: Toolkit) -> Row:
    memory, size = Memory(), check.total * check.num_bytes + 64
    threads = -(-check.total // check.elements)
    data = random_logits("float32")
    pointers = [memory.add(data, size) for _ in ("from", "to")]
    arguments = (*(struct.pack("<Q", pointer) for pointer in pointers), struct.pack("<I", check.limit))
    launch = Launch(check.kernel, (-(-threads // check.threads), 1, 1), check.threads, 0, arguments)
    prediction = predict(toolkit.kernel(check.kernel), launch, memory, check.device, check.resident)
    return {
        "kernel": check.kernel,
        "threads": check.threads,
        "blocks": prediction.resident,
        "device": check.device.name,
        "measured": round(check.published / 1e9),
        "model": round(check.streams * check.total * check.num_bytes / prediction.time / 1e9),
        "source": check.source,
    }
