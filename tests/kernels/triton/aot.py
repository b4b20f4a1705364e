"""Compiles a kernel with no GPU and reads back what the compiler made of it."""

import os
import pathlib
import re
import subprocess
import tempfile
from typing import NamedTuple

import triton

from llmasos_xla.kernels._triton.compiler import Options, Target, compile_kernel
from llmasos_xla.kernels._triton.devices import KNOWN, Device
from llmasos_xla.kernels._triton.primitive import Kernel

TARGETS = {
    "sm80": Target("cuda", 80), "sm90": Target("cuda", 90), "sm100": Target("cuda", 100),
    "gfx942": Target("hip", "gfx942", 64),
}  # fmt: skip
DEVICES = {
    "sm80": KNOWN["NVIDIA A100-SXM4-80GB"],
    "sm90": KNOWN["NVIDIA H100 80GB HBM3"],
    "sm100": KNOWN["NVIDIA B200"],
    # JAX launches nothing of ours there: the kernels compile, and nothing else is known.
    "gfx942": Device("AMD Instinct MI300X", 0, 304, 65536),
}
"""A GPU of each target: that for which the kernels' sizes are chosen."""
SHARED_MEMORY = {target: device.shared_memory for target, device in DEVICES.items()}

CALL = "triton_kernel_call_ffi"
"""What a launch is called in the text of a program."""

_BIN = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Report(NamedTuple):
    """Registers of a thread, bytes spilled, bytes of shared memory, and instructions by name."""

    registers: int
    spilled: int
    shared_memory: int
    matrix_instructions: int
    text: str


def compiled(kernel, pointers: dict, constants: dict, target: str, options: Options) -> Report:
    """The kernel for that target."""
    made = compile_kernel(Kernel.of(kernel), pointers, constants, TARGETS[target], options)
    if target == "gfx942":
        numbers = {n: int(re.search(rf"\.{n}:\s*(\d+)", made.text)[1]) for n in ("vgpr_count", "vgpr_spill_count")}
        matrix = made.text.count("v_mfma")
        return Report(numbers["vgpr_count"], numbers["vgpr_spill_count"], made.shared_memory, matrix, made.text)
    arch = re.search(r"\.target (\w+)", made.text)[1]
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "kernel.ptx"
        source.write_text(made.text)
        said = ""
        for assembler in ("ptxas", "ptxas-blackwell"):
            if not (_BIN / assembler).exists():
                continue
            command = [_BIN / assembler, "-v", "--gpu-name", arch, source, "-o", os.devnull]
            ran = subprocess.run(command, capture_output=True, text=True)
            said = ran.stdout + ran.stderr
            if ran.returncode == 0:
                break
    registers = re.search(r"Used (\d+) registers", said)
    assert registers, said
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", said)))
    matrix = sum(made.text.count(name) for name in ("wgmma.mma_async", "tcgen05.mma", "mma.sync"))
    return Report(int(registers[1]), spilled, made.shared_memory, matrix, made.text)
