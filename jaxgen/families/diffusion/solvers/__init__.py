"""Solvers: one step of sampling each. A solver is a factory `name(path, ...) -> Solver`."""

from jaxgen.families.diffusion.solvers.adaptive import adaptive
from jaxgen.families.diffusion.solvers.ancestral import ddim, ddpm
from jaxgen.families.diffusion.solvers.base import Solver
from jaxgen.families.diffusion.solvers.dpm import dpmpp_2m, dpmpp_2s, dpmpp_3m, dpmpp_sde_2m
from jaxgen.families.diffusion.solvers.edm import edm
from jaxgen.families.diffusion.solvers.flowturbo import flowturbo
from jaxgen.families.diffusion.solvers.ode import adams_bashforth, euler, heun
from jaxgen.families.diffusion.solvers.sde import euler_maruyama, predictor_corrector
from jaxgen.families.diffusion.solvers.unipc import unipc

__all__ = [
    "Solver",
    "adams_bashforth",
    "adaptive",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_sde_2m",
    "edm",
    "euler",
    "euler_maruyama",
    "flowturbo",
    "heun",
    "predictor_corrector",
    "unipc",
]
