"""Scores: features -> statistics -> value, each with its floor beside it and a receipt.

    from jaxgen.metrics.evaluate import evaluate
    network = cached("classifier.safetensors", train["image"], train["label"], 10)
    scores, about = evaluate(samples, labels, train, test, network)

Functions that are named as their module (`evaluate.evaluate`, `quantise.quantise`,
`receipt.receipt`) are imported from there.
"""

from jaxgen.metrics.evaluate import feature_scores
from jaxgen.metrics.extractors.classifier import Classifier, Training, cached, train_classifier
from jaxgen.metrics.receipt import Sampling
from jaxgen.metrics.sets.side import Extractor

__all__ = [
    "Classifier",
    "Extractor",
    "Sampling",
    "Training",
    "cached",
    "feature_scores",
    "train_classifier",
]
