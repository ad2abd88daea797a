"""Fit a scaling law to a sweep's table, or to anybody's.

  python -m sweep fit default                                           a sweep that was collected
  python -m sweep fit runs.csv --columns N=size,D=tokens,loss=val       any two of N, D, C, and a loss
  python -m sweep fit export.csv                                        as W&B exports a project
  python -m sweep fit wandb:ENTITY/PROJECT                              the same, fetched, and kept as a CSV
  python -m sweep fit default --where "tokens_per_param > 5" --form kaplan_joint
  python -m sweep fit default --budget 1e15 --target-loss 2.8           the optimum for FLOPs, and the FLOPs for a loss

Writes fit.json (parameters, 90% intervals, the certificate of the search, approaches 1, 2 and 3 of Hoffmann
et al. 2022 to the frontier, every dropped row with its reason, hold-out by compute) into the sweep's folder and prints
a summary. For runs.csv it writes runs.fit.json and a report, runs.report/, beside the file.
"""

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from sweep.common import files
from sweep.common.errors import UserError
from sweep.common.units import parse_quantity
from sweep.fit import dimension_check, fit, fit_file, table, table_files, table_units
from sweep.fit.bootstrap import Interval
from sweep.fit.fit_file import Fit
from sweep.fit.foreign import as_sweep, from_wandb
from sweep.fit.frontier import Approach, Optimum
from sweep.fit.rows import FitError, alternatives, prepare
from sweep.report.answers import extrapolation, false_confidence
from sweep.runs.lookup import add_sweeps
from sweep.runs.sweepdir import SweepDir
from sweep.train.intrinsic_dimension import intrinsic_dimension

MOST_REPORTED = 5000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "table",
        metavar="TABLE",
        help="a sweep's name, a .csv, .json, .jsonl, .parquet or .xlsx file, or wandb:ENTITY/PROJECT",
    )
    add_sweeps(parser)
    parser.add_argument(
        "--columns",
        default="",
        metavar="ROLE=COLUMN,…",
        help="ROLE: N, D, C, loss, run, family, unique_tokens, steps, lr, weight, status or phase",
    )
    parser.add_argument(
        "--where",
        metavar="EXPR",
        help="use only these rows, e.g. 'tokens_per_param > 5 and note != \"bad\"'; names columns, N, D, C and loss",
    )
    parser.add_argument(
        "--units",
        default="",
        metavar="ROLE=UNIT,…",
        help="what the columns count in: N, D, C=FACTOR (N=1e6), loss=bits, perplexity or bits_per_byte",
    )
    parser.add_argument("--form", default="additive", help="the law's form (default: additive)")
    parser.add_argument("--objective", default="huber", help="huber, absolute or squares (default: huber)")
    parser.add_argument("--delta", type=float, default=1e-3, help="Huber's delta in log loss (default: 1e-3)")
    parser.add_argument("--n", default="non_embedding", metavar="CONVENTION", help="N: non_embedding or total")
    parser.add_argument("--c", default="exact", metavar="CONVENTION", help="C: exact (the table's), or 6nd")
    parser.add_argument(
        "--keep-undertuned", action="store_true", help="keep cells whose best learning rate is at an edge"
    )
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="refits for the intervals; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument(
        "--activations",
        metavar="FILE.npy",
        help="final-layer activations, for alpha beside 4/d (a sweep's own were measured in training)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the fit goes (default: beside the table)")
    parser.add_argument(
        "--budget", default="", metavar="C,…", help="also give the compute-optimal N and D for these FLOPs"
    )
    parser.add_argument("--target-loss", default="", metavar="L,…", help="also give the least FLOPs for these losses")
    parser.add_argument("--no-report", action="store_true", help="only the fit, where TABLE is a file")
    parser.add_argument("--json", action="store_true", help="print the fit as JSON and write nothing")


def run(args: argparse.Namespace) -> int:
    if not (args.bootstrap == 0 or 100 <= args.bootstrap <= 20_000):
        raise UserError(f"--bootstrap {args.bootstrap}: 0 for no intervals, or 100 to 20000 refits")
    source = fetched(args.table) if args.table.startswith(("wandb:", "https://", "http://")) else args.table
    data, curves, outputs = table.read(source, Path(args.sweeps))
    data = from_wandb(data)
    outputs = replace(outputs, folder=args.out) if args.out else outputs
    columns, where, keep = table.parse_columns(args.columns), args.where, args.keep_undertuned
    try:
        rows = prepare(
            data,
            columns=columns,
            where=where,
            n_convention=args.n,
            c_convention=args.c,
            units=table_units.parse(args.units),
            keep_undertuned=keep,
        )
        dimensions = dimension_check.by_size(data, rows.row, rows.N, rows.D)
        if args.activations:
            dimensions = [(None, intrinsic_dimension(table.read_activations(args.activations)))]
        result = fit.fit_rows(
            rows,
            curves,
            form=args.form,
            objective=args.objective,
            delta=args.delta,
            bootstrap=args.bootstrap,
            seed=args.seed,
            dimensions=dimensions,
            alternatives=alternatives(data, rows, columns=columns, where=where, keep_undertuned=keep),
            command=shlex.join(["python", "-m", "sweep", *sys.argv[1:]]),
        )
    except FitError as refusal:
        if outputs.is_sweep and not args.json:
            fit_file.write_refusal(str(refusal), outputs.path("fit.json"))
        raise
    if args.activations and not result.dimension:
        raise UserError(f"--activations: {args.form} has no exponent of N to compare with 4/d; leave the option out")
    if args.json:
        sys.stdout.write(result.to_json())
        return 0
    fit_file.write(result, outputs.path("fit.json"))
    print("\n".join([*summary(result), *answers(result, args), f"written to {outputs.path('fit.json')}"]))
    if outputs.is_sweep and not args.out:
        print(f"its report: python -m sweep report {args.table}")
    elif not outputs.is_sweep and not args.no_report:
        print(report_of(as_sweep(data, rows), result, table_files.name_of(Path(source)), outputs.path("report")))
    return 0


