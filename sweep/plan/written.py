"""The sections of a config that define a trial, as they were written: a size may be "1M", a rate may follow a rule."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from pydantic import PlainValidator

from sweep.common.artefacts import adapter
from sweep.config.schema import (
    BatchSection,
    BudgetSection,
    Config,
    EvalSection,
    ModelSection,
    OptimSection,
    ScheduleSection,
)
from sweep.data.prepare import SCHEMAS
from sweep.data.sources import DataConfig


def _data_section(said: Any) -> DataConfig:
    """The section `data` of a file, as the dataclass of its source."""
    source = said.get("source") if isinstance(said, dict) else None
    if source not in SCHEMAS:
        raise ValueError(f"source={source}: must be one of {', '.join(SCHEMAS)}")
    schema: Any = SCHEMAS[source]
    section: DataConfig = adapter(schema).validate_json(json.dumps(said), strict=True)
    return section


@dataclass(frozen=True)
class Written:
    """Enough to prepare a trial's data again and to train a variant of the trial. The ladder of sizes is not in it: it
    stays in `conf/model/<name>.yaml`."""

    model: ModelSection
    data: Annotated[DataConfig, PlainValidator(_data_section)]
    optim: OptimSection
    schedule: ScheduleSection
    batch: BatchSection
    budget: BudgetSection
    eval: EvalSection
    seed: int
    seq_len: int
    precision: str

    @classmethod
    def of(cls, config: Config) -> "Written":
        return cls(
            model=replace(config.model, ladder=[]),
            data=config.data,
            optim=config.optim,
            schedule=config.schedule,
            batch=config.batch,
            budget=config.budget,
            eval=config.eval,
            seed=config.seed,
            seq_len=config.seq_len,
            precision=config.precision,
        )

    def as_config(self) -> dict[str, Any]:
        """As `conf/` has it, to be laid over a composed config, and as files keep it."""
        sections = asdict(self)
        del sections["model"]["ladder"]
        return sections
