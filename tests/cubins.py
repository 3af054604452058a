"""What a compiled kernel uses, and which instructions it is made of, without a GPU."""

from __future__ import annotations

import bisect
import re
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTIONS = {"wide_loads": r"\bLDG(?:STS)?\.\S*128", "tensor_core": r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b"}
"""What is counted: loads of 128 bits, and products on tensor cores."""


def usage(cubin: bytes) -> dict[str, int]:
    """Registers of a thread and bytes of its stack (spills), as cuobjdump reads them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", path]
        used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", used).groups()
    return {"registers": int(registers), "stack": int(stack)}


def code(cubin: bytes) -> bytes:
    """The instructions of a cubin that holds one kernel: its section ``.text.KERNEL``, as ELF-64 lays it out."""
    (first,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQ", cubin, first + size * index) for index in range(count)]
    found = [
        cubin[begin : begin + length]
        for name, _, _, _, begin, length in headers
        if cubin.startswith(b".text.", headers[names][4] + name)
    ]
    if len(found) != 1:
        raise ValueError(f"cubin: expected one kernel; got {len(found)}")
    return found[0]


def instructions(codes: Sequence[bytes], capability: int) -> list[dict[str, int]]:
    """How many there are of each kind of ``INSTRUCTIONS`` in each of several kernels for one generation of GPUs.

    They are disassembled as one: a disassembler takes half a second to start, and less for all of them.
    """
    ends, end = [], 0
    for part in codes:
        end += len(part)
        ends.append(end)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernels.bin")
        path.write_bytes(b"".join(codes))
        generation = f"SM{capability}" + ("a" if capability >= 90 else "")
        command = [TOOLS / "nvdisasm", "--no-dataflow", "--binary", generation, path]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result = [dict.fromkeys(INSTRUCTIONS, 0) for _ in codes]
    for address, instruction in re.findall(r"^\s*/\*([0-9a-f]{4,})\*/(.*)$", listing, re.M):
        kernel = result[bisect.bisect_right(ends, int(address, 16))]
        for kind, pattern in INSTRUCTIONS.items():
            kernel[kind] += len(re.findall(pattern, instruction))
    return result
