"""CFG++ (Chung et al. 2024): guide the data estimate, renoise with the unconditional noise."""

from __future__ import annotations

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.guidance.pair import At, Guided, needs_pair, ruled


def cfgpp(guided: Denoiser) -> Guided:
    """x0 of the guided estimate with eps of the unconditional one.

    The pair's weight is their lambda, in [0, 1]; 0 is the unconditional model itself. Every solver
    that steps by alpha_s x0 + sigma_s eps (DDIM, Euler, DPM-Solver++) becomes its CFG++ version;
    x = alpha x0 + sigma eps no longer holds.
    """
    old = needs_pair(guided, "cfgpp")
    if not 0 <= old.weight <= 1:
        raise invalid("guidance.weight", old.weight, "0 <= weight <= 1 under cfgpp (its lambda)")
    if old.weight == 0:
        return old

    def rule(p: Prediction, q: Prediction, at: At, memory: Memory) -> tuple[Prediction, Memory]:
        out, memory = old.rule(p, q, at, memory)
        return out._replace(eps=q.eps), memory

    return ruled(old, rule, old.start)
