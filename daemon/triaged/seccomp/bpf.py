# SPDX-License-Identifier: Apache-2.0
"""Classic BPF as seccomp allows it: decoded, checked and evaluated as the kernel does.

Hard facts (kernel/seccomp.c seccomp_check_filter, net/core/filter.c bpf_check_classic and bpf_convert_filter):
- 1 to 4096 instructions of 8 bytes; jumps go forward only; the last one must be a RET; MOD is not allowed.
- Loads are 32 bits wide, aligned, from the 64 bytes of `struct seccomp_data`; LEN gives 64.
- Division by an X of 0 ends the filter with 0, which is KILL_THREAD. A shift by X uses its low 5 bits.
- A scratch word must have been stored on every path that loads it.
- uretprobe (335, since 6.14) and uprobe (336, since 6.18) of x86_64 are never filtered: the kernel itself puts them into programs.
- All filters of a task run, newest first; the strictest action wins, of equal ones the newest filter's data.
"""
from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from triaged.errors import Malformed
from triaged.seccomp.action import Action, ActionKind, strictness
from triaged.seccomp.syscalls import AUDIT_ARCH_X86_64, audit_arch_of

MAX_INSTRUCTIONS = 4096
MAX_INSTRUCTIONS_PER_TASK = 32768
SECCOMP_DATA_BYTES = 64
SCRATCH_WORDS = 16

LD_ABS, LD_IMM, LD_MEM, LD_LEN = 0x20, 0x00, 0x60, 0x80
LDX_IMM, LDX_MEM, LDX_LEN = 0x01, 0x61, 0x81
ST, STX, TAX, TXA = 0x02, 0x03, 0x07, 0x87
RET_K, RET_A = 0x06, 0x16
JA, JEQ_K, JGT_K, JGE_K, JSET_K = 0x05, 0x15, 0x25, 0x35, 0x45
JEQ_X, JGT_X, JGE_X, JSET_X = 0x1D, 0x2D, 0x3D, 0x4D
NEG = 0x84
BPF_X = 0x08
_ALU_BASES = {"+": 0x04, "-": 0x14, "*": 0x24, "/": 0x34, "|": 0x44, "&": 0x54, "<<": 0x64, ">>": 0x74, "^": 0xA4}
ALU = {base | source: (operator, source == BPF_X) for operator, base in _ALU_BASES.items() for source in (0, BPF_X)}
ALU_CODE = {(operator, with_x): code for code, (operator, with_x) in ALU.items()}
CONDITIONALS = {JEQ_K: "==", JGT_K: ">", JGE_K: ">=", JSET_K: "&", JEQ_X: "==", JGT_X: ">", JGE_X: ">=", JSET_X: "&"}
_ALLOWED = {
    LD_ABS, LD_IMM, LD_MEM, LD_LEN, LDX_IMM, LDX_MEM, LDX_LEN, ST, STX, TAX, TXA, RET_K, RET_A, JA, NEG, *ALU, *CONDITIONALS,
}
_NEVER_FILTERED = frozenset({(AUDIT_ARCH_X86_64, 335), (AUDIT_ARCH_X86_64, 336)})
_BIG_ENDIAN = frozenset({audit_arch_of("s390x")})
_INSTRUCTION = struct.Struct("=HBBI")


@dataclass(frozen=True)
class Instruction:
    """One instruction: `struct sock_filter`. `jt` and `jf` count from the next instruction."""

    code: int
    jt: int
    jf: int
    k: int


@dataclass(frozen=True)
class SeccompData:
    """What a filter sees: `struct seccomp_data`. `number` as the task has it in its register (x32 with bit 30)."""

    number: int
    arch: int
    arguments: tuple[int, ...] = (0, 0, 0, 0, 0, 0)
    instruction_pointer: int = 0

    def words(self) -> tuple[int, ...]:
        """The sixteen 32-bit words in the architecture's byte order."""
        out = [self.number & 0xFFFFFFFF, self.arch & 0xFFFFFFFF]
        for value in (self.instruction_pointer, *self.arguments, *(0,) * (6 - len(self.arguments))):
            low, high = value & 0xFFFFFFFF, (value >> 32) & 0xFFFFFFFF
            out += (high, low) if is_big_endian(self.arch) else (low, high)
        return tuple(out)


