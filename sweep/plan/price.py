"""What is left to train of a plan, and what that costs, in words."""

from sweep.common.units import counted, duration, format_bytes
from sweep.plan.packing import described
from sweep.plan.plan import Plan


def price(plan: Plan, done: set[str]) -> str:
    """One paragraph: what is left to do, in device time, wall time, dollars and disk."""
    left = plan.left(done)
    shared = sum(plan.family_seconds(family) for family in left)
    alone = sum(plan.estimates[t.trial_id].seconds for family in left for t in family)
    sources = sorted({plan.estimates[t.trial_id].source for family in left for t in family})
    if not left:
        return f"all {len(plan.trials)} trials are done" if len(plan.trials) > 1 else "the trial is done"
    rate = plan.config.cluster.dollars_per_device_hour
    dollars = shared / 3600 * rate
    said = f"${dollars:,.2f}" if dollars >= 0.01 else "under a cent"
    guess = " (a guess can be several times off; `plan --calibrate` measures)" if "guess" in sources else ""
    executions = "".join(f"\n{line}" for line in described(plan.executions))
    return (
        f"{len(done)} done, {sum(map(len, left))} to train in {counted(len(left), 'family', 'families')}\n"
        f"device time {duration(shared)} ({duration(alone)} without shared trunks), from: {', '.join(sources)}{guess}\n"
        f"price {said} at ${rate:.2f} a device-hour, disk up to {format_bytes(plan.disk_bytes())}"
        f"{executions}"
    )
