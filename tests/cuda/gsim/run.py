"""Runs the CUDA kernels in GPGPU-Sim, which executes their PTX on the CPU, and compares with plain C++ (simulate.cpp).

GSIM is the folder that build_simulator.sh made. Prints a line per launch and case: whether its results are right, and
what its kernels executed. No kernel is named here: those that a case launches are found by a first run without device.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
KERNELS = ROOT / "csrc" / "kernels"
BUILD = ROOT / "build" / "gpu-sim"

# Logits, labels, layout, classes, voxels of each of two samples, variant. Rows of logits begin at multiples of 16 bytes
# where the number of voxels is a multiple of 8. The variant "plain" has no ignored voxels: its counts are those of a
# kernel's usual path, and with --voxels 4096 those of whole blocks.
CASES = [
    ("float32", "uint8", "planar", 3, 2056, "plain"),
    ("float32", "int64", "channels_last", 3, 2056, "ignored"),
    ("bfloat16", "int64", "planar", 3, 2056, "plain"),
    ("bfloat16", "uint8", "channels_last", 3, 2056, "ignored"),
    ("float32", "int64", "planar", 4, 2056, "ignored"),
    ("float32", "uint8", "channels_last", 4, 2056, "plain"),
    ("bfloat16", "uint8", "planar", 4, 2056, "ignored"),
    ("bfloat16", "int64", "channels_last", 4, 2056, "plain"),
    ("float32", "uint8", "planar", 19, 1032, "ignored"),
    ("float32", "int64", "channels_last", 19, 1032, "plain"),
    ("bfloat16", "int64", "planar", 19, 1032, "ignored"),
    ("bfloat16", "uint8", "channels_last", 19, 1032, "plain"),
    ("float32", "int64", "planar", 105, 1032, "plain"),
    ("float32", "uint8", "channels_last", 105, 1032, "ignored"),
    ("bfloat16", "uint8", "planar", 105, 1032, "plain"),
    ("bfloat16", "int64", "channels_last", 105, 1032, "ignored"),
    ("float32", "uint8", "planar", 4, 1061, "ignored"),
    ("bfloat16", "int64", "channels_last", 19, 1061, "ignored"),
    ("float32", "uint8", "planar", 4, 1032, "weighted"),
    ("bfloat16", "int64", "planar", 19, 1032, "weighted"),
    ("float32", "int64", "planar", 4, 1032, "focal"),
    ("float32", "uint8", "channels_last", 19, 1032, "focal"),
]
SAMPLES = 2
MAX_SHARED_BYTES = 64 << 10  # of a block of sm_75
BYTES = {"float32": 4, "bfloat16": 2}


# ---- programs -------------------------------------------------------------------------------------------------------


def newer_than(target: Path, sources: list[Path]) -> bool:
    return target.exists() and all(target.stat().st_mtime > source.stat().st_mtime for source in sources)


def toolkit() -> Path:
    """nvcc's folder, with CUDA's headers in it."""
    dryrun = ["nvcc", "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "/dev/null"]
    output = subprocess.run(dryrun, capture_output=True, text=True, check=True).stderr
    return Path(re.findall(r"^#\$ TOP=(.*)$", output, re.MULTILINE)[0])


def compile_kernels(source: Path) -> tuple[Path, Path]:
    """The object file of a source, and its PTX."""
    folder = BUILD / source.stem
    outputs = folder / f"{source.stem}.o", folder / f"{source.stem}.ptx"
    headers = [path for path in KERNELS.rglob("*") if path.suffix in (".h", ".cuh")]
    if not all(newer_than(output, [source, *headers]) for output in outputs):
        folder.mkdir(parents=True, exist_ok=True)
        # sm_75: the newest one that needs no instruction that the simulator lacks
        options = ["-std=c++17", "-gencode=arch=compute_75,code=compute_75", "-Xcompiler=-fPIC"]
        keep = ["--keep", f"--keep-dir={folder}", f"-I{KERNELS / 'cuda'}"]
        subprocess.run(["nvcc", *options, *keep, "-c", source, "-o", outputs[0]], check=True)
    return outputs


def compile_host(source: Path) -> Path:
    target = BUILD / f"{source.stem}.o"
    includes = [f"-I{toolkit() / 'include'}", f"-I{KERNELS / 'cuda'}"]
    subprocess.run(["c++", "-std=c++17", "-O2", "-Wall", "-Wextra", *includes, "-c", source, "-o", target], check=True)
    return target


class Programs:
    """A driver linked to the simulator, and to launches.cpp."""

    def __init__(self, name: str, kernels: list[tuple[Path, Path]], others: list[Path], library: Path):
        self.simulated, self.launching = BUILD / f"{name}-simulated", BUILD / f"{name}-launches"
        self.ptx = [ptx.read_text() for _, ptx in kernels]
        objects, launches = [*others, *(path for path, _ in kernels)], compile_host(HERE / "launches.cpp")
        subprocess.run(["c++", *objects, f"-L{library}", "-l:libcudart.so", "-o", self.simulated], check=True)
        subprocess.run(["c++", *objects, launches, "-o", self.launching], check=True)

    def launched(self, arguments: list[str]) -> dict[int, set[str]]:
        """The kernels that a case launches, by the number of their object file, from 1 in the linker's order."""
        output = subprocess.run([self.launching, *arguments], capture_output=True, text=True).stdout
        kernels: dict[int, set[str]] = {}
        for object_file, name in re.findall(r"^KERNEL (\d+) (\S+)$", output, re.MULTILINE):
            kernels.setdefault(int(object_file), set()).add(name)
        return kernels


