"""The model of GPUs in tools: what it reads from compiled code, computes of it, and says of kernels of known speed."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from gpu_compile import classes_of_lane  # noqa: E402
from gpu_devices import A100, H100  # noqa: E402
from gpu_model import PAGE, RESULTS, table_of  # noqa: E402
from gpu_predict import predict, resident_blocks  # noqa: E402
from gpu_problems import OPS, Launch  # noqa: E402
from multiprocessor import BLOCK_START, Counts, cycles_alone, cycles_together, instruction_cycles, step_of  # noqa: E402
from sass import Kernel, add_resources, parse_instruction, parse_sass  # noqa: E402
from warps import ALL_LANES, LANE, LANES, Block, Memory, Program, Unknown, Warp, bank_conflicts, global_access  # noqa: E402

pytestmark = pytest.mark.cpu_only

# Of an A100: to[i] = from[i] + from[i + 1] for i < n. Parameters: from, to, n.
SASS = """
		Function : add_next
        /*0000*/                   MOV R1, c[0x0][0x28] ;                                 /* 0x00000a0000017a02 */
                                                                                          /* 0x000fe40000000f00 */
        /*0010*/                   S2R R6, SR_CTAID.X ;                                   /* 0x0000000000067919 */
                                                                                          /* 0x000e280000002500 */
        /*0020*/                   S2R R3, SR_TID.X ;                                     /* 0x0000000000037919 */
                                                                                          /* 0x000e240000002100 */
        /*0030*/                   IMAD R6, R6, c[0x0][0x0], R3 ;                         /* 0x0000000006067a24 */
                                                                                          /* 0x001fca00078e0203 */
        /*0040*/                   ISETP.GE.U32.AND P0, PT, R6, c[0x0][0x170], PT ;       /* 0x00005c0006007a0c */
                                                                                          /* 0x000fda0003f06070 */
        /*0050*/               @P0 EXIT ;                                                 /* 0x000000000000094d */
                                                                                          /* 0x000fea0003800000 */
        /*0060*/                   HFMA2.MMA R7, -RZ, RZ, 0, 2.384185791015625e-07 ;      /* 0x00000004ff077435 */
                                                                                          /* 0x000fe200000001ff */
        /*0070*/                   IADD3 R4, R6, 0x1, RZ ;                                /* 0x0000000106047810 */
                                                                                          /* 0x000fe20007ffe0ff */
        /*0080*/                   ULDC.64 UR4, c[0x0][0x118] ;                           /* 0x0000460000047ab9 */
                                                                                          /* 0x000fd00000000a00 */
        /*0090*/                   IMAD.WIDE.U32 R4, R4, R7, c[0x0][0x160] ;              /* 0x0000580004047625 */
                                                                                          /* 0x000fc800078e0007 */
        /*00a0*/                   IMAD.WIDE.U32 R2, R6.reuse, R7.reuse, c[0x0][0x160] ;  /* 0x0000580006027625 */
                                                                                          /* 0x0c0fe400078e0007 */
        /*00b0*/                   LDG.E R4, [R4.64] ;                                    /* 0x0000000404047981 */
                                                                                          /* 0x000ea8000c1e1900 */
        /*00c0*/                   LDG.E R3, [R2.64] ;                                    /* 0x0000000402037981 */
                                                                                          /* 0x000ea2000c1e1900 */
        /*00d0*/                   IMAD.WIDE.U32 R6, R6, R7, c[0x0][0x168] ;              /* 0x00005a0006067625 */
                                                                                          /* 0x000fc800078e0007 */
        /*00e0*/                   FADD R9, R4, R3 ;                                      /* 0x0000000304097221 */
                                                                                          /* 0x004fca0000000000 */
        /*00f0*/                   STG.E [R6.64], R9 ;                                    /* 0x0000000906007986 */
                                                                                          /* 0x000fe2000c101904 */
        /*0100*/                   EXIT ;                                                 /* 0x000000000000794d */
                                                                                          /* 0x000fea0003800000 */
