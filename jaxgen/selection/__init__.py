"""Which generator is best, found out with few samples: bandits whose arms are generators.

from jaxgen.selection import of_model, select
arms = [of_model(jaxgen.load(workdir), classifier) for workdir in workdirs]
print(select(arms, classifier.features(real_images), rounds=200).shares)
"""

from jaxgen.selection.fid_ucb import (
    Selection,
    of_model,
    play,
    select,
    select_by_inception_score,
)
from jaxgen.selection.pak_ucb import choose, fourier_ridge, kernel_ridge

__all__ = [
    "Selection",
    "choose",
    "fourier_ridge",
    "kernel_ridge",
    "of_model",
    "play",
    "select",
    "select_by_inception_score",
]
