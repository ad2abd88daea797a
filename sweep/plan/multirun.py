"""Hydra's own way to run a grid: `train -m key=a,b,c`, with the launcher that `hydra/launcher=` names.

The launcher and the sweeper are Hydra's, and so is the order of jobs. A grid of any size is better planned and launched
(`python -m sweep launch`): Hydra composes every job by itself, some 65 ms each, and knows nothing of trials.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig

from sweep.common.checkout import CONF
from sweep.common.errors import UserError
from sweep.config.overrides import for_hydra
from sweep.plan.grid import grid

# No folder and no log of each job: a run directory holds all that there is to know.
NO_STRAY_FILES = ["hydra/job_logging=stdout", "hydra.output_subdir=null", "hydra.sweep.subdir=."]


def multirun(overrides: list[str], train_one: Callable[[list[str]], int]) -> int:
    """`train_one` for the overrides of each job; the worst exit status. UserError for what Hydra does not take."""
    next(grid([text for text in overrides if not text.startswith(("hydra/", "hydra."))]))  # mistakes in our words
    statuses = [0]

    @hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
    def train(config: DictConfig) -> Any:
        statuses.append(train_one(list(HydraConfig.get().overrides.task)))

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, and let us say it in one line
    arguments = ["train", "--multirun", *NO_STRAY_FILES, *for_hydra(overrides)]
    typed, sys.argv = sys.argv, arguments  # Hydra reads it itself
    try:
        train()
    except MissingConfigException as error:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        raise UserError(f"{group}={name}: no such option; there are {', '.join(error.options or [])}") from error
    except HydraException as error:
        raise UserError(" ".join(line.strip() for line in str(error).splitlines() if line.strip())) from error
    finally:
        sys.argv = typed
    return max(statuses)
