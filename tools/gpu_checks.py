"""Kernels of known speed, by which the model is checked: gpu_checks.cu has them, written anew after the sources."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpu_devices import A100, H100, RTX4090, Device

A100_40GB = replace(A100, name="A100 40GB", bandwidth=1.555e12)
H100_PCIE = replace(H100, name="H100 PCIe", bandwidth=2.039e12, multiprocessors=114)

# github.com/xytpai/nvbench, README.md, "global_memory_bandwidth": copies of 2^28 + 2 floats, blocks of 256 threads.
NVBENCH = "nvbench"
# github.com/te42kyfo/gpu-benches, cuda-stream/a100_80.txt and h100_pcie.txt, column "scale": 2^27 + 2 doubles, two
# blocks on a multiprocessor.
GPU_BENCHES = "gpu-benches"
# github.com/simveit/effective_reduction, README.md: sums of 2^30 ints, kernel_2 and kernel_3, blocks of 512 threads.
REDUCTION = "effective_reduction"
# github.com/Dao-AILab/quack, media/2025-07-10-membound-sol.md: float32 softmax, "about 3 TB/s (~90% peak) for a
# reduction dimension larger than 4k", 3.01 TB/s in the profile. Rows of 8192 here.
QUACK = "quack"


@dataclass(frozen=True)
class Check:
    kernel: str
    device: Device
    threads: int  # of a block
    elements: int  # of a thread
    num_bytes: int  # of an element
    total: int  # elements
    published: float  # bytes a second
    source: str
    resident: int = 0  # blocks on a multiprocessor, if something else than the kernel limits them
    streams: int = 2  # that count: 1 for a sum, which only reads

    @property
    def limit(self) -> int:
        """The kernel's last argument: of elements, or of a copy's vectors."""
        return -(-self.total // self.elements) if self.kernel.startswith("copy") else self.total


def copies(device: Device, *speeds: float) -> list[Check]:
    total = (1 << 28) + 2
    return [
        Check(f"copy_{n}", device, 256, n, 4, total, speed, NVBENCH)
        for n, speed in zip((1, 4, 16), speeds, strict=True)
    ]


def scales(device: Device, *speeds: float) -> list[Check]:
    return [
        Check("scale", device, threads, 1, 8, (1 << 27) + 2, speed, GPU_BENCHES, resident=2)
        for threads, speed in zip((256, 512, 1024), speeds, strict=True)
    ]


CHECKS = (
    *copies(RTX4090, 920.207e9, 921.850e9, 921.066e9),
    *copies(A100_40GB, 1336.620e9, 1378.800e9, 1117.290e9),
    *scales(A100, 1026e9, 1577e9, 1732e9),
    *scales(H100_PCIE, 1037e9, 1583e9, 1704e9),
    Check("block_sum_1", H100, 512, 1, 4, 1 << 30, 882.823e9, REDUCTION, streams=1),
    Check("block_sum_12", H100, 512, 12, 4, 1 << 30, 3226.86e9, REDUCTION, streams=1),
    Check("softmax", H100, 256, 32, 4, 1 << 30, 3010e9, QUACK),
)
