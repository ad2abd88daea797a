"""Every shipped configuration compiles for its architecture, on the tensor cores, within its chip, without spills."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys

import pytest

from kernels.configurations import (
    CHECKED,
    KERNELS,
    PARTS,
    Configuration,
    Key,
    checked,
    configuration,
    enter_as_checked,
    is_checked,
    shipped,
    source_hash,
)

if importlib.util.find_spec("triton") is None:  # not imported here: others import it with its interpreter
    pytest.skip("Triton exists on Linux only", allow_module_level=True)

from sweep.common.checkout import ROOT

pytestmark = pytest.mark.triton

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100")
TABLE = ROOT / "benchmarks" / "results" / "compile_ahead.json"


def run(*arguments: str) -> subprocess.CompletedProcess:
    """In a process of its own: Triton's interpreter, which other tests use, excludes its compiler."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_every_architecture_has_every_shape():
    shapes = set(itertools.product(ARCHITECTURES, KERNELS, (2, 4), (16, 32, 64, 128)))
    assert shapes <= {(k.architecture, k.kernel, k.element_bytes, k.block_d) for k in shipped()}


def test_an_architecture_that_is_not_listed_gets_the_smallest_chips_row():
    assert configuration("sm_120", "forward", 2, 96) == shipped()[Key("sm_86", "forward", 2, 128)]
    assert configuration("sm_90", "forward", 2, 20) == shipped()[Key("sm_90", "forward", 2, 32)]


def test_options_of_the_compiler_name_the_fusion_of_products_and_sums():
    assert Configuration(64, 32, 4, 2).launch() == {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}


def test_checked_devices_say_what_was_checked(monkeypatch, tmp_path):
    """Those of the shipped file, which may have none yet, and the next one that is entered."""
    path = tmp_path / "checked.json"
    path.write_bytes(CHECKED.read_bytes())
    monkeypatch.setattr("kernels.configurations.CHECKED", path)
    before = len(checked())
    enter_as_checked(PARTS[0], "a device of this test", "3.6.0")
    assert len(checked()) == before + 1
    for entry in checked():
        assert entry.keys() == {"part", "device", "triton", "torch", "source", "date"}


def test_a_device_is_checked_when_every_part_was_and_until_the_kernels_change(monkeypatch, tmp_path):
    path = tmp_path / "checked.json"
    path.write_text("[]")
    monkeypatch.setattr("kernels.configurations.CHECKED", path)
    for part in (*PARTS, *PARTS):  # entered again, it is replaced
        assert is_checked("NVIDIA H200", "3.6.0") == (len(checked()) == len(PARTS))
        enter_as_checked(part, "NVIDIA H200", "3.6.0")
    assert [(e["part"], e["source"]) for e in checked()] == [(part, source_hash()) for part in PARTS]
    assert not is_checked("NVIDIA H200", "3.9.0")
    assert not is_checked("NVIDIA B200", "3.6.0")
    monkeypatch.setattr("kernels.configurations.source_hash", lambda: "changed")
    assert not is_checked("NVIDIA H200", "3.6.0")


def test_the_source_is_kernels_launches_and_tiles(monkeypatch, tmp_path):
    names = ("triton_attention.py", "attention_op.py", "configurations.json", "configurations.py", "attention.py")
    for name in names:
        (tmp_path / name).write_text("as it was")
    monkeypatch.setattr("kernels.configurations.PATH", tmp_path / "configurations.json")
    hashes = [source_hash.__wrapped__()]
    for name in names:
        (tmp_path / name).write_text("changed")
        hashes.append(source_hash.__wrapped__())
    assert len(set(hashes)) == 5
    assert hashes[4] == hashes[5]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bf16_with_every_mask_compiles_ahead_of_time(architecture):
    """The forms that need the most registers; the other form and types are in the committed table."""
    selection = ("--architecture", architecture, "--types", "bf16", "--forms", "padded", "all", "grouped", "--dry")
    finished = run("-m", "benchmarks.compile_ahead", *selection)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "21 compiled, 0 at fault" in finished.stdout


