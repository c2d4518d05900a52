"""Compiles the kernels for GPUs that are not here, and prints what became of them as JSON: accesses and spills.

A program of its own, in which Triton compiles whatever the environment says: the interpreter needs other functions.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from deployments.engine.cuda import group_norm_kernels as norm
from deployments.engine.cuda import update_kernel as update

WHOLE: Final = {"rows", "pixels", "channels", "slabs", "groups", "group_channels", "answer_row", "answer_channel"}
ALIGNED: Final = {"pixels", "channels", "answer_row", "answer_channel"}
"""Multiples of 16 at all sizes of images whose sides are multiples of 32; pointers from torch are, too."""

KERNELS: Final[Mapping[str, tuple[Any, Mapping[str, Any]]]] = {
    "measure_slabs": (norm.measure_slabs, norm.MEASURE),
    "combine_slabs": (norm.combine_slabs, norm.combine_blocks(10)),
    "combine_slabs, wide": (norm.combine_slabs, norm.combine_blocks(80)),
    "normalize_pixels": (norm.normalize_pixels, norm.NORMALIZE | {"SILU": True}),
    "update_rows": (update.update_rows, update.update_blocks(4) | {"answer_pixel": 1}),
}


def main(capability: int) -> None:
    print(
        json.dumps({f"{name}/{kind}": build(name, kind, capability) for name in KERNELS for kind in ("fp32", "fp16")})
    )


def build(name: str, kind: str, capability: int) -> dict[str, Any]:
    function, constants = KERNELS[name]
    names = function.arg_names
    signature = {each: "constexpr" if each in constants else _type_of(each, kind) for each in names}
    aligned = [i for i, each in enumerate(names) if signature[each].startswith("*") or each in ALIGNED]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(names.index(each),): value for each, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    accesses = Counter(re.findall(r"(?:ld|st)\.global\S*", made.asm["ptx"]))
    return {"accesses": accesses, "spilled": _spilled(made.asm["ptx"], capability)}


def _type_of(name: str, kind: str) -> str:
    if name in WHOLE:
        return "i32"
    if name == "eps":
        return "fp32"
    if name in {"prompted", "partner"}:
        return "*i64"
    return f"*{kind}" if name in {"x", "y", "weight", "bias", "answers"} else "*fp32"


def _spilled(ptx: str, capability: int) -> int:
    """Bytes that the assembler stores outside registers, as it says itself."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        target = f"sm_{capability}{'a' if capability >= 90 else ''}"
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={target}", source, "-o", Path(folder, "cubin")]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(map(int, re.findall(r"(\d+) bytes spill stores", told)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
