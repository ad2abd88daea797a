"""What a launch on Slurm says to the person who typed it."""

from slurm.draft import Draft
from slurm.missing import Missing
from slurm.submission import JobRef
from sweep.plan import Plan

SHOWN = 5  # families of a kind, before it is only how many


def submission(made: Draft) -> str:
    """Arrays and the jobs beside them, with their ids once they have some."""
    this = made.submission
    families = sum(len(element.families) for element in made.elements)
    lines = [f"submission {this.folder.name}: {families} families in {len(made.elements)} array elements"]
    if this.prepare is not None:
        lines.append(f"  {_job(this.prepare)}: prepares the data, the arrays wait for it")
    for chunk in this.chunks:
        inside = made.elements[chunk.tasks[0] : chunk.tasks[1] + 1]
        fewest, most = (pick(element.workers for element in inside) for pick in (min, max))
        workers = f"{fewest} to {most}" if fewest < most else f"{most}"
        lines.append(f"  {_job(chunk)}: elements × time × workers: {len(inside)} × {inside[0].bucket.name} × {workers}")
    if this.collector is not None:
        lines.append(f"  {_job(this.collector)}: collects, fits and reports when they have ended")
    if made.left_out:
        lines.append(
            f"  {made.left_out} families do not fit cluster.slurm.max_submitted; launch again when these are done"
        )
    return "\n".join(lines)


def left_alone(left: Missing, plan: Plan) -> list[str]:
    """Lines on families that lack records and were not submitted."""
    lines = []
    for what, families in (("in the queue already", left.queued), ("being trained", left.held)):
        lines += [f"{what}, left alone: {name}, {where}" for name, where in list(families.items())[:SHOWN]]
        if len(families) > SHOWN:
            lines.append(f"{what}, left alone: {len(families) - SHOWN} more families")
    if left.given_up:
        some = ", ".join(left.given_up[:3]) + (", …" if left.given_up[3:] else "")
        lines.append(
            f"{len(left.given_up)} families were given up after attempts without progress ({some}); when the reason is "
            f"corrected: python -m sweep retry {plan.name}"
        )
    return lines


def _job(job: JobRef) -> str:
    return f"job {job.job_id}" if job.job_id is not None else job.script
