"""Checkpoints: the whole state of a curve, and how long its files were at that moment.

Loaded weights-only: nothing in a checkpoint is executed. Loading truncates the curve's files to the lengths that
the checkpoint knows, so that a resumed run writes every row once.
"""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from sweep.common import files
from sweep.common.errors import UserError
from sweep.runs.environment import code_hash
from sweep.train.curve import Curve, State
from sweep.train.optim import adamw
from sweep.train.setup import Setup

Content = dict[str, Any]  # of a checkpoint: plain values and tensors by name
FORMAT = 1
DAMAGE = (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, KeyError)  # what torch.load raises


def save(path: Path, owner: str, curve: Curve) -> None:
    """Write the curve's state atomically. `owner` is the trial or family whose curve it is."""
    for file in (curve.metrics, curve.samples):
        _sync(file)
    with curve.whole_state() as state:
        content = _content(owner, curve, state)
        files.write(path, lambda file: torch.save(content, file))


def _content(owner: str, curve: Curve, state: State) -> Content:
    return {
        "format": FORMAT,
        "owner": owner,
        "step": state.step,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "loss_sum": state.loss_sum.clone(),  # without whatever it may be a view of
        "loss_count": state.loss_count,
        "best_loss_nats": state.best_loss_nats,
        "best_tokens": state.best_tokens,
        "seconds": state.seconds,
        "row_seconds": state.row_seconds,
        "classes": state.classes,
        "codes": state.codes,
        "shared_steps": state.shared_steps,
        "shared_seconds": state.shared_seconds,
        "metrics_bytes": _length(curve.metrics),
        "samples_bytes": _length(curve.samples),
    }


def load(path: Path, owner: str, setup: Setup) -> tuple[State, tuple[int, int]]:
    """The state in `path`, put into `setup.model` and a new optimizer; and the lengths of its two files in bytes."""
    content = read(path, setup.device)
    if content.get("format") != FORMAT or content.get("owner") != owner:
        raise UserError(
            f"{path}: checkpoint of {content.get('owner')} in format {content.get('format')}, "
            f"expected {owner} in format {FORMAT}; delete it to train from the start"
        )
    setup.model.load_state_dict(content["model"])
    optimizer = adamw(setup.model, setup.config.optim)
    optimizer.load_state_dict(content["optimizer"])
    state = State(
        model=setup.model,
        optimizer=optimizer,
        step=content["step"],
        loss_sum=content["loss_sum"],
        loss_count=content["loss_count"],
        best_loss_nats=content["best_loss_nats"],
        best_tokens=content["best_tokens"],
        seconds=content["seconds"],
        row_seconds=content["row_seconds"],
        classes=sorted({*content["classes"], setup.execution_class}),
        codes=sorted({*content["codes"], code_hash()}),
        shared_steps=content["shared_steps"],
        shared_seconds=content["shared_seconds"],
    )
    return state, (content["metrics_bytes"], content["samples_bytes"])


def read(path: Path, device: str = "cpu") -> Content:
    """A checkpoint's content; UserError that names a damaged file. Its checksums are compared: torch.load does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"checksum of {damaged} differs")
        return torch.load(path, map_location=device, weights_only=True)
    except DAMAGE as error:
        reason = str(error).split("\n")[0][:120] or type(error).__name__
        raise UserError(
            f"{path}: damaged checkpoint ({reason}); delete it to go on from what lies before it"
        ) from error


def step_of(path: Path) -> int | None:
    """The step of a checkpoint, its tensors left on disk; None where there is none, or it is damaged."""
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)["step"]
    except DAMAGE:
        return None


def truncate(metrics: Path, samples: Path, lengths: tuple[int, int]) -> None:
    """Cut files that grew after a checkpoint back to it."""
    for path, length in zip((metrics, samples), lengths, strict=True):
        with open(path, "ab") as file:
            if file.tell() < length:
                raise UserError(
                    f"{path}: shorter than its checkpoint says; delete the checkpoints beside it to start over"
                )
            file.truncate(length)


def _sync(path: Path) -> None:
    if path.exists():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
