"""How long the tests take, by file: `make test-fast` and `make test`, on a machine that does nothing else.

  python -m benchmarks.test_durations    → results/test_durations.json; half an hour at most

`seconds` is what a person waits for, lint and the set-up of the workers included. A file's seconds are summed over its
tests, with the set-up of their fixtures, and add up to more where workers run beside each other. pytest itself measures
them (its JUnit file).
"""

import argparse
import os
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from benchmarks.provenance import save
from sweep.common.checkout import ROOT

LANES = ("test-fast", "test")


def measure(lane: str) -> dict:
    """Run `make LANE`: its seconds, exit status, number of tests, and seconds by test file, the longest first."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "junit.xml")
        begun = time.monotonic()
        made = subprocess.run(
            ["make", lane], cwd=ROOT, env={**os.environ, "PYTEST_ADDOPTS": f"--junitxml={report}"}, check=False
        )
        seconds = time.monotonic() - begun
        tests = [*ElementTree.parse(report).iter("testcase")]
    by_file: Counter[str] = Counter()
    for test in tests:
        by_file[test.attrib["classname"].replace(".", "/") + ".py"] += float(test.attrib["time"])
    return {
        "seconds": round(seconds, 1),
        "exit_status": made.returncode,
        "tests": len(tests),
        "seconds_by_file": {name: round(spent, 1) for name, spent in by_file.most_common()},
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    measured = {lane: measure(lane) for lane in LANES}
    path = save("test_durations", ["pytest", "pytest-xdist", "torch"], measured)
    for lane, found in measured.items():
        print(f"make {lane}: {found['tests']} tests in {found['seconds']} s, exit status {found['exit_status']}")
    print(path)


if __name__ == "__main__":
    main()
