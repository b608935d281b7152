"""Solvers: one step of sampling each. A solver is a factory `name(path, ...) -> Solver`."""

from jaxgen.families.diffusion.solvers.ancestral import ddim, ddpm
from jaxgen.families.diffusion.solvers.base import Solver
from jaxgen.families.diffusion.solvers.dpm import dpmpp_2m, dpmpp_2s, dpmpp_3m, dpmpp_sde_2m
from jaxgen.families.diffusion.solvers.ode import adams_bashforth, euler, heun

__all__ = [
    "Solver",
    "adams_bashforth",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_sde_2m",
    "euler",
    "heun",
]
