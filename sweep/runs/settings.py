"""How a sweep was launched: `sweep.json`."""

from dataclasses import dataclass, field

from sweep.config.schema import ClusterSection, PathsSection, RunOptions, WandbSection


@dataclass(frozen=True)
class Excluded:
    """A point of the grid that a `where:` condition leaves out, with the values that the condition was judged by."""

    overrides: list[str]
    condition: str
    facts: str


@dataclass(frozen=True)
class SweepSettings:
    """The options of a sweep's last launch, which its workers, its table and its mirror to W&B follow. Older files may
    lack the fields with a default."""

    paths: PathsSection
    name: str = ""
    command: list[str] = field(default_factory=list)  # that launched it
    overrides: list[str] | None = None
    device: str = "cpu"  # or cuda
    run: RunOptions = field(default_factory=RunOptions)
    cluster: ClusterSection = field(default_factory=ClusterSection)
    wandb: WandbSection = field(default_factory=WandbSection)
    excluded: list[Excluded] = field(default_factory=list)

    def launched_with(self) -> list[str]:
        """The overrides of the launch; older files hold them in the command only."""
        if self.overrides is not None:
            return self.overrides
        return [word for word in self.command[4:] if word != "--extend"]