def is_never_filtered(arch: int, number: int) -> bool:
    """Whether kernels that have the call let it pass whatever the filters say (kernel/seccomp.c, seccomp_uprobe_exception)."""
    return (arch, number) in _NEVER_FILTERED


def is_big_endian(arch: int) -> bool:
    """Whether the audit architecture stores the high word of an argument first."""
    return arch in _BIG_ENDIAN


class Program:
    """A filter that the kernel would accept. Raises Malformed, with the kernel's reason, for one that it would refuse."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        self.instructions = tuple(instructions)
        _check(self.instructions)
        # Jump targets made absolute: the evaluator's inner loop is what `check` and `dump` spend their time in.
        self._decoded = tuple(
            (i.code, at + 1 + (i.k if i.code == JA else i.jt), at + 1 + i.jf, i.k) for at, i in enumerate(self.instructions)
        )

    def __len__(self) -> int:
        return len(self.instructions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.instructions == other.instructions

    def __hash__(self) -> int:
        return hash(self.instructions)

    def packed(self) -> bytes:
        """The instructions as the kernel takes them, in this machine's byte order."""
        return b"".join(_INSTRUCTION.pack(i.code, i.jt, i.jf, i.k) for i in self.instructions)

    def run(self, data: SeccompData) -> int:
        """The filter's return value for one call: action and data (see `Action.of`)."""
        return self.run_words(data.words())

    def run_words(self, words: tuple[int, ...]) -> int:
        """As `run`, for data that is already in words."""
        decoded = self._decoded
        a = x = pc = 0
        scratch = [0] * SCRATCH_WORDS
        while True:
            code, yes, no, k = decoded[pc]
            if code == JEQ_K:
                pc = yes if a == k else no
                continue
            if code == JGE_K:
                pc = yes if a >= k else no
                continue
            if code == LD_ABS:
                a = words[k >> 2]
            elif code == RET_K:
                return k
            elif code == JA:
                pc = yes
                continue
            elif code in CONDITIONALS:
                operand = x if code & BPF_X else k
                pc = yes if holds(code, a, operand) else no
                continue
            elif code in ALU:
                operand = x if code & BPF_X else k
                if code & 0xF0 == 0x30 and operand == 0:
                    return 0
                a = computed(code, a, operand)
            elif code == RET_A:
                return a
            elif code == LD_MEM:
                a = scratch[k]
            elif code == LDX_MEM:
                x = scratch[k]
            elif code == ST:
                scratch[k] = a
            elif code == STX:
                scratch[k] = x
            elif code == TAX:
                x = a
            elif code == TXA:
                a = x
            elif code == LD_IMM:
                a = k
            elif code == LDX_IMM:
                x = k
            elif code == NEG:
                a = -a & 0xFFFFFFFF
            elif code == LD_LEN:
                a = SECCOMP_DATA_BYTES
            else:  # LDX_LEN: _check lets no other through
                x = SECCOMP_DATA_BYTES
            pc += 1


def holds(code: int, a: int, operand: int) -> bool:
    """Whether a conditional jump is taken."""
    comparison = CONDITIONALS[code]
    if comparison == "&":
        return a & operand != 0
    if comparison == ">":
        return a > operand
    return a >= operand if comparison == ">=" else a == operand


def computed(code: int, a: int, operand: int) -> int:
    """The result of one ALU instruction with 32-bit operands; a divisor of 0 is the caller's matter."""
    operator = ALU[code][0]
    if operator == "&":
        return a & operand
    if operator == "|":
        return a | operand
    if operator == "^":
        return a ^ operand
    if operator == "+":
        return (a + operand) & 0xFFFFFFFF
    if operator == "-":
        return (a - operand) & 0xFFFFFFFF
    if operator == "*":
        return (a * operand) & 0xFFFFFFFF
    if operator == "/":
        return a // operand
    if operator == "<<":
        return (a << (operand & 31)) & 0xFFFFFFFF
    return a >> (operand & 31)