# ---- PTX for the simulator ------------------------------------------------------------------------------------------


def split(ptx: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """What is declared, and the text of each kernel and of each function."""
    blocks = re.compile(r"^(?:\.visible |\.weak )?\.(entry|func)\b[^{;]*?^\{$.*?^\}$\n?", re.MULTILINE | re.DOTALL)
    kernels: dict[str, str] = {}
    functions: dict[str, str] = {}
    for block in blocks.finditer(ptx):
        name = re.findall(r"\.(?:entry|func)\s+(?:\([^)]*\)\s*)?([\w$]+)", block[0])[0]
        (kernels if block[1] == "entry" else functions)[name] = block[0]
    return blocks.sub("", ptx), kernels, functions


def literal_of_64_bits(match: re.Match[str]) -> str:
    number = int(match[0])
    return match[0] if -(2**31) <= number < 2**31 else f"0d{number % 2**64:016X}"


def rewrite(ptx: str, index: int) -> str:
    """What the simulator does not parse or misreads, in words that it knows; in file number `index`."""
    ptx = re.sub(r"^\.version .*$", ".version 7.8", ptx, flags=re.MULTILINE)
    # bfloat16 to float32: a number in a vector of registers
    ptx = re.sub(
        r"\{\s*mov\.b32 (%f\d+), \{0,(%rs\d+)\};\s*\}",
        r"{ .reg .b32 %wide; cvt.u32.u16 %wide, \2;\n\tshl.b32 %wide, %wide, 16;\n\tmov.b32 \1, %wide; }",
        ptx,
    )
    # dynamic shared memory: the simulator would put it where other files have theirs
    for name in re.findall(r"^\.extern \.shared .*?(\w+)\[\];$", ptx, re.MULTILINE):
        ptx = re.sub(rf"\b{name}\b", f"{name}_{index}", ptx)
    ptx = re.sub(r"^\.extern (\.shared .*)\[\];$", rf"\1[{MAX_SHARED_BYTES}];", ptx, flags=re.MULTILINE)
    # integers of more than 32 bits: as the bits of a double
    ptx = re.sub(r"(?<=, )-?\d{10,}(?=[,;])", literal_of_64_bits, ptx)
    # an unused predicate
    ptx = re.sub(r"(shfl\.sync\.\S+\s+%r\d+)\|%p\d+", r"\1", ptx)
    # lanes of a warp run in step
    return re.sub(r"^\s*bar\.warp\.sync.*$", "", ptx, flags=re.MULTILINE)


def reduced(ptx: str, names: set[str], index: int) -> str:
    """The PTX of some kernels and what they call, for the simulator."""
    declarations, kernels, functions = split(ptx)
    texts = [kernels[name] for name in sorted(names)]
    wanted: dict[str, str] = {}
    while new := {n: text for n, text in functions.items() if n not in wanted and any(n in t for t in texts)}:
        wanted |= new
        texts += new.values()
    kept = [text for name, text in functions.items() if name in wanted]
    return rewrite("\n".join([declarations, *kept, *(kernels[name] for name in sorted(names))]), index)


# ---- a case ---------------------------------------------------------------------------------------------------------


class Counts:
    """What a kernel executed."""

    def __init__(self) -> None:
        self.warps: Counter[str] = Counter()  # by instruction
        self.lanes: Counter[str] = Counter()
        self.sectors: Counter[str] = Counter()  # of 32 bytes in global memory

    def add(self, instruction: str, warps: str, lanes: str, sectors: str) -> None:
        self.warps[instruction] += int(warps)
        self.lanes[instruction] += int(lanes)
        self.sectors[instruction] += int(sectors)

    def moved(self, instruction: str) -> int:
        """The bytes that loads, or stores, touch in global memory."""
        return 32 * sum(n for name, n in self.sectors.items() if name.startswith(instruction))


class Launch:
    """A call of a launcher: what its kernels executed, and the driver's lines about its results."""

    def __init__(self, name: str):
        self.name = name
        self.kernels: dict[str, Counts] = {}
        self.results: list[str] = []

    def wrong(self) -> list[str]:
        return [result for result in self.results if not result.endswith("right")]


def parse(output: str) -> list[Launch]:
    launches: list[Launch] = []
    for line in output.splitlines():
        if line.startswith("LAUNCH "):
            launches.append(Launch(line[7:]))
        elif match := re.match(r"GSIM (\S+) (\S+) warps (\d+) lanes (\d+) sectors (\d+)$", line):
            launches[-1].kernels.setdefault(match[1], Counts()).add(*match.groups()[1:])
        elif line.startswith("RESULT "):
            launches[-1].results.append(line[7:])
    return launches


def simulate(programs: Programs, arguments: list[str], library: Path, configuration: Path) -> list[Launch]:
    folder = BUILD / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(configuration, folder)
    kernels, files = programs.launched(arguments), []
    for i in range(max(kernels, default=0)):
        names = kernels.get(i + 1, set())
        text = next((t for t in programs.ptx if names and all(f".entry {name}(" in t for name in names)), None)
        files.append("" if text is None else str(folder / f"{i}.ptx"))
        if text is not None:
            Path(files[-1]).write_text(reduced(text, names, i))
    environment = {"LD_LIBRARY_PATH": str(library), "GSIM_PTX": ":".join(files), "PTX_SIM_MODE_FUNC": "1"}
    command = ["stdbuf", "-oL", str(programs.simulated), *arguments]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    (folder / "output").write_text(done.stdout + done.stderr)
    launches = parse(done.stdout)
    if done.returncode not in (0, 1) or not launches or not all(launch.results for launch in launches):
        sys.exit(f"The simulator failed, exit status {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
    return launches


def short(kernel: str) -> str:
    """A kernel's name without its namespace."""
    name = subprocess.run(["c++filt", "-p", kernel], capture_output=True, text=True, check=True).stdout
    return name.strip().replace("(anonymous namespace)::", "")


def report(launches: list[Launch], num_logits: int, logit_bytes: int, shows_instructions: bool) -> None:
    for launch in launches:
        print(f"  {launch.name}: {'WRONG' if launch.wrong() else 'right'}")
        for result in launch.wrong():
            print(f"    {result}")
        for kernel, counts in launch.kernels.items():
            executed, issued = counts.lanes.total() / num_logits, 32 * counts.warps.total() / num_logits
            loaded, stored = (counts.moved(f"{kind}.global") / num_logits / logit_bytes for kind in ("ld", "st"))
            print(f"    {executed:8.2f} {issued:8.2f} {loaded:8.3f} {stored:8.3f}  {short(kernel)}")
            for instruction, lanes in counts.lanes.most_common() if shows_instructions else []:
                print(f"    {lanes / num_logits:8.2f}   {instruction}")
    sys.stdout.flush()


HEADING = """Of each kernel: executed thread instructions per logit, issued ones (32 a warp) per logit,
loaded and stored sectors of global memory, as bytes per byte of logits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose line contains this, such as 'float32 uint8 planar 4'")
    parser.add_argument("--voxels", type=int, help="of each of two samples, instead of the case's own number")
    parser.add_argument("--instructions", action="store_true", help="also print how often each instruction is executed")
    options = parser.parse_args()
    if not os.environ.get("GSIM"):
        print("gpu-sim: skipped, as GSIM is not set: tests/cuda/gsim/build_simulator.sh says how to get the simulator")
        return
    simulator = Path(os.environ["GSIM"]) / "src"
    library = next(simulator.glob("lib/*/*/release/libcudart.so")).parent
    folders = library, simulator / "configs" / "tested-cfgs" / "SM75_RTX2060"
    BUILD.mkdir(parents=True, exist_ok=True)
    test = simulate(Programs("instructions", [compile_kernels(HERE / "instructions.cu")], [], library), [], *folders)
    if test[0].wrong():
        sys.exit("\n".join(["The simulator lacks gpgpu-sim.patch:", *test[0].wrong()]))
    kernels = [compile_kernels(source) for source in sorted((KERNELS / "cuda").glob("*.cu"))]
    programs = Programs("simulate", kernels, [compile_host(HERE / "simulate.cpp")], library)
    print(HEADING)
    num_wrong = 0
    for case in CASES:
        logits, labels, layout, num_classes, size, variant = case
        if options.only in " ".join(map(str, case)):
            size = options.voxels or size
            print(logits, labels, layout, num_classes, size, variant, flush=True)
            arguments = [logits, labels, layout, str(num_classes), str(size), variant]
            launches = simulate(programs, arguments, *folders)
            report(launches, SAMPLES * size * num_classes, BYTES[logits], options.instructions)
            num_wrong += sum(len(launch.wrong()) for launch in launches)
    print(f"{num_wrong} wrong results")
    sys.exit(num_wrong > 0)


if __name__ == "__main__":
    main()
