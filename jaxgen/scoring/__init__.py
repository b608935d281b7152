"""Score, classify and measure likelihoods with a trained model, and write the receipts."""

from jaxgen.scoring.classify import classification_line, classify
from jaxgen.scoring.files import evaluate_files
from jaxgen.scoring.likelihood import likelihood, likelihood_line
from jaxgen.scoring.samples import check_evaluation, evaluate, lines, title

__all__ = [
    "check_evaluation",
    "classification_line",
    "classify",
    "evaluate",
    "evaluate_files",
    "likelihood",
    "likelihood_line",
    "lines",
    "title",
]