def fit_sweep(sweep: SweepDir) -> None:
    """`fit SWEEP` without an option."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([str(sweep.path)]))


def fetched(address: str) -> str:
    """A W&B project's runs as a CSV file here: its name."""
    from sweep.tracking import download  # plotting

    path, runs = download.project_table(address)
    target = Path(f"{path.replace('/', '-')}.csv")
    files.write(target, lambda file: runs.to_csv(file, index=False))
    print(f"{len(runs)} runs of {path} are in {target}", file=sys.stderr)
    return str(target)


def report_of(table: pd.DataFrame, fit: Fit, name: str, out: Path) -> str:
    """Write the report of a table that is no sweep's, and say where it is."""
    from sweep.report import report  # plotting
    from sweep.report.results import Results

    if len(table) > MOST_REPORTED:
        return f"no report: {len(table)} rows are more than a figure can show ({MOST_REPORTED})"
    report.write(Results(name=name, table=table, fit=fit, foreign=fit.columns), out)
    return f"its report: {out / 'report.html'}"


def summary(fit: Fit) -> list[str]:
    """The fit in a screenful for a terminal."""
    certificate = fit.certificate
    lines = [f"{fit.form} on {fit.rows_and_families}"]
    lines += [f"  dropped: {count} {reason}" for reason, count in fit.dropped_by_reason.items()]
    lines += [f"  {name:8} {number(v)}{ends(fit.interval(name))}" for name, v in fit.params.items()]
    lines.append(
        f"{certificate.verdict}: {certificate.starts_agreeing} of {certificate.starts} starts end there, "
        f"condition number {certificate.condition_number:.0f}"
    )
    lines += [f"  {name:17} {exponents(approach)}" for name, approach in fit.approaches.items()]
    lines += [f"  {in_words(best)}" for best in fit.targets]
    lines += extrapolation(fit.holdout)
    if found := fit.dimension:
        four = number(found.four_over_d) + ends(found.four_over_d_interval)
        lines.append(f"alpha = {number(found.alpha)} beside 4/d = {four}, d = {found.d:.1f} (a rough estimate)")
    told = fit.disagreements + false_confidence(fit.holdout) + fit.warnings
    lines += [f"warning: {text}" for text in told]
    return lines


def exponents(approach: Approach) -> str:
    """a and b of an approach with their intervals, or why it is refused."""
    if approach.a is None or approach.b is None:
        return f"refused: {approach.refused}"
    found = approach.intervals
    a = f"{approach.a:.3f}{ends(found.a if found else None)}"
    b = f"{approach.b:.3f}{ends(found.b if found else None)}"
    return f"N_opt ~ C^{a}   D_opt ~ C^{b}"


def answers(fit: Fit, args: argparse.Namespace) -> list[str]:
    """What was asked with --budget and --target-loss, a line each."""
    lines = []
    for text in filter(None, args.budget.split(",")):
        lines.append(in_words(fit.law.optimal(parse_quantity("--budget", text))))
    for text in filter(None, args.target_loss.split(",")):
        loss = parse_quantity("--target-loss", text)
        least = fit.law.compute_for_loss(loss)
        sure = ends(fit.law.compute_for_loss_interval(loss))
        lines.append(f"loss {loss:g} takes at least C = {least:.3g}{sure}: " + in_words(fit.law.optimal(least)))
    return lines


def in_words(best: Optimum) -> str:
    """A compute-optimal model with its intervals, in one line."""
    N, D = number(best.N) + ends(best.N_interval), number(best.D) + ends(best.D_interval)
    return f"C = {best.C:.2e}: N = {N}, D = {D}, loss = {number(best.loss_nats)}{ends(best.loss_nats_interval)}"


def number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"


def ends(interval: Interval | None) -> str:
    return f" [{number(interval.low)}, {number(interval.high)}]" if interval else ""
