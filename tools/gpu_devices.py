"""What the model knows of GPUs, and where the figures come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    name: str
    arch: int
    multiprocessors: int
    clock: float  # Hz, under load
    bandwidth: float  # bytes a second, of the data sheet
    copy_efficiency: float  # what a large copy reaches of it
    latency: float  # seconds from a load to its data, with memory at work
    l2_latency: float
    warps: int  # on a multiprocessor at most
    blocks: int
    registers: int
    shared_bytes: int  # of a multiprocessor, for all blocks
    fp32_lanes: int  # a cycle, on a multiprocessor: FFMA, FADD, FMUL
    fp64_lanes: int


H100 = Device("H100", 90, 132, 1.755e9, 3.35e12, 0.92, 650e-9, 280e-9, 64, 32, 65536, 228 << 10, 128, 64)
A100 = Device("A100", 80, 108, 1.41e9, 2.039e12, 0.90, 600e-9, 250e-9, 64, 32, 65536, 164 << 10, 64, 32)
RTX4090 = Device("RTX 4090", 89, 128, 2.52e9, 1.008e12, 0.92, 600e-9, 300e-9, 48, 24, 65536, 100 << 10, 128, 2)
DEVICES = (H100, A100, RTX4090)
