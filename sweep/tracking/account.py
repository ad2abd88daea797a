"""Signing in to W&B, and what can be wrong with that, each as one line."""

import os
import re
from dataclasses import dataclass
from typing import Any

from sweep.common.errors import UserError
from sweep.config.schema import WandbSection
from sweep.tracking import client

# The client would go on for hours where a server does not answer; whoever waits here wants to know within a minute.
PATIENCE = {
    "WANDB_X_GRAPHQL_RETRY_MAX": "3",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MIN_SECONDS": "1",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "10",
    "WANDB_X_FILE_STREAM_RETRY_MAX": "3",
    "WANDB_X_FILE_STREAM_RETRY_WAIT_MIN_SECONDS": "1",
    "WANDB_X_FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "10",
    "WANDB_X_FILE_TRANSFER_RETRY_MAX": "3",
    "WANDB_X_FILE_TRANSFER_RETRY_WAIT_MIN_SECONDS": "1",
    "WANDB_X_FILE_TRANSFER_RETRY_WAIT_MAX_SECONDS": "10",
}
TIMEOUT_SECONDS = 20
UNREACHABLE = re.compile(r"dial tcp|no such host|connection re|timeout|deadline|EOF|proxy|network|TLS", re.IGNORECASE)
BUSY = re.compile(r"\b(429|5\d\d)\b|too many|rate limit", re.IGNORECASE)


@dataclass(frozen=True)
class Account:
    """A server that answered to our key."""

    wandb: Any  # the module
    api: Any  # wandb.Api
    entity: str  # the configured one, or the key's own

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What wandb and wandb-workspaces raise where the server refuses, or is away."""
        return _errors(self.wandb)


def sign_in(section: WandbSection) -> Account:
    """UserError where wandb is not there, there is no key, the key is wrong, or the server does not answer."""
    for name, value in (PATIENCE | {"WANDB_SILENT": "true"}).items():
        os.environ.setdefault(name, value)
    os.environ["WANDB_MODE"] = "online"  # what holds for training (offline, on many clusters) does not hold here
    wandb = client.wandb_module()
    named = os.environ.get("WANDB_BASE_URL")  # wandb's own default says nothing to anybody
    server = f"W&B at {named}" if named else "W&B"
    if not client.has_key():
        raise UserError(f"{server}: no key; run `wandb login`, or set WANDB_API_KEY, then the same again")
    try:
        api = wandb.Api(timeout=TIMEOUT_SECONDS)
        entity = section.entity or api.default_entity
    except _errors(wandb) as error:
        raise UserError(f"{server}: {explain(error)}") from error
    if not entity:
        raise UserError("wandb.entity: this key has no default entity; name one, wandb.entity=TEAM")
    return Account(wandb, api, entity)


def explain(error: Exception | str) -> str:
    """What went wrong, in one line that says what to do."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    reason = text.rpartition("while retrying: ")[2].rpartition("verify credentials with ")[2]
    if BUSY.search(reason):
        return f"the server is busy ({reason}); try again later, nothing is lost"
    if UNREACHABLE.search(reason):
        return f"cannot be reached ({reason}); try again where there is a network, nothing is lost"
    if re.search(r"\b401\b|credential|api.?key|unauthorized", text, re.IGNORECASE):
        return f"refused the key ({reason}); run `wandb login --relogin`"
    return reason


def _errors(wandb: Any) -> tuple[type[Exception], ...]:
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    return wandb.Error, WandbApiFailedError, ValueError
