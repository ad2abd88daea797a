"""The forms of a scaling law by name. A further form is one more file and one more line here."""

from sweep.common.errors import UserError
from sweep.fit.kaplan_joint import KaplanJoint
from sweep.fit.law import Law
from sweep.fit.power_laws import ADDITIVE, KAPLAN_STEPS, PER_RATIO, power_law
from sweep.fit.repeated_data import Repeated

LAWS: dict[str, Law] = {
    law.name: law
    for law in [
        ADDITIVE,
        *(power_law(variable, floor) for variable in "NDC" for floor in (True, False)),
        KaplanJoint(),
        KAPLAN_STEPS,
        Repeated(excess_params=False),
        Repeated(excess_params=True),
        PER_RATIO,
    ]
}


def law_named(name: str) -> Law:
    """The form called `name`. UserError lists the forms."""
    if name not in LAWS:
        raise UserError(f"--form {name}: no such form; there is {', '.join(LAWS)}")
    return LAWS[name]