"""
RESOURCES = """
 Function add_next:
  REG:12 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:372 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def kernel_and_memory(n):
    (kernel,) = parse_sass(SASS).values()
    kernel.parameters = [(0, 8), (8, 8), (16, 4)]
    add_resources({"add_next": kernel}, RESOURCES)
    memory = Memory()
    data = np.arange(n + 1, dtype=np.float32)
    addresses = [memory.add(array) for array in (data, np.zeros_like(data))]
    return kernel, memory, (*(struct.pack("<Q", address) for address in addresses), struct.pack("<I", n))


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_instructions_are_read_with_guards_operands_and_what_the_compiler_wrote_for_the_hardware():
    kernel, _, _ = kernel_and_memory(1)
    code = {each.address: each for each in kernel.instructions}
    assert kernel.name == "add_next"
    assert kernel.registers == 12
    assert len(code) == 17
    assert code[0x50].guard.text == "P0"
    compare = code[0x40]
    assert (compare.opcode, compare.modifiers) == ("ISETP", ("GE", "U32", "AND"))
    assert [operand.kind for operand in compare.operands] == ["P", "P", "R", "constant", "P"]
    assert [part.index for part in compare.operands[3].parts] == [0x170]
    assert code[0xB0].result_board == 2  # which FADD waits for
    assert code[0xE0].waits == (2,)
    assert code[0x40].stall == 13


@pytest.mark.parametrize(
    ("text", "kind", "index", "sign", "is_absolute", "suffixes"),
    [
        ("-R12.H1", "R", 12, "-", False, ("H1",)),
        ("|R3|.reuse", "R", 3, "", True, ()),
        ("URZ", "UR", 255, "", False, ()),
        ("!PT", "P", 7, "!", False, ()),
        ("-0x1", "number", -1, "", False, ()),
        ("-c[0x2][0xb0]", "constant", 2, "-", False, ()),
    ],
)
def test_operands(text, kind, index, sign, is_absolute, suffixes):
    (operand,) = parse_instruction(0, f"MOV {text}").operands
    assert (operand.kind, operand.index, operand.sign, operand.is_absolute) == (kind, index, sign, is_absolute)
    assert operand.suffixes == suffixes


# ---- interpreting ----------------------------------------------------------------------------------------------------


def test_blocks_compute_and_note_what_they_access():
    n = 40
    kernel, memory, arguments = kernel_and_memory(n)
    launch = Launch("add_next", (1, 1, 1), 64, 0, arguments)
    program = Program(kernel, 80, launch.grid, launch.threads, launch.parameters(kernel), memory)
    block = program.block(0)
    result = memory.regions[1].data.view(np.float32)
    assert (result[:n] == 2 * np.arange(n) + 1).all()
    assert result[n] == 0
    whole, part = block.warps
    assert len(whole.trace) == 17
    assert part.threads < len(part.trace) * LANES
    loads = [access for access in whole.accesses.values() if not access.is_store]
    assert [(access.num_bytes, len(access.sectors)) for access in loads] == [(128, 5), (128, 4)]  # from[i + 1] first


def warp_with(registers, threads=LANES):
    memory = Memory()
    program = Program(Kernel("none"), 80, (1, 1, 1), threads, b"", memory)
    warp = Warp(Block(program, (0, 0, 0), threads), 0)
    for number, values in registers.items():
        warp.r[number] = np.asarray(values).astype(np.float32).view(np.uint32) if number >= 100 else values
    warp.p[1] = LANE % 2 == 0
    return program, warp


def executed(text, **registers):
    program, warp = warp_with({int(name[1:]): value for name, value in registers.items()})
    _, run, _ = program.decode(parse_instruction(0, text))
    with np.errstate(all="ignore"):
        run(warp, ALL_LANES)
    return warp