def parse_program(raw: bytes) -> Program:
    """The filter in the kernel's binary form (this machine's byte order), as PTRACE_SECCOMP_GET_FILTER and files hold it.

    Raises: Malformed.
    """
    if len(raw) % _INSTRUCTION.size:
        raise Malformed("filter", f"{len(raw)} bytes", "not a whole number of 8-byte instructions")
    if len(raw) > MAX_INSTRUCTIONS * _INSTRUCTION.size:
        raise Malformed("filter", f"{len(raw)} bytes", f"more than {MAX_INSTRUCTIONS} instructions")
    return Program([Instruction(*fields) for fields in _INSTRUCTION.iter_unpack(raw)])


def run_stacked(programs: Sequence[Program], data: SeccompData) -> Action:
    """The kernel's answer for a task with these filters, newest first; ALLOW where there is none."""
    words = data.words()
    strictest: int = ActionKind.ALLOW
    for program in programs:
        value = program.run_words(words)
        if strictness(value) < strictness(strictest):
            strictest = value
    return Action.of(strictest)


def _check(instructions: Sequence[Instruction]) -> None:
    count = len(instructions)
    if not 1 <= count <= MAX_INSTRUCTIONS:
        raise Malformed("filter", f"{count} instructions", f"a filter has 1 to {MAX_INSTRUCTIONS}")
    for at, instruction in enumerate(instructions):
        reason = _refusal(instruction, count - at - 1)
        if reason:
            raise Malformed(f"instruction {at}", str(instruction), reason)
    if instructions[-1].code not in (RET_K, RET_A):
        raise Malformed(f"instruction {count - 1}", str(instructions[-1]), "the last instruction is no RET")
    _check_scratch(instructions)


def _refusal(i: Instruction, behind: int) -> str:
    """Why the kernel refuses the instruction, or ''. `behind` counts the instructions after it."""
    if not (0 <= i.code <= 0xFFFF and 0 <= i.jt <= 0xFF and 0 <= i.jf <= 0xFF and 0 <= i.k <= 0xFFFFFFFF):
        return "a field is out of range"
    if i.code not in _ALLOWED:
        return f"code {i.code:#04x} is not allowed in seccomp"
    if i.code == LD_ABS and (i.k >= SECCOMP_DATA_BYTES or i.k % 4):
        return "loads outside struct seccomp_data, or unaligned"
    if i.code in (LD_MEM, LDX_MEM, ST, STX) and i.k >= SCRATCH_WORDS:
        return "there are 16 scratch words"
    if i.code == ALU_CODE["/", False] and i.k == 0:
        return "division by 0"
    if i.code in (ALU_CODE["<<", False], ALU_CODE[">>", False]) and i.k >= 32:
        return "shift by 32 or more"
    if i.code == JA and i.k >= behind:
        return "jumps beyond the end"
    if i.code in CONDITIONALS and max(i.jt, i.jf) >= behind:
        return "jumps beyond the end"
    return ""


def _check_scratch(instructions: Sequence[Instruction]) -> None:
    # As net/core/filter.c check_load_and_stores: the words that are stored on every path to an instruction, as bits.
    everything = (1 << SCRATCH_WORDS) - 1
    stored = [everything] * len(instructions)
    valid = 0
    for at, i in enumerate(instructions):
        valid &= stored[at]
        if i.code in (ST, STX):
            valid |= 1 << i.k
        elif i.code in (LD_MEM, LDX_MEM) and not valid >> i.k & 1:
            raise Malformed(f"instruction {at}", str(i), f"loads scratch word {i.k}, which is not stored on every path")
        elif i.code == JA:
            stored[at + 1 + i.k] &= valid
            valid = everything
        elif i.code in CONDITIONALS:
            stored[at + 1 + i.jt] &= valid
            stored[at + 1 + i.jf] &= valid
            valid = everything
