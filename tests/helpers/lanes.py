"""Which lane a test is in, and in which order tests begin: worked out from what each uses.

`make test-fast` leaves out `slow`, which what starts a cluster or a browser always is. A worker gets whole files
(`--dist loadfile`), so that what a module's fixture trains is trained once; each worker has a Slurm cluster of its own.
"""

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
LANE_OF_FIXTURE = {"cluster": "slurm", "cluster_without_accounting": "slurm", "chromium": "browser"}
LANE_OF_FOLDER = {"system": "slow", "tracking": "wandb"}
SLOW_LANES = {"slurm", "browser"}


def lanes(item: pytest.Item) -> set[str]:
    """The lanes of a test, beside the markers that it carries by hand."""
    found = {LANE_OF_FIXTURE[name] for name in item.fixturenames if name in LANE_OF_FIXTURE}
    folder = item.path.relative_to(TESTS).parts[0]
    if folder in LANE_OF_FOLDER:
        found.add(LANE_OF_FOLDER[folder])
    found |= {mark.name for mark in item.iter_markers()} & SLOW_LANES
    return found | {"slow"} if found & SLOW_LANES else found


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for lane in lanes(item):
            item.add_marker(lane)
    # The cluster waits for its daemons most of the time: begun first, the other workers fill the machine beside it.
    items.sort(key=lambda item: item.get_closest_marker("slurm") is None)
