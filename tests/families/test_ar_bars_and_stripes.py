"""Bars and stripes: the patterns by brute force, and their entropies."""

import itertools

import numpy as np
import pytest

from jaxgen.data.bars_and_stripes import bars_and_stripes, entropy
from jaxgen.errors import UsageError


@pytest.mark.parametrize(
    ("size", "nats", "apart"), [(2, 1.791759, 2.772589), (3, 2.639057, 6.238325)]
)
def test_the_law_is_that_of_the_patterns_by_brute_force(size, nats, apart):
    source = bars_and_stripes(size=size)
    every = np.array(list(itertools.product((-1, 1), repeat=size**2))).reshape(-1, size, size)
    equal = (every == every[:, :, :1]).all((1, 2)) | (every == every[:, :1]).all((1, 2))
    want = {a.tobytes() for a in every[equal].astype(np.float32)}
    images = source.images(np.arange(len(source)))
    assert [a.tobytes() for a in images] != [] and {a.tobytes() for a in images} == want
    assert len(source) == len(want) and source.shape == (size, size, 1)
    assert source.levels == 2 and source.num_classes == 1
    assert entropy(size) == pytest.approx(nats, abs=1e-6) == np.log(len(source))
    # Independent pixels cannot do better than this.
    p = (images[..., 0] > 0).mean(0)
    assert -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum() == pytest.approx(apart, abs=1e-6)


def test_both_splits_are_the_law_and_others_are_refused():
    a, b = (bars_and_stripes(split).images(np.arange(14)) for split in ("train", "test"))
    np.testing.assert_array_equal(a, b)
    with pytest.raises(UsageError, match="source.split"):
        bars_and_stripes("all")
    with pytest.raises(UsageError, match="source.size: got 1"):
        bars_and_stripes(size=1)