A, B = (LANE * 0x01234567 + 5).astype(np.uint32), (LANE * 0x89ABCDEF + 3).astype(np.uint32)
X, Y = np.linspace(-3, 5, LANES, dtype=np.float32), np.linspace(7, -2, LANES, dtype=np.float32)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IADD3 R0, R1, -R2, 0x7", A - B + np.uint32(7)),
        ("IMAD R0, R1, R2, R1", A * B + A),
        ("IMAD.HI.U32 R0, R1, R2, RZ", (A.astype(np.uint64) * B >> 32).astype(np.uint32)),
        ("LEA R0, R1, R2, 0x3", (A << 3) + B),
        ("LEA.HI R0, R1, R2, RZ, 0x3", (A >> 29) + B),
        ("SHF.R.U32.HI R0, RZ, 0x8, R1", A >> 8),
        ("SHF.L.W.U32.HI R0, R1, 0x8, R1", A << 8 | A >> 24),
        ("SHF.R.S32.HI R0, RZ, 0x1f, R1", (A.view(np.int32) >> 31).view(np.uint32)),
        ("LOP3.LUT R0, R1, R2, RZ, 0x3c, !PT", A ^ B),
        ("LOP3.LUT R0, R1, R2, R1, 0xe8, !PT", A & B | (A | B) & A),
        ("PRMT R0, R1, 0x3210, R2", A),
        ("PRMT R0, R1, 0x5410, R2", A & 0xFFFF | B << 16),
        ("PRMT R0, R1, 0x7770, RZ", A & 0xFF),
        ("SEL R0, R1, R2, P1", np.where(LANE % 2 == 0, A, B)),
        ("IMNMX R0, R1, R2, !PT", np.maximum(A.view(np.int32), B.view(np.int32)).view(np.uint32)),
        ("VIADDMNMX R0, R1, 0x7, R2, !PT", np.maximum(A.view(np.int32) + 7, B.view(np.int32)).view(np.uint32)),
        ("POPC R0, R1", np.array([int(a).bit_count() for a in A])),
        ("FLO.U32 R0, R1", np.array([int(a).bit_length() - 1 for a in A])),
        ("SHFL.BFLY PT, R0, R1, 0x4, 0x1f", A[LANE ^ 4]),
        ("SHFL.DOWN PT, R0, R1, 0x1, 0x1f", A[np.minimum(LANE + 1, 31)]),
        ("VOTE.ANY R0, PT, P1", np.full(LANES, 0x55555555)),
        ("S2R R0, SR_LTMASK", (1 << LANE) - 1),
        ("F2I.TRUNC.NTZ R0, R100", np.trunc(X).astype(np.int32).view(np.uint32)),
    ],
)
def test_integers(text, expected):
    warp = executed(text, r1=A, r2=B, r100=X)
    assert (warp.r[0] == expected.astype(np.uint32)).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FADD R0, -R100, |R101|", -X + np.abs(Y)),
        ("FFMA R0, R100, R101, 1.5", (X.astype(np.float64) * Y + 1.5).astype(np.float32)),
        ("FADD.SAT R0, R100, RZ", np.clip(X, 0, 1)),
        ("FMNMX R0, R100, R101, PT", np.minimum(X, Y)),
        ("FSEL R0, R100, R101, P1", np.where(LANE % 2 == 0, X, Y)),
        ("MUFU.EX2 R0, R100", np.exp2(X)),
        ("I2F.S8 R0, R1.B1", (A >> 8).astype(np.uint8).view(np.int8)),
        ("F2F.F64.F32 R0, R100", None),
        ("F2FP.BF16.PACK_AB R0, RZ, R100", None),
    ],
)
def test_floats(text, expected):
    warp = executed(text, r1=A, r100=X, r101=Y)
    if text.startswith("F2F.F64"):
        assert (np.ascontiguousarray(warp.r[:2].T).view(np.float64)[:, 0] == X).all()
    elif text.startswith("F2FP"):
        assert np.allclose((warp.r[0] << np.uint32(16)).view(np.float32), X, rtol=2**-8)
    else:
        assert np.allclose(warp.r[0].view(np.float32), expected, rtol=1e-6, atol=0)


def test_predicates():
    less = executed("FSETP.GTU.AND P0, P2, R100, R101, P1", r100=X, r101=Y)
    assert (less.p[0] == ((X > Y) & less.p[1])).all()
    assert (less.p[2] == (~(X > Y) & less.p[1])).all()
    wide = executed("ISETP.LT.U32.AND.EX P0, PT, R1, R1, PT, P1", r1=A)  # high halves are equal: P1 decides
    assert (wide.p[0] == wide.p[1]).all()
    assert executed("PLOP3.LUT P0, PT, PT, P1, PT, 0x80, 0x0").p[0].tolist() == (LANE % 2 == 0).tolist()


def test_an_unknown_instruction_is_an_error():
    with pytest.raises(Unknown, match=r"TEX\.LL R0"):
        executed("TEX.LL R0, R2, R4")


# ---- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stride", "width", "passes"), [(4, 4, 1), (8, 4, 2), (128, 4, 32), (0, 4, 1), (16, 16, 4), (132, 4, 1)]
)
def test_bank_conflicts(stride, width, passes):
    assert bank_conflicts(LANE * stride, width) == passes


@pytest.mark.parametrize(
    ("stride", "width", "sectors", "passes"), [(4, 4, 4, 1), (16, 16, 16, 4), (2, 2, 2, 1), (48, 4, 32, 8)]
)
def test_sectors(stride, width, sectors, passes):
    access = global_access(4096 + LANE * stride, width, is_store=False)
    assert (len(access.sectors), access.passes) == (sectors, passes)


def test_the_slowest_kind_of_instructions_decides():
    counts = Counts()
    counts.pipes.update(alu=100, fma=100, xu=100, fp64=10)
    cycles = instruction_cycles(counts, A100)
    assert cycles["issue"] == pytest.approx(310 / 4 / 0.6)
    assert cycles["alu"] == pytest.approx(100 * 32 / 64 / 0.9)
    assert cycles["xu"] == pytest.approx(100 * 32 / 16 / 0.9)
    assert cycles["fp64"] == pytest.approx(10 * 32 / 32 / 0.9)