def test_the_committed_table_is_of_these_kernels_and_finds_no_fault():
    table = json.loads(TABLE.read_text())
    code = "from benchmarks import compile_ahead as c; print(c.source_hash(), len(list(c.all_jobs())))"
    finished = run("-c", code)
    assert finished.returncode == 0, finished.stderr
    source, count = finished.stdout.split()
    assert table["source"] == source, "the kernels changed: run python -m benchmarks.compile_ahead"
    assert len(table["rows"]) == int(count)
    assert [row for row in table["rows"] if row["fault"]] == []
    spilled = [row for row in table["rows"] if row["spill_loads"] and row["type"] != "fp32"]
    assert {row["form"] for row in spilled} <= {"grouped"}
    heads = {(row["architecture"], int(row["blocks"].split("x")[-1])) for row in spilled}
    assert heads <= {("sm_80", 128), ("sm_90", 128), ("sm_100", 64), ("sm_100", 128)}


def test_a_configuration_that_is_too_large_is_at_fault():
    """The gate closes: a tile that no chip of this kind can hold."""
    code = """
from benchmarks.compile_ahead import attention_job
from kernels.configurations import Configuration, Key
key = Key("sm_86", "forward", 2, 128)
print(attention_job(key, Configuration(128, 128, 8, 3), "bf16", "causal").row().fault)
print(attention_job(key, Configuration(128, 64, 4, 1), "bf16", "causal").row().fault)
print(attention_job(Key("sm_86", "forward", 4, 16), Configuration(16, 16, 1, 1), "fp32", "causal").row().fault)
"""
    finished = run("-c", code)
    assert finished.stdout.splitlines() == ["shared memory over 101376", "spills", "None"], finished.stderr


NO_CHIP = """
import torch, triton
from types import SimpleNamespace
from triton.backends.compiler import GPUTarget
from benchmarks import tune_attention
from benchmarks.attention import Case, inputs, launch
from benchmarks.gpu_checks import compiling, poisoned
from kernels import attention_op
from kernels.configurations import Configuration, Key, configuration
chip = {"get_current_device": 0, "get_current_stream": 0, "get_current_target": GPUTarget("cuda", 90, 32)}
triton.runtime.driver.set_active(SimpleNamespace(**{name: lambda *_, a=a: a for name, a in chip.items()}))
"""  # the compiler asks what to compile for; to run anything is an error


def test_many_launches_compile_at_once_and_run_nothing():
    code = """
attention_op.configuration = lambda _, *key: configuration("sm_90", *key)
given = inputs(Case(64, 16, 2, 1), 2, torch.bfloat16, "cpu", torch.Generator())
with poisoned(), compiling():
    launch(given)
    launch(given, window=9)
    launch(given)
for name in ("forward", "backward_q", "backward_kv"):
    kernels = getattr(attention_op.kernels, name).device_caches[0][0].values()
    print(name, [type(kernel.asm["cubin"]).__name__ for kernel in kernels])
"""
    finished = run("-c", NO_CHIP + code)
    assert finished.stdout.splitlines() == [f"{name} ['bytes', 'bytes']" for name in KERNELS], finished.stderr


def test_a_candidate_that_could_not_be_shipped_is_not_tried():
    code = """
small = inputs(Case(64, 64, 1, 1), 1, torch.bfloat16, "cpu", torch.Generator())
wanted = [Configuration(128, 128, 8, 4), Configuration(128, 64, 8, 2), Configuration(128, 48, 8, 2)]
print(tune_attention.compiled(Key("sm_86", "forward", 2, 64), wanted, small))
print(len(attention_op.kernels.forward.device_caches[0][0]), "compiled")
"""
    finished = run("-c", NO_CHIP + code)
    too_large, not_a_power_of_two, *rest = finished.stdout.splitlines()
    assert too_large.endswith("shared memory over 101376"), finished.stderr
    assert "CompilationError" in not_a_power_of_two
    assert rest == [f"[{Configuration(128, 64, 8, 2)}]", "1 compiled"]
