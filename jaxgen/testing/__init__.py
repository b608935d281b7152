"""A property-test kit for your own pieces, with exact answers to test them against.

`check_*` functions raise AssertionError whose message begins with the name of the law that is
broken. jaxgen's own tests run every piece of jaxgen through them. Start at `docs/testing.md`.
"""

from jaxgen.testing import strategies
from jaxgen.testing.convergence import convergence_order, run_solver
from jaxgen.testing.exact import (
    ASYMMETRIC,
    gaussian_denoiser,
    gaussian_flow,
    mixture_denoiser,
    mixture_log_prob,
    responsibilities,
)
from jaxgen.testing.functions import (
    check_compiles_once,
    check_derivative,
    check_variants,
    count_compilations,
)
from jaxgen.testing.guidance import check_denoiser, check_guidance, check_weights
from jaxgen.testing.kernels import (
    check_forward,
    check_gradient,
    check_jvp,
    check_kernel,
    check_unseen,
)
from jaxgen.testing.losses import check_loss
from jaxgen.testing.methods import (
    check_devices,
    check_loss_falls,
    check_method,
    check_resume,
    check_steps,
)
from jaxgen.testing.metrics import check_metric, rotation, translation
from jaxgen.testing.naming import law
from jaxgen.testing.networks import check_alone, check_network, live_variables
from jaxgen.testing.paths import check_path, check_prediction
from jaxgen.testing.samplers import check_sampler
from jaxgen.testing.solvers import check_calls, check_ends, check_order, check_solver

__all__ = [
    "ASYMMETRIC",
    "check_alone",
    "check_calls",
    "check_compiles_once",
    "check_denoiser",
    "check_derivative",
    "check_devices",
    "check_ends",
    "check_forward",
    "check_gradient",
    "check_guidance",
    "check_jvp",
    "check_kernel",
    "check_loss",
    "check_loss_falls",
    "check_method",
    "check_metric",
    "check_network",
    "check_order",
    "check_path",
    "check_prediction",
    "check_resume",
    "check_sampler",
    "check_solver",
    "check_steps",
    "check_unseen",
    "check_variants",
    "check_weights",
    "convergence_order",
    "count_compilations",
    "gaussian_denoiser",
    "gaussian_flow",
    "law",
    "live_variables",
    "mixture_denoiser",
    "mixture_log_prob",
    "responsibilities",
    "rotation",
    "run_solver",
    "strategies",
    "translation",
]
