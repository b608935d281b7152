"""Laws and exact answers for one's own paths, solvers, guidance and samplers."""

from jaxgen.testing.laws import (
    ASYMMETRIC,
    check_compiles_once,
    check_ends,
    check_path,
    check_prediction,
    check_sampler,
    convergence_order,
    count_compilations,
    gaussian_denoiser,
    gaussian_flow,
    mixture_denoiser,
    mixture_log_prob,
    responsibilities,
    run_solver,
)

__all__ = [
    "ASYMMETRIC",
    "check_compiles_once",
    "check_ends",
    "check_path",
    "check_prediction",
    "check_sampler",
    "convergence_order",
    "count_compilations",
    "gaussian_denoiser",
    "gaussian_flow",
    "mixture_denoiser",
    "mixture_log_prob",
    "responsibilities",
    "run_solver",
]
