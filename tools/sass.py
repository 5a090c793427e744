"""Reads compiled CUDA code: the instructions that cuobjdump prints, and what a cubin says about its kernels."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;?\s*/\* 0x([0-9a-f]{16}) \*/\s*$")
SECOND_HALF = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/\s*$")
FUNCTION = re.compile(r"^\s*Function : (\S+)")
RESOURCES = re.compile(r"^\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)")
RESOURCES_OF = re.compile(r"^\s*Function (\S+):")
REGISTER = re.compile(r"^([-~!]?)(\|?)(UR|UP|R|P|B|SB)(\d+|Z|T|R)\|?((?:\.[A-Za-z0-9_]+)*)$")
NUMBER = re.compile(r"^-?(0x[0-9a-f]+|[0-9.]+(e[-+]?\d+)?|\+?INF|\+?QNAN|\+?SNAN)$", re.IGNORECASE)


@dataclass(frozen=True)
class Operand:
    """kind: R, UR, P, UP, B, SB, number, constant, memory, special or text."""

    kind: str
    index: int = 0
    sign: str = ""  # "-", "~" or "!"
    is_absolute: bool = False
    suffixes: tuple[str, ...] = ()
    text: str = ""
    parts: tuple[Operand, ...] = ()  # of an address: what is added up


@dataclass(frozen=True)
class Instruction:
    address: int
    guard: Operand | None
    opcode: str  # without modifiers
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    text: str
    stall: int = 1  # cycles until the warp's next instruction can issue
    result_board: int = 7  # the scoreboard that is released when the result is there; 7: none
    read_board: int = 7  # the one that is released when the operands are read
    waits: tuple[int, ...] = ()  # scoreboards that must be released before

    @property
    def name(self) -> str:
        return ".".join((self.opcode, *self.modifiers))


@dataclass
class Kernel:
    name: str
    instructions: list[Instruction] = field(default_factory=list)
    registers: int = 0
    stack: int = 0
    shared: int = 0
    parameters: list[tuple[int, int]] = field(default_factory=list)  # offset and size of each
    constants: dict[int, bytes] = field(default_factory=dict)  # by bank


def split_operands(text: str) -> list[str]:
    """At the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()] if text.strip() else []


def parse_address(text: str) -> tuple[Operand, ...]:
    return tuple(parse_operand(part) for part in re.findall(r"-?[^+\-]+", text))


def float_of(text: str) -> float:
    return float(text.replace("QNAN", "nan").replace("SNAN", "nan"))


def parse_operand(text: str) -> Operand:
    text = text.removesuffix(".reuse")
    if match := REGISTER.match(text):
        sign, absolute, kind, index, suffixes = match.groups()
        zero = {"R": 255, "UR": 255, "P": 7, "UP": 7}.get(kind, 0)
        number = zero if index in ("Z", "T") else 254 if index == "R" else int(index)
        names = tuple(name for name in suffixes.split(".")[1:] if name != "reuse")
        return Operand(kind, number, sign, bool(absolute), names, text)
    if match := re.match(r"^([-~!]?)(\|?)c\[(\w+)\]\[(.+?)\]\|?((?:\.[A-Za-z0-9_]+)*)$", text):
        sign, absolute, bank, address, suffixes = match.groups()
        parts = parse_address(address)
        names = tuple(name for name in suffixes.split(".")[1:] if name != "reuse")
        return Operand("constant", int(bank, 16), sign, bool(absolute), names, text, parts)
    if match := re.match(r"^(?:desc\[\w+\](?:\[\w+\])?)?\[(.*)\]$", text):
        return Operand("memory", text=text, parts=parse_address(match.group(1)))
    if NUMBER.match(text):
        return Operand("number", int(text, 16) if "0x" in text else 0, text=text)
    return Operand("special" if text.startswith("SR") else "text", text=text)


def parse_instruction(address: int, text: str, first_half: int = 0, second_half: int = 0) -> Instruction:
    guard = None
    whole = text
    if text.startswith("@"):
        predicate, text = text[1:].split(None, 1)
        guard = parse_operand(predicate)
    name, _, rest = text.partition(" ")
    opcode, *modifiers = name.split(".")
    operands = tuple(parse_operand(part) for part in split_operands(rest))
    control = second_half >> 41  # what the hardware does not find out by itself
    waits = tuple(board for board in range(6) if control >> 11 + board & 1)
    boards = (control >> 5 & 7, control >> 8 & 7) if second_half else (7, 7)
    return Instruction(address, guard, opcode, tuple(modifiers), operands, whole, control & 15 or 1, *boards, waits)


def parse_sass(text: str) -> dict[str, Kernel]:
    """From the output of cuobjdump -sass."""
    kernels: dict[str, Kernel] = {}
    kernel, pending = None, None
    for line in text.splitlines():
        if match := FUNCTION.match(line):
            kernel = kernels[match.group(1)] = Kernel(match.group(1))
        elif match := LINE.match(line):
            pending = int(match.group(1), 16), match.group(2), int(match.group(3), 16)
        elif kernel and pending and (match := SECOND_HALF.match(line)):
            kernel.instructions.append(parse_instruction(*pending, int(match.group(1), 16)))
            pending = None
    return kernels


def add_resources(kernels: dict[str, Kernel], text: str) -> None:
    """From the output of cuobjdump -res-usage."""
    kernel = None
    for line in text.splitlines():
        if match := RESOURCES_OF.match(line):
            kernel = kernels.get(match.group(1))
        elif kernel and (match := RESOURCES.match(line)):
            kernel.registers, kernel.stack, kernel.shared = map(int, match.groups())


def sections(elf: bytes) -> dict[str, bytes]:
    (offset,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, offset + i * size) for i in range(count)]
    table = elf[headers[names][4] :][: headers[names][5]]
    return {
        table[name : table.index(b"\0", name)].decode(): elf[start : start + length]
        for name, kind, _, _, start, length, *_ in headers
        if kind != 8  # without contents
    }


KPARAM_INFO, WORD_VALUE = 0x17, 4


def parameters_of(info: bytes) -> list[tuple[int, int]]:
    """Offsets and sizes of a kernel's parameters, from its section .nv.info."""
    found, at = {}, 0
    while at + 4 <= len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        if form == WORD_VALUE and attribute == KPARAM_INFO:
            _, ordinal, offset, flags = struct.unpack_from("<IHHI", info, at + 4)
            found[ordinal] = offset, flags >> 18
        at += 4 + (size if form == WORD_VALUE else 0)
    return [found[ordinal] for ordinal in sorted(found)]


def add_sections(kernels: dict[str, Kernel], cubin: Path) -> None:
    for name, data in sections(cubin.read_bytes()).items():
        for kernel in kernels.values():
            if name == f".nv.info.{kernel.name}":
                kernel.parameters = parameters_of(data)
            elif match := re.match(rf"^\.nv\.constant(\d+)\.{re.escape(kernel.name)}$", name):
                kernel.constants[int(match.group(1))] = data
