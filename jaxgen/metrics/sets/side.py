"""From sets of images to the sides of a comparison: features by an extractor, names of scores."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from jaxgen.data import Streamed
from jaxgen.metrics.scores.table import Pair, Side
from jaxgen.metrics.sets.reading import Set

DRAWS = 20
"""Random halves that an interval is from, where nobody says."""
# A pass over the distances of 3,000 images with 2,048 features to 3,000 others.
_CHEAP = 2e10


class Extractor(Protocol):
    """What turns images uint8 [N, H, W, C] into features [N, d]; `Classifier` is one.

    name: a part of the scores' names ("classifier", "inception"). digest: of its weights. One that
    has more to say of an image than its features has a method `parts`, too: images -> {"features",
    and of "spatial" [N, e] and "probabilities" [N, C] what there is}.
    """

    @property
    def name(self) -> str:
        """A part of the scores' names."""
        ...

    @property
    def digest(self) -> str:
        """What tells two extractors of one name apart."""
        ...

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features [N, d] of images uint8 [N, H, W, C]."""
        ...


def parts(extractor: Extractor, images: np.ndarray | Streamed) -> dict[str, np.ndarray]:
    """All that an extractor says of images uint8 [N, H, W, C], by name; "features" is one.

    images: an array, or `jaxgen.data.Streamed`.
    """
    if isinstance(images, Streamed):
        said = [parts(extractor, chunk) for chunk in images.chunks()]
        return {name: np.concatenate([part[name] for part in said]) for name in said[0]}
    more = getattr(extractor, "parts", None)
    arrays = {"features": extractor.features(images)} if more is None else more(images)
    return {name: np.asarray(array) for name, array in arrays.items()}


def side(data: Set, extractor: Extractor, name: str) -> Side:
    """The features of a set of images. name: what messages call it."""
    assert data.images is not None
    arrays = parts(extractor, data.images)
    spatial, probabilities = arrays.get("spatial"), arrays.get("probabilities")
    return Side(arrays["features"], data.labels, None, name, spatial, probabilities)


def title(score: str, extractor: Extractor | None, count: int | None) -> str:
    """What a score is called, so that two of one name can be compared.

    extractor: None for features that the user brings, whose names are the plain ones. count: of
    samples; "fid" by itself is the standard network's of 50,000.
    """
    if extractor is None:
        return score
    if extractor.name != "inception":
        if "fid" in score:
            return score.replace("fid", f"fd_{extractor.name}")
        return f"{score}_{extractor.name}"
    if "fid" not in score:
        return score if score == "inception_score" else f"{score}_inception"
    count = count or 0
    short = f"{count // 1000}k" if count % 1000 == 0 else str(count)
    return score if count == 50_000 else score.replace("fid", f"fid_{short}")


def draws(pair: Pair) -> int:
    """How many random halves intervals are from where nobody says; 0 where it would take long."""
    sizes = [
        len(s.given) if s.given is not None else s.moments.size for s in (pair.real, pair.made)
    ]
    return DRAWS if float(max(sizes)) ** 2 * pair.made.width <= _CHEAP else 0


def source(extractor: Extractor | None) -> dict[str, Any]:
    """The extractor, for a receipt."""
    if extractor is None:
        return {"features": "identity", "digest": None}
    return {"features": extractor.name, "digest": extractor.digest}
