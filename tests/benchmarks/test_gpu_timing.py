"""What the GPU benchmarks do around the device: contenders that fail, memory that is short, time that runs out."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton exists on Linux only")
from benchmarks import attention, gpu_timing, tune_attention
from kernels.configurations import Configuration, Key


@pytest.fixture
def order(monkeypatch):
    """The runs in their order; each takes the time that it returns."""
    runs: list = []

    def seconds(run):
        runs.append(run)
        return run()

    monkeypatch.setattr(gpu_timing, "_seconds", seconds)
    return runs


def test_each_contender_leads_in_turn(order):
    contenders = {"a": lambda: 1.0, "b": lambda: 2.0, "c": lambda: 3.0}
    assert gpu_timing.race(contenders, rounds=3) == ({"a": 1.0, "b": 2.0, "c": 3.0}, {})
    names = [next(name for name, run in contenders.items() if run is one) for one in order]
    assert "".join(names[-9:]) == "abcbcacab"


def test_whatever_ends_one_contender_does_not_end_the_others(order):
    calls = iter(range(100))

    def later():
        if next(calls) == 5:
            raise torch.OutOfMemoryError("no room\nfor more")
        return 1.0

    def at_once():
        raise AssertionError

    seconds, why_not = gpu_timing.race({"later": later, "at once": at_once, "sound": lambda: 2.0}, rounds=9)
    assert seconds == {"sound": 2.0}
    assert why_not == {"at once": "AssertionError: ", "later": "OutOfMemoryError: no room"}


def test_a_row_says_that_our_own_kernel_failed(monkeypatch):
    monkeypatch.setattr(attention, "race", lambda timed: ({"flash": 1e-3}, {"triton": "OutOfResources: shared memory"}))
    monkeypatch.setattr(attention, "inputs", lambda *_: [torch.zeros(1, 4, 1, 16)] * 4)
    monkeypatch.setattr(torch, "Generator", lambda device: type("", (), {"manual_seed": lambda self, seed: self})())
    for row in attention.time_case(attention.Case(4, 16, 1, 1), ceiling=1.0):
        assert row.not_run == {"triton": "OutOfResources: shared memory"}
        assert (row.ours_over, row.of_matmul_ceiling) == ({}, None)


@pytest.mark.parametrize(
    ("free_gb", "checked"),
    [(140, ["more than 2³¹ elements in each output and gradient"]), (40, ["more than 2³² of input"]), (24, [])],
)
def test_wide_offsets_are_checked_as_far_as_memory_allows(free_gb, checked, capsys):
    assert [what for what, _ in attention.wide_checks(free_gb * 10**9, torch.Generator())] == checked
    assert capsys.readouterr().out == ("" if checked else "offsets beyond 32 bits: not checked, 35 GB must be free\n")


def test_no_candidate_is_begun_after_the_deadline(capsys):
    wanted = [Configuration(64, 32, 4, 2), Configuration(128, 64, 8, 2)]
    assert tune_attention.compiled(Key("sm_86", "forward", 2, 64), wanted, [], deadline=0.0) == []
    assert capsys.readouterr().out == "".join(f"  {candidate}: no time left\n" for candidate in wanted)
