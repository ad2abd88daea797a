"""Why a trial failed: one reading of error.txt, for the table, the status and W&B."""

import os

import pytest

from sweep.runs.rundir import RunDir

CUDA = """Traceback (most recent call last):
  File "worker.py", line 3, in train
    loop.train(curve, until)
  File "loop.py", line 7, in train
    loss.backward()
    ^^^^^^^^^^^^^^^
RuntimeError: CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call.
  For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""
CHAINED = """Traceback (most recent call last):
  File "a.py", line 1, in a
ValueError: first

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "b.py", line 2, in b
KeyError: 'second'
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (CUDA, "RuntimeError: CUDA error: an illegal memory access was encountered"),
        (CHAINED, "KeyError: 'second'"),
        ("tokens/x/train.bin: damaged (…); delete the folder\n", "tokens/x/train.bin: damaged (…); delete the folder"),
        ("Traceback\nRuntimeError: no frames\n", "RuntimeError: no frames"),
        ("Traceback (most recent call last):\n  File half", "  File half"),  # its disk was full
        ("", "failed without a message"),
    ],
)
def test_the_line_that_says_what_went_wrong(tmp_path, text, line):
    run = RunDir(tmp_path)
    assert run.failure() is None
    run.error.write_text(text)
    assert run.failure().line == line


def test_a_failure_is_of_a_time_and_may_hold_any_bytes(tmp_path):
    run = RunDir(tmp_path)
    run.error.write_bytes(b"ValueError: \xff\n")
    os.utime(run.error, (100, 100))
    assert run.failure(since=99).line == "ValueError: \ufffd"
    assert run.failure(since=99).time == 100
    assert run.failure(since=100) is None
