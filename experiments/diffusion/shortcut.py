"""Shortcut models: a jump learns what two halves of it do, down to flow matching."""

from __future__ import annotations

from experiments.check import Check, control, mean_below, mean_near
from experiments.diffusion.jump_fit import MEAN, STD, errors, samples, trained
from jaxgen.families.diffusion.jumps import shortcut

PAPER = "One Step Diffusion via Shortcut Models"
ENTRY = "jaxgen.families.diffusion.jumps.shortcut"


def checks() -> list[Check]:
    """The learned u against (z_t - z_{t-h}) / h, then samples of one jump and of four."""
    m, params = trained(shortcut, share=0.5)
    _, plain = trained(shortcut, share=0.0)
    found = []
    for t, h in ((1.0, 1.0), (0.75, 0.25)):
        check = f"error of the mean velocity from t={t:g} over h={h:g}"
        found.append(mean_below(check, errors(params, t, h), 0.1))
        found.append(control(mean_below(check, errors(plain, t, h), 0.1)))
    for steps in (1, 4):
        x = samples(m, params, steps)
        found.append(mean_near(f"mean, {steps} steps", x.mean(1), MEAN, 0.06))
        check = f"deviation, {steps} steps"
        found.append(mean_near(check, x.std(1), STD, 0.06))
        if steps == 1:
            y = samples(m, plain, steps)
            found.append(control(mean_near(check, y.std(1), STD, 0.06)))
    return found
