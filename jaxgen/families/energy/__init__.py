"""Energy-based models: by Langevin chains from exp(-E), and idempotent networks."""

from jaxgen.families.energy.idempotent import idempotent
from jaxgen.families.energy.method import energy

__all__ = ["energy", "idempotent"]
