"""`hydra/launcher=sweep_slurm`: a multirun of `train` becomes one submission to Slurm, the same that `launch` makes.

Hydra finds launchers in this namespace package only. The overrides are planned as they were typed, instead of from
Hydra's list of jobs, so that a trial that is there already is not trained again and small trials share elements. A
sweeper learns only that its jobs were submitted, not their results, so only Hydra's basic sweeper works.
"""

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

ConfigStore.instance().store(
    group="hydra/launcher",
    name="sweep_slurm",
    node={"_target_": "hydra_plugins.sweep_slurm.launcher.SweepSlurmLauncher"},
    provider="sweep_slurm",
)


class SweepSlurmLauncher(Launcher):
    """Submits all jobs of a multirun when it gets their first batch."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.handed_over: dict[str, str | None] | None = None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        if self.handed_over is None:
            self.handed_over = self._submit()
        return [
            JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=self.handed_over)
            for overrides in job_overrides
        ]

    def _submit(self) -> dict[str, str | None]:
        from sweep.common.errors import UserError  # Hydra imports this file whenever it composes
        from sweep.plan.plan import scheduler
        from sweep.verbs.launch import Request, on_slurm

        sweeper = self.config.hydra.sweeper["_target_"]
        if not sweeper.endswith("BasicSweeper"):
            raise UserError(
                f"hydra/sweeper: {sweeper} waits for results, and sweep_slurm returns before there are any; use basic"
            )
        overrides = list(self.config.hydra.overrides.task)
        if not any(text.startswith("cluster=") for text in overrides):
            overrides.append("cluster=slurm")
        if (asked := scheduler(overrides)) != "slurm":
            raise UserError(f"cluster.scheduler={asked}: hydra/launcher=sweep_slurm needs slurm")
        submitted = on_slurm(Request(overrides))
        draft = submitted.draft
        return {"sweep": str(submitted.plan.sweep.path), "submission": draft.submission.folder.name if draft else None}
