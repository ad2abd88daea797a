"""What the GPU benchmarks do besides timing, which needs a GPU: they refuse to time wrong numbers, and write rows."""

import json

import pytest
import torch

pytest.importorskip("triton", reason="Triton exists on Linux only")

from benchmarks import attention, cross_entropy, gpu_checks, tune_attention
from kernels import attention_op
from kernels.configurations import PATH, Configuration, Key, shipped

CHECK = ["--check-only", "--device", "cpu"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(attention, "TINY", (attention.Case(33, 12, 2, 1, window=9, documents=10),))
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_right_numbers_pass():
    assert attention.main(CHECK) == 0
    assert cross_entropy.main(CHECK) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of queries that see nothing
def test_a_wrong_gradient_is_found(monkeypatch, capsys):
    document_bounds = attention_op.document_bounds

    def one_late(documents_BT):
        starts_BT, ends_BT = document_bounds(documents_BT)
        return (starts_BT + 1).clamp(max=starts_BT.shape[1] - 1), ends_BT

    monkeypatch.setattr(attention_op, "document_bounds", one_late)
    assert attention.main(CHECK) == 1
    assert "dk is off by" in capsys.readouterr().out


@pytest.mark.slow
def test_a_wrong_loss_is_found(monkeypatch, capsys):
    monkeypatch.setattr(cross_entropy.cross_entropy_op, "block_v", lambda vocabulary: 2)
    monkeypatch.setattr(cross_entropy.reference, "cross_entropy", lambda logits, targets: logits.sum())
    assert cross_entropy.main(CHECK) == 1
    assert "loss is off by" in capsys.readouterr().out


@pytest.mark.parametrize("benchmark", [attention, cross_entropy])
def test_the_interpreter_is_not_timed(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--device", "cpu"])
    assert "--device cpu goes with --check-only" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("benchmark", [attention, cross_entropy, tune_attention])
def test_without_a_gpu_one_line_says_so(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([])
    assert "error: torch sees no CUDA device here" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["attention", "cross_entropy"])
def test_a_device_enters_the_part_that_passed(monkeypatch, part):
    benchmark = {"attention": attention, "cross_entropy": cross_entropy}[part]
    entered = []
    monkeypatch.setattr(gpu_checks, "enter_as_checked", lambda *what: entered.append(what))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    for wrong in (["a fault"], []):
        monkeypatch.setattr(benchmark, "check", lambda device, seed, wrong=wrong: wrong)
        assert benchmark.main(["--check-only"]) == len(wrong)
    assert [what[:2] for what in entered] == [(part, "NVIDIA H200")]


def test_an_error_in_a_check_is_a_fault_and_the_last_one():
    def broken():
        yield "off by 1"
        raise RuntimeError("illegal access\nand much more")

    checks = [("first", lambda: ["off by 2"]), ("second", lambda: []), ("third", broken), ("fourth", lambda: ["no"])]
    assert gpu_checks.faults(checks) == [
        "first: off by 2",
        "third: off by 1",
        "third: RuntimeError: illegal access",
    ]


@pytest.mark.parametrize("benchmark", [attention, cross_entropy])
def test_a_run_that_is_stopped_keeps_what_it_measured(monkeypatch, benchmark):
    saved = []

    def one_row(case, ceiling):
        if saved:
            raise KeyboardInterrupt
        return [{"case": case}]

    for name in ("matmul_tflops", "copy_bytes_per_second"):
        monkeypatch.setattr(benchmark, name, lambda: 1.0, raising=False)
    for name in ("time_case", "time_plain"):
        monkeypatch.setattr(benchmark, name, one_row, raising=False)
    monkeypatch.setattr(benchmark, "save", lambda name, packages, report, device: saved.append(len(report["rows"])))
    with pytest.raises(KeyboardInterrupt):
        benchmark.time_all(*[0] * (benchmark is attention))
    assert saved == [1]


def test_tuned_rows_replace_the_old_and_keep_the_others():
    text = PATH.read_text()
    assert tune_attention.with_rows(text, {}, "nowhere") == text
    key = Key("sm_90", "forward", 2, 64)
    changed = tune_attention.with_rows(text, {key: Configuration(256, 32, 8, 4)}, "NVIDIA H200, triton 3.6.0")
    (row,) = [row for row in json.loads(changed)["rows"] if row not in json.loads(text)["rows"]]
    assert (row["block_q"], row["origin"]) == (256, "NVIDIA H200, triton 3.6.0")
    assert changed.count("\n") == text.count("\n")


@pytest.mark.parametrize("kernel", ["forward", "backward_q", "backward_kv"])
def test_candidates_hold_what_is_shipped_for_the_h200(kernel):
    wanted = ("sm_90", kernel, 2)
    of_h200 = {k: chosen for k, chosen in shipped().items() if (k.architecture, k.kernel, k.element_bytes) == wanted}
    assert sorted(key.block_d for key in of_h200) == [16, 32, 64, 128]
    for key, chosen in of_h200.items():
        assert chosen in tune_attention.candidates(kernel, key.block_d)


def test_one_kernel_is_varied_at_a_time():
    candidate = Configuration(16, 32, 1, 1)
    with tune_attention.using("backward_kv", candidate):
        assert attention_op.configuration("sm_90", "backward_kv", 2, 64) == candidate
        assert attention_op.configuration("sm_90", "forward", 2, 64) != candidate
    assert attention_op.configuration("sm_90", "backward_kv", 2, 64) != candidate
