"""Sweep folders simulated from a known additive law, for the tests of the figures and the report.

`write(folder, kind)` makes one of: "normal" (sizes × budgets, with a failed, a missing and a diverged trial),
"refused" (the same without a fit), "data_limited" (sizes × unique tokens), "lr" (sizes × learning rate),
"single" (one size), "tiny" (three finished runs and no curves).
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sweep.fit import fit, fit_file
from sweep.fit import table as tables
from sweep.fit.dimension_check import by_size
from sweep.fit.rows import prepare

LAW = {"E": 1.7, "A": 30.0, "B": 600.0, "alpha": 0.36, "beta": 0.5}
SIZES = (820, 3_200, 6_300, 12_700, 25_000, 50_000, 127_000, 440_000)
BUDGETS = (1e11, 3e11, 9e11, 2.7e12)
UNIFORM = math.log(512)
HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned=1'> & \"quotes\""
META: dict[str, Any] = {
    "name": "example",
    "command": ["python", "-m", "sweep", "launch", "default"],
    "reference_lines": {"uniform": UNIFORM, "unigram": 5.21, "bigram": 4.12, "trigram": 3.62},
    "bytes_per_token": 1.93,
    "dollars_per_device_hour": 0.05,
    "device": ["cpu (2 cores)"],
    "flops_saved": 2.1e11,
}


def law(N: Any, D: Any) -> Any:
    """Loss in nats per token of the known law."""
    return LAW["E"] + LAW["A"] * N ** -LAW["alpha"] + LAW["B"] * D ** -LAW["beta"]


def write(folder: Path, kind: str = "normal") -> Path:
    """Write the sweep of this kind to `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(7)
    trials = [_finished(noise, **cell) for cell in _grid(kind)]
    if kind in ("normal", "refused"):
        _spoil(trials)
    table = pd.DataFrame(trials)
    table.to_parquet(folder / "table.parquet")
    (folder / "meta.json").write_text(json.dumps(META | {"name": kind}))
    if kind != "tiny":
        curves = pd.concat([_curve(row, noise) for row in trials if row["status"] in ("finished", "diverged")])
        curves.to_parquet(folder / "curves.parquet")
        _samples(curves).to_parquet(folder / "samples.parquet")
    if kind == "normal":
        data, curves, _ = tables.read(str(folder))
        rows = prepare(data)
        sizes = by_size(data, rows.row, rows.N, rows.D)
        fitted = fit.fit_rows(rows, curves, dimensions=sizes, command="python -m sweep fit example")
        fit_file.write(fitted, folder / "fit.json")
    else:
        (folder / "fit.json").write_text(json.dumps({"refused": "too few budgets (1): the fit needs at least 3"}))
    return folder


def _grid(kind: str) -> list[dict[str, Any]]:
    if kind == "data_limited":
        unique = (40_000, 160_000, 640_000, 2_560_000)
        return [{"N": n, "D": 2_560_000, "unique_tokens": u} for n in SIZES[1:6] for u in unique]
    if kind == "lr":
        multipliers = (0.25, 0.5, 1.0, 2.0, 4.0)
        return [{"N": n, "D": 1_000_000, "lr_multiplier": m, "tuning": True} for n in SIZES[1:6] for m in multipliers]
    if kind == "single":
        return [{"N": 12_700, "D": d} for d in (100_000, 300_000, 1_000_000, 3_000_000)]
    if kind == "tiny":
        return [{"N": n, "D": 300_000} for n in (3_200, 12_700, 50_000)]
    return [{"N": n, "D": round(c / _flops_per_token(n), -3)} for c in BUDGETS for n in _sizes_for(c)]


def _flops_per_token(N: float) -> float:
    return 6 * N + 40_000  # the second term stands for logits and attention


def _sizes_for(flops: float) -> tuple[int, ...]:
    middle = int(np.searchsorted(SIZES, 9_000 * (flops / 1e11) ** 0.45))
    return SIZES[max(0, middle - 3) : middle + 3]


def _finished(
    noise: np.random.Generator,
    N: int,
    D: float,
    unique_tokens: float = 5e7,
    lr_multiplier: float = 1.0,
    tuning: bool = False,
) -> dict[str, Any]:
    epochs = D / unique_tokens
    overfit = 0.12 * max(0.0, math.log(epochs)) * (N / 10_000) ** 0.4
    detuned = 0.12 * math.log(lr_multiplier / (N / 10_000) ** 0.6) ** 2 if tuning else 0.0
    best = float(law(N, D / max(1.0, epochs) ** 0.6)) + detuned + 0.004 * noise.standard_normal()
    width = int(8 * round((N / 12 / 2) ** 0.5 / 8) + 8)
    flops, speed = D * _flops_per_token(N), 3e5 / (1 + N / 40_000)
    return {
        "trial_id": f"n{N}-d{int(D)}-u{int(unique_tokens)}-m{lr_multiplier}",
        "family_id": f"n{N}-u{int(unique_tokens)}-m{lr_multiplier}",
        "status": "finished", "reason": None, "seed": 0, "params_non_embedding": N, "params_total": N + 1024 * width,
        "tokens": D, "flops": flops, "flops_per_token": _flops_per_token(N), "tokens_per_param": D / N,
        "unique_tokens": unique_tokens, "epochs": epochs, "loss_nats": best + overfit, "best_loss_nats": best,
        "best_tokens": D / max(1.0, epochs) ** 0.5, "train_loss_nats": best - 0.03 - 2.0 * overfit,
        "bits_per_byte": (best + overfit) / math.log(2) / 1.93, "lr": 3e-3 * lr_multiplier * (64 / width) ** 0.5,
        "lr_multiplier": lr_multiplier, "depth": 2, "width": width, "heads": max(1, width // 16), "seq_len": 128,
        "batch_tokens": 1024, "steps": int(D // 1024), "vocab_size": 512, "schedule": "wsd", "precision": "fp32",
        "intrinsic_dimension": 2.5 * math.log10(N), "dimension_points": 1000.0,
        "device": "cpu", "execution_class": "cpu-a1", "code_hash": "c0de01", "data_fingerprint": "f1d0",
        "wall_seconds": D / speed, "device_seconds": D / speed,
    }  # fmt: skip


def _spoil(rows: list[dict[str, Any]]) -> None:
    """Make one trial diverged, one failed and one missing, and give one record another code hash."""
    results = "loss_nats best_loss_nats best_tokens train_loss_nats bits_per_byte wall_seconds device_seconds"
    results += " intrinsic_dimension dimension_points"
    for place, status, reason in (
        (5, "diverged", "loss is not finite at step 212"),
        (9, "failed", "MemoryError: <b>out of memory</b>"),
        (14, "missing", None),
    ):
        rows[place] |= dict.fromkeys(results.split(), math.nan) | {"status": status, "reason": reason}
    rows[3]["code_hash"] = "c0de02"


def _curve(row: dict[str, Any], noise: np.random.Generator) -> pd.DataFrame:
    """Points of one trial: the family's stable curve up to 80% of the budget, then its own decay."""
    end = row["tokens"] * (1.0 if row["status"] == "finished" else 0.3)
    stable = 2.0 ** np.arange(11, 23, 0.5)
    stable = stable[stable <= 0.8 * end]
    decay = np.linspace(0.8, 1.0, 5)[1:] * end
    tokens = np.concatenate([stable, decay])
    loss = np.minimum(UNIFORM, law(row["params_non_embedding"], tokens) + 0.08)
    loss[len(stable) :] -= np.linspace(0.02, 0.08, len(decay))
    if row["status"] == "finished":
        loss[-1] = row["loss_nats"]
    train = loss - 0.02 + 0.02 * noise.standard_normal(len(loss))
    return pd.DataFrame(
        {
            "trial_id": row["trial_id"],
            "family_id": row["family_id"],
            "params_non_embedding": row["params_non_embedding"],
            "phase": ["stable"] * len(stable) + ["decay"] * len(decay),
            "step": (tokens // 1024).astype(int),
            "tokens": tokens,
            "flops": tokens * row["flops_per_token"],
            "lr": row["lr"],
            "train_loss_nats": train,
            "val_loss_nats": loss,
            "grad_norm": 0.5,
            "tokens_per_second": 2e5,
        }
    )


def _samples(curves: pd.DataFrame) -> pd.DataFrame:
    texts = ["éé}}(((", "self  the of", "def x(self):\n    return None\n", "import os\n\n\nclass Path:\n", HOSTILE]
    rows = []
    for trial_id, curve in curves.groupby("trial_id"):
        points = curve.iloc[np.linspace(0, len(curve) - 1, len(texts)).astype(int)]
        for text, step, tokens in zip(texts, points["step"], points["tokens"], strict=True):
            rows.append({"trial_id": trial_id, "step": step, "tokens": tokens, "text": text})
    return pd.DataFrame(rows)
