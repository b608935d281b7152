"""Which generator is best, found out with few samples: bandits whose arms are generators.

from jaxgen.selection import asymptotic_bound, of_model, select
arms = [of_model(jaxgen.load(workdir), classifier) for workdir in workdirs]
real = classifier.features(real_images)
print(select(arms, real, rounds=200, bound=asymptotic_bound).shares)
"""

from jaxgen.selection.fid_ucb import (
    Selection,
    asymptotic_bound,
    frechet_bound,
    of_model,
    play,
    select,
    select_by_inception_score,
)
from jaxgen.selection.pak_ucb import choose, fourier_ridge, kernel_ridge

__all__ = [
    "Selection",
    "asymptotic_bound",
    "choose",
    "fourier_ridge",
    "frechet_bound",
    "kernel_ridge",
    "of_model",
    "play",
    "select",
    "select_by_inception_score",
]
