"""Energy-based models: p(x | y) in proportion to exp(-E(x, y)), sampled by Langevin chains."""

from jaxgen.families.energy.method import energy

__all__ = ["energy"]
