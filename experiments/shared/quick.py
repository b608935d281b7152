"""`quick_jit`: a compilation that costs little, for programs that run once."""

import functools

import jax

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""jax.jit without LLVM's optimisations: on CPU a program of many random draws compiles in a tenth
of the time. Loops are slow in it."""
