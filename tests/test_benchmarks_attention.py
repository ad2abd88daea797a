"""What the GPU benchmarks do besides timing, which needs a GPU: they refuse to time wrong numbers, and write rows."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are decorated, so before they are imported

import json

import pytest
import torch

pytest.importorskip("triton", reason="Triton exists on Linux only")

from benchmarks import attention, cross_entropy, tune_attention
from kernels import attention_op
from kernels.configurations import PATH, Configuration, Key, shipped

CHECK = ["--check-only", "--device", "cpu"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(attention, "TINY", (attention.Case(33, 12, 2, 1, window=9, documents=10),))
    yield
    torch.use_deterministic_algorithms(False)


def test_right_numbers_pass():
    assert attention.main(CHECK) == 0
    assert cross_entropy.main(CHECK) == 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of queries that see nothing
def test_a_wrong_gradient_is_found(monkeypatch, capsys):
    document_bounds = attention_op.document_bounds

    def one_late(documents_BT):
        starts_BT, ends_BT = document_bounds(documents_BT)
        return (starts_BT + 1).clamp(max=starts_BT.shape[1] - 1), ends_BT

    monkeypatch.setattr(attention_op, "document_bounds", one_late)
    assert attention.main(CHECK) == 1
    assert "dk is off by" in capsys.readouterr().out


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


def test_a_device_that_passed_is_entered_once(monkeypatch, tmp_path):
    path = tmp_path / "checked.json"
    path.write_text(json.dumps([{"device": "Other", "triton": "3.6.0", "torch": "2.11", "date": "2026-01-01"}]))
    monkeypatch.setattr(attention, "CHECKED", path)
    monkeypatch.setattr("kernels.configurations.CHECKED", path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    for _ in range(2):
        attention.enter_as_checked()
    assert [entry["device"] for entry in json.loads(path.read_text())] == ["Other", "NVIDIA H200"]


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
    for key, chosen in shipped().items():
        if key.architecture == "sm_90" and key.kernel == kernel and key.element_bytes == 2:
            assert chosen in tune_attention.candidates(kernel, key.block_d)


def test_one_kernel_is_varied_at_a_time():
    candidate = Configuration(16, 32, 1, 1)
    with tune_attention.using("backward_kv", candidate):
        assert attention_op.configuration("sm_90", "backward_kv", 2, 64) == candidate
        assert attention_op.configuration("sm_90", "forward", 2, 64) != candidate
    assert attention_op.configuration("sm_90", "backward_kv", 2, 64) != candidate
