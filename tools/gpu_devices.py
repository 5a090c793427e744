"""What the model knows of GPUs.

Multiprocessors and bandwidths are those of NVIDIA's data sheets ("NVIDIA H100 Tensor Core GPU", "NVIDIA A100 Tensor
Core GPU") and of the white paper "NVIDIA Ada GPU Architecture"; limits of a multiprocessor and its lanes those of the
CUDA C++ Programming Guide ("Technical Specifications per Compute Capability", "Throughput of Native Arithmetic
Instructions"). The rest are assumptions.

Assumed as the clock that a card keeps up: the highest of an A100 and of an RTX 4090, and for an H100, which reaches
1.98 GHz where its power allows, that of the PCIe card.

Assumed as what a copy reaches of the bandwidth, after what others measured:
  H100      3.01 of 3.35 TB/s by a softmax (Getting Memory-bound Kernels to Speed-of-Light, github.com/Dao-AILab/quack,
            media/2025-07-10-membound-sol.md); 2.90 by BabelStream's copy, 3.18 by its dot, which only reads
            (github.com/Azure/AI-benchmarking-guide, ND_H100_v5_results.md)
  A100      1379 of 1555 GB/s by a float4 copy of the 40 GB card (github.com/xytpai/nvbench, README.md); 1732 of 2039 by
            one of single doubles (github.com/te42kyfo/gpu-benches, cuda-stream/a100_80.txt)
  RTX 4090  922 of 1008 GB/s by a float4 copy (nvbench)

Assumed as the latency, in cycles: that of a chain of loads in idle memory, 650 on an H100, 570 on an A100, 631 on an
L40, which has the chip of an RTX 4090 (gpu-benches, gpu-latency/h100_pcie.txt and l40.txt, cuda-latency/a100_80.txt).
Loads take longer where memory has to turn around for many stores: `turnaround` is fitted to the "scale" columns of
gpu-benches' cuda-stream and gpu-stream, from 3 % to all of a multiprocessor's threads.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    name: str
    arch: int
    multiprocessors: int
    clock: float  # Hz
    bandwidth: float  # bytes a second, of the data sheet
    copy_efficiency: float  # what a large copy reaches of it
    latency: float  # cycles from a load to its data
    turnaround: float  # cycles on top, where half of what memory moves at its full rate are stores
    warps: int  # on a multiprocessor at most
    blocks: int
    shared_bytes: int  # of a multiprocessor, for all blocks
    fp32_lanes: int  # a cycle, on a multiprocessor
    fp64_lanes: int
    registers: int = 65536

    @property
    def copy_rate(self) -> float:
        return self.bandwidth * self.copy_efficiency

    @property
    def bytes_a_cycle(self) -> float:
        """A multiprocessor's part of the copy rate."""
        return self.copy_rate / self.multiprocessors / self.clock


H100 = Device("H100", 90, 132, 1.755e9, 3.35e12, 0.90, 650, 400, 64, 32, 228 << 10, 128, 64)
A100 = Device("A100", 80, 108, 1.41e9, 2.039e12, 0.88, 570, 150, 64, 32, 164 << 10, 64, 32)
RTX4090 = Device("RTX 4090", 89, 128, 2.52e9, 1.008e12, 0.91, 635, 100, 48, 24, 100 << 10, 128, 2)
DEVICES = (H100, A100, RTX4090)