@pytest.mark.parametrize(
    ("registers", "static", "dynamic", "resident"),
    [(32, 0, 0, 16), (96, 0, 0, 5), (32, 1024, 24 << 10, 9), (255, 0, 0, 2)],
)
def test_blocks_on_a_multiprocessor(registers, static, dynamic, resident):
    kernel = Kernel("none", registers=registers, shared=static)
    assert resident_blocks(kernel, Launch("none", (1, 1, 1), 128, dynamic, ()), H100) == resident


@pytest.mark.parametrize(("most", "expected"), [(8, [2, 8, 5, 5, 7, 16]), (16, [2, 8, 10, 10, 14, 16])])
def test_classes_of_a_lane(most, expected):
    assert [classes_of_lane(num_classes, most) for num_classes in (2, 8, 9, 19, 105, 256)] == expected


# ---- time ------------------------------------------------------------------------------------------------------------


def copying_steps(tiles):
    """Of a warp that loads 512 bytes, waits, and stores them, in turn."""
    load = step_of(parse_instruction(0, "LDG.E.128 R4, [R2.64]"), False, H100)
    use = step_of(parse_instruction(16, "STG.E.128 [R6.64], R4"), False, H100)
    load = load._replace(latency=H100.latency, num_bytes=512, result_board=0, busy=16)
    return [load, use._replace(waits=(0,), num_bytes=512, is_store=True, busy=16)] * tiles


def test_a_block_alone_waits_for_each_load():
    cycles = cycles_alone([[copying_steps(1)]])
    assert BLOCK_START + H100.latency < cycles < BLOCK_START + H100.latency + 50
    assert cycles_alone([[copying_steps(3)]]) - cycles == pytest.approx(2 * H100.latency, rel=0.1)


def test_many_warps_reach_the_copy_rate_and_few_do_not():
    blocks = [[copying_steps(8)] * 4]

    def share(resident, total):
        return 4 * 8 * 1024 * total / H100.bytes_a_cycle / cycles_together(blocks, H100, resident, total)

    assert share(16, 160) == pytest.approx(1, abs=0.05)
    assert share(2, 20) < 0.6
    assert share(1, 10) == pytest.approx(share(2, 20) / 2, rel=0.2)


def test_a_launch_takes_at_least_its_largest_bound():
    kernel, memory, arguments = kernel_and_memory(1 << 20)
    prediction = predict(kernel, Launch("add_next", (4096, 1, 1), 256, 0, arguments), memory, A100)
    assert prediction.counts.loaded == pytest.approx(1024, rel=0.05)
    assert prediction.counts.stored == 1024
    assert prediction.bounds["bytes"] == pytest.approx(8 * 2**20 / A100.copy_rate, rel=0.05)
    assert prediction.time >= prediction.bound == prediction.bounds["bytes"]


# ---- results ---------------------------------------------------------------------------------------------------------


def test_the_page_has_the_table_of_the_results():
    results = json.loads(RESULTS.read_text())
    of_each_device = 4 * sum(len(op.shapes) for op in OPS.values())  # two dtypes, two layouts
    assert sum(row["device"] == "H100" for row in results["rows"]) == of_each_device
    assert table_of(results) in PAGE.read_text(encoding="utf-8")


# ---- the tool --------------------------------------------------------------------------------------------------------


def test_the_tool_agrees_with_published_speeds(tmp_path):
    packages = [str(path) for path in ROOT.glob("build/venv-gpu/lib/python*/site-packages/nvidia/cu13/bin")]
    path = os.pathsep.join([*packages, os.environ["PATH"]])
    if not all(shutil.which(tool, path=path) for tool in ("nvcc", "ptxas", "cuobjdump", "c++filt")):
        pytest.skip("nvcc or cuobjdump is not there")
    command = [sys.executable, ROOT / "tools" / "gpu_model.py", "--only=checks", "--arch=sm_90", f"--build={tmp_path}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PATH": path}).stdout
    assert "A model of compiled code: nothing here was measured." in output
    rows = re.findall(r"^(\w+) .* blocks  H100\S*(?: PCIe)? +(\d+) +(\d+)", output, re.MULTILINE)
    assert {name for name, *_ in rows} == {"scale", "block_sum_1", "block_sum_12", "softmax"}
    for name, published, predicted in rows:
        assert float(predicted) == pytest.approx(float(published), rel=0.15), name
