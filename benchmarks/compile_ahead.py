"""Every shipped configuration of the kernels compiled for its architecture, without a GPU: registers, memory, spills.

  python -m benchmarks.compile_ahead [--architecture sm_90] [--types bf16] [--forms all] [--dry]

Attention is compiled in four forms: plainly causal; with every mask (window and documents); the largest head also
padded, 96 of 128, with every mask; and the kernel that sums over a group of query heads also grouped, with every mask
and a length that is a multiple of nothing. A configuration
must fit its chip's shared memory; in half precision attention must run on the tensor cores, and nothing may spill,
except in the grouped form: there, as in fp32, spills (slow, not wrong) are reported. The table goes to
`benchmarks/results/compile_ahead.json`. Exit status 1 when a configuration is at fault. It cannot run in a process with
Triton's interpreter.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.provenance import save
from kernels import triton_attention, triton_cross_entropy
from kernels.configurations import MAX_HEAD_DIM, Configuration, Key, shipped, source_hash
from kernels.cross_entropy_op import MAX_BLOCK_V, SCALE_BLOCK, SCALE_OPTIONS, launch

TYPES = {"fp16": 2, "bf16": 2, "fp32": 4}  # bytes of an element
FORMS = ("causal", "padded", "all", "grouped")
SHARED_BYTES = {"sm_80": 166_912, "sm_86": 101_376, "sm_89": 101_376, "sm_90": 232_448, "sm_100": 232_448}
TENSOR_CORES = {"sm_90": "HGMMA", "sm_100": r"UTC\w*MMA"}  # HMMA elsewhere
ARGUMENTS = {
    **dict.fromkeys(("q", "k", "v", "out", "dout", "dq", "dk", "dv", "logits", "gradient", "x"), "*{}"),
    **dict.fromkeys(("lse", "delta", "losses", "factor"), "*fp32"),
    **dict.fromkeys(("starts", "ends"), "*i32"),
    **dict.fromkeys(("scale", "scale_log2", "gradient_scale"), "fp32"),
    "targets": "*i64",
}  # i32 elsewhere


@dataclass(frozen=True)
class Row:
    """A line of the table: what a compiled program takes."""

    architecture: str
    kernel: str
    type: str
    form: str
    blocks: str
    num_warps: int
    num_stages: int | None
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_loads: int
    fault: str | None  # what is wrong with it


@dataclass(frozen=True)
class Job:
    """One program to compile: a kernel, its constants, and how a row of the table names it."""

    kernel: Any
    architecture: str
    type: str
    form: str
    constants: dict[str, int | bool]
    options: dict[str, int | bool]

    def compile(self) -> Any:
        """As the launcher would specialise it for a GPT: contiguous rows, lengths divisible by 16 unless grouped."""
        names = self.kernel.arg_names
        signature = {
            name: "constexpr" if name in self.constants else ARGUMENTS.get(name, "i32").format(self.type)
            for name in names
        }
        lengths = r"\w+_[bthr]" if self.form == "grouped" else r"T|V|elements|\w+_[bthr]"
        divisible = {
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if signature[name].startswith("*") or re.fullmatch(lengths, name)
        }
        constants = {(names.index(name),): value for name, value in self.constants.items()}
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=divisible)
        target = GPUTarget("cuda", int(self.architecture.removeprefix("sm_")), 32)
        return triton.compile(source, target=target, options=self.options)

    def row(self) -> Row:
        """Compile it, and look at what it takes."""
        compiled = self.compile()
        usage = _tool("cuobjdump", "-res-usage", compiled.asm["cubin"])
        sass = _tool("nvdisasm", "-c", compiled.asm["cubin"])
        shared_bytes, spill_loads = compiled.metadata.shared, len(re.findall(r"\bLDL", sass))
        return Row(
            architecture=self.architecture,
            kernel=self.kernel.__name__,
            type=self.type,
            form=self.form,
            blocks="x".join(str(value) for name, value in self.constants.items() if name.startswith("BLOCK")),
            num_warps=self.options["num_warps"],
            num_stages=self.options.get("num_stages"),
            registers=_number("REG", usage),
            shared_bytes=shared_bytes,
            stack_bytes=_number("STACK", usage),
            spill_loads=spill_loads,
            fault=self.fault(shared_bytes, spill_loads, sass),
        )

    def fault(self, shared_bytes: int, spill_loads: int, sass: str) -> str | None:
        """What is wrong with the compiled program, or None. `sass` is its assembly."""
        limit = SHARED_BYTES.get(self.architecture, min(SHARED_BYTES.values()))
        if shared_bytes > limit:
            return f"shared memory over {limit}"
        if self.type == "fp32":
            return None
        if "D" in self.constants and not re.search(TENSOR_CORES.get(self.architecture, "HMMA"), sass):
            return "not on the tensor cores"
        return "spills" if spill_loads and self.form != "grouped" else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=SHARED_BYTES, nargs="+", default=list(SHARED_BYTES))
    parser.add_argument("--types", choices=TYPES, nargs="+", default=list(TYPES))
    parser.add_argument("--forms", choices=FORMS, nargs="+", default=list(FORMS))
    parser.add_argument("--dry", action="store_true", help="write no result file")
    args = parser.parse_args()
    jobs = list(all_jobs(args.architecture, args.types, args.forms))
    rows = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row in pool.map(Job.row, jobs):
            rows.append(row)
            print(*asdict(row).values(), flush=True)
    failed = [row for row in rows if row.fault]
    if not args.dry:
        command = "python -m benchmarks.compile_ahead"
        save("compile_ahead", ["triton"], {"command": command, "source": source_hash(), "rows": rows})
    print(f"{len(rows)} compiled, {len(failed)} at fault")
    return 1 if failed else 0


def all_jobs(
    architectures: Iterable[str] = SHARED_BYTES, types: Iterable[str] = TYPES, forms: Iterable[str] = FORMS
) -> Iterator[Job]:
    """Whatever is shipped for these."""
    for architecture in architectures:
        for kind in types:
            for key, chosen in shipped().items():
                if key.architecture == architecture and key.element_bytes == TYPES[kind]:
                    has = forms_of(key)
                    wanted = has if kind != "fp32" else has[-1:]  # the largest will do where spills may be
                    yield from (attention_job(key, chosen, kind, form) for form in wanted if form in forms)
            yield Job(
                triton_cross_entropy.cross_entropy, architecture, kind, "with gradient",
                {"BLOCK_V": MAX_BLOCK_V, "WITH_GRADIENT": True, "logits_v": 1}, launch(MAX_BLOCK_V),
            )  # fmt: skip
            yield Job(triton_cross_entropy.scale, architecture, kind, "in place", {"BLOCK": SCALE_BLOCK}, SCALE_OPTIONS)


def forms_of(key: Key) -> list[str]:
    lacks = {"padded": key.block_d != MAX_HEAD_DIM, "grouped": key.kernel != "backward_kv"}
    return [form for form in FORMS if not lacks.get(form)]


def attention_job(key: Key, chosen: Configuration, kind: str, form: str) -> Job:
    kernel = getattr(triton_attention, key.kernel)
    constants = {
        "BLOCK_Q": chosen.block_q, "BLOCK_K": chosen.block_k, "BLOCK_D": key.block_d,
        "D": key.block_d * 3 // 4 if form == "padded" else key.block_d,
        "EDGES": form != "causal", "DOCUMENTS": form != "causal",
    }  # fmt: skip
    constants |= {name: 1 for name in kernel.arg_names if name.endswith("_d") or (name == "G" and form != "grouped")}
    return Job(kernel, key.architecture, kind, form, constants, chosen.launch())


def _number(name: str, usage: str) -> int:
    found = re.search(rf"{name}:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump says nothing of {name}: {usage}")
    return int(found[1])


def _tool(name: str, option: str, cubin: bytes) -> str:
    """The output of one of the programs that come with Triton."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([program, option, file.name], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
