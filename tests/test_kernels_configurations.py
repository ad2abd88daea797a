"""Every shipped configuration compiles for its architecture, on the tensor cores, within its chip, without spills."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.configurations import KERNELS, Configuration, Key, checked, configuration, shipped

pytest.importorskip("triton", reason="Triton exists on Linux only")

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100")
TABLE = ROOT / "benchmarks" / "results" / "compile_ahead.json"


def run(*arguments: str) -> subprocess.CompletedProcess:
    """In a process of its own: Triton's interpreter, which other tests use, excludes its compiler."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"  # named in every launch; unset, Triton 3.9 warns about its default
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


def test_checked_devices_say_what_was_checked():
    assert all(entry.keys() == {"device", "triton", "torch", "date"} for entry in checked())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bf16_with_every_mask_compiles_ahead_of_time(architecture):
    """The form that needs the most registers; the other forms and types are in the committed table."""
    selection = ("--architecture", architecture, "--types", "bf16", "--forms", "all", "--dry")
    finished = run("-m", "benchmarks.compile_ahead", *selection)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "13 compiled, 0 at fault" in finished.stdout


def test_the_committed_table_is_of_these_kernels_and_finds_no_fault():
    table = json.loads(TABLE.read_text())
    code = "from benchmarks import compile_ahead as c; print(c.source_hash(), len(list(c.all_jobs())))"
    finished = run("-c", code)
    assert finished.returncode == 0, finished.stderr
    source, count = finished.stdout.split()
    assert table["source"] == source, "the kernels changed: run python -m benchmarks.compile_ahead"
    assert len(table["rows"]) == int(count)
    assert [row for row in table["rows"] if row["fault"]] == []


def test_a_configuration_that_is_too_large_is_at_fault():
    """The gate closes: a tile that no chip of this kind can hold."""
    code = """
from benchmarks.compile_ahead import attention_job
from kernels.configurations import Configuration, Key
key = Key("sm_86", "forward", 2, 128)
print(attention_job(key, Configuration(128, 128, 8, 3), "bf16", "causal").row()["fault"])
print(attention_job(key, Configuration(128, 64, 4, 1), "bf16", "causal").row()["fault"])
print(attention_job(Key("sm_86", "forward", 4, 16), Configuration(16, 16, 1, 1), "fp32", "causal").row()["fault"])
"""
    finished = run("-c", code)
    assert finished.stdout.splitlines() == ["shared memory over 101376", "spills", "None"], finished.stderr
