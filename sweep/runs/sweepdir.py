"""The folder of a sweep: it names trials and holds what is made of them, and never owns a run.

sweeps/<name>/
  plan.jsonl        the trials of the grid, one JSON line each
  sweep.json        the overrides, options and paths it was launched with, what was excluded and why
  logs/             what the workers said
  launches/         the processes of a launch on a machine that are alive (`launches.py`)
  table.parquet, curves.parquet, samples.parquet, meta.json    from `collect`
  fit.json          from `fit`
  report/           from `report`
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sweep.common import artefacts
from sweep.common.errors import UserError
from sweep.common.guess import did_you_mean
from sweep.runs.lookup import one_run
from sweep.runs.planned import Facts, PlanLine
from sweep.runs.settings import SweepSettings

MEND = "remove it and launch again to write it anew"


@dataclass(frozen=True)
class SweepDir:
    path: Path

    @classmethod
    def find(cls, name_or_path: str, sweeps: str | Path = "sweeps", collected: bool = False) -> "SweepDir":
        """A sweep by its name or its folder; UserError with the names there are. Of a `collected` one the table is
        enough, which may have come from another machine without the plan."""
        file = "table.parquet" if collected else "plan.jsonl"
        for path in (Path(sweeps) / name_or_path, Path(name_or_path)):
            if (path / file).exists():
                return cls(path)
        known = sorted(path.parent.name for path in Path(sweeps).glob(f"*/{file}"))
        meant = did_you_mean(name_or_path, {path.name for path in Path(sweeps).glob("*/")} - {name_or_path})
        if collected:
            have = f"collected sweeps: {', '.join(known)}" if known else "no sweep is collected yet"
            again = f"run `python -m sweep collect {name_or_path}` first"
            raise UserError(f"{name_or_path}: no {Path(sweeps) / name_or_path / file} ({have}); {meant}{again}")
        have = (
            f"there are: {', '.join(known)}"
            if known
            else f"{Path(sweeps).absolute()} has none; launch one, or be where one was launched"
        )
        raise UserError(f"{name_or_path}: no such sweep; {meant}{have}")

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def plan(self) -> Path:
        return self.path / "plan.jsonl"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def settings(self) -> SweepSettings:
        """What `sweep.json` holds. UserError where it is missing or damaged."""
        return artefacts.read(SweepSettings, self.path / "sweep.json", MEND)

    def overrides(self) -> list[str]:
        """The overrides of the last launch."""
        return self.settings().launched_with()

    def lines(self) -> Iterator[tuple[str, bytes]]:
        """Of each line of the plan: its place, `plan.jsonl:<number>`, and its text, which is JSON."""
        for number, line in enumerate(self.plan.read_bytes().splitlines(), start=1):
            yield f"{self.plan}:{number}", line

    def planned(self) -> list[Facts]:
        """The facts of each planned trial, the longest family first. UserError names a line that is damaged."""
        return [artefacts.decode(PlanLine, line, where, MEND).facts for where, line in self.lines()]

    def chosen(self, names: list[str]) -> list[Facts]:
        """The planned trials that people name by id, unique prefix of an id, or family; all of them without names."""
        planned = self.planned()
        if not names:
            return planned
        by_id = {trial.trial_id: trial for trial in planned}
        found: dict[str, Facts] = {}
        for name in names:
            of_family = [trial.trial_id for trial in planned if trial.family_id == name]
            trial_ids = of_family or [one_run(name, by_id, f"sweep {self.name}")]
            found.update((trial_id, by_id[trial_id]) for trial_id in trial_ids)
        return list(found.values())


def launch_command(overrides: list[str], extend: bool = False) -> list[str]:
    """What a person types to launch these overrides."""
    return ["python", "-m", "sweep", "launch", *overrides, *(["--extend"] if extend else [])]
