"""What a launch on Slurm says to the person who typed it."""

from slurm.draft import Draft
from slurm.elements import Element
from slurm.pending import Missing
from slurm.submission import JobRef
from slurm.submit import Submitted
from sweep.common.units import counted
from sweep.plan.plan import Plan
from sweep.plan.price import price

SHOWN = 5  # families that are named for each reason; the others are counted


def submitted(done: Submitted) -> str:
    """The price of what is trained now, what was left alone, and the jobs."""
    plan, left = done.plan, done.missing
    finished = plan.done()
    if left.families:
        to_train = {family[0].family_id for family in left.families}
        others = {trial.trial_id for trial in plan.trials if trial.family_id not in to_train}
        first = price(plan, finished | others)
    else:
        first = f"{len(finished)} of {len(plan.trials)} trials have a record; nothing more to submit"
    lines = [f"sweep {plan.name}: {first}", *left_alone(left, plan)]
    if done.draft is not None:
        name = plan.sweep.name
        lines.append(submission(done.draft))
        lines.append(f"how it goes: python -m sweep status {name}   end it: python -m sweep cancel {name}")
    return "\n".join(lines)


def submission(made: Draft) -> str:
    """The arrays and the jobs beside them, with their ids if they have any."""
    this = made.submission
    families = sum(len(element.families) for element in made.elements)
    lines = [
        f"submission {this.folder.name}: {counted(families, 'family', 'families')} in "
        + counted(len(made.elements), "array element", "array elements")
    ]
    if this.prepare is not None:
        lines.append(f"  {_job(this.prepare)}: prepares the data; the arrays wait for it")
    for chunk in this.chunks:
        lines.append(f"  {_job(chunk)}: {_array(made.elements[chunk.tasks[0] : chunk.tasks[1] + 1])}")
    if this.collector is not None:
        lines.append(f"  {_job(this.collector)}: collects, fits and reports when they have ended")
    if made.left_out:
        lines.append(
            f"  {made.left_out} families do not fit cluster.slurm.max_submitted; launch again when these are done"
        )
    return "\n".join(lines)


def left_alone(left: Missing, plan: Plan) -> list[str]:
    """Lines about families that lack records and were not submitted."""
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


def _array(elements: list[Element]) -> str:
    """How many elements an array has, and what each of them gets."""
    fewest, most = (pick(element.workers for element in elements) for pick in (min, max))
    memory = f", {elements[0].memory_gib:g} GiB" if elements[0].memory_gib else ""
    workers = f"{fewest} to {most} workers" if fewest < most else counted(most, "worker", "workers")
    return f"{counted(len(elements), 'element', 'elements')} of {elements[0].bucket.name}{memory}, {workers} each"


def _job(job: JobRef) -> str:
    return f"job {job.job_id}" if job.job_id is not None else job.script
