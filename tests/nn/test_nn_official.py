"""Networks called by a paper's name compute what the paper's code does, weight for weight.

`tests/nn/official.py` has each written down a second time in PyTorch; without PyTorch the golden
numbers at the end of each section, computed once by those, hold the same.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.nn.dit import DiT, SiT
from jaxgen.pretrained.dit import from_official
from tests.nn_kit import abstract, inputs, quick_jit


def official():
    pytest.importorskip("torch")
    from tests.nn import official

    return official


def arrays(state):
    return {name: value.numpy() for name, value in state.items()}


def close(got, want, tolerance=2e-5):
    """Within `tolerance` of the largest number, which is not small."""
    want = np.asarray(want)
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def fits(params, module, shape):
    wanted = abstract(module, shape)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda a: a.shape, wanted)


def golden(module, shape, *, scale=0.3, **options):
    """Four numbers of the output at weights and an image that are sines of their places."""
    tree = abstract(module, shape)["params"]
    leaves, structure = jax.tree.flatten(tree)
    made, start = [], 0
    for leaf in leaves:
        place = start + np.arange(leaf.size, dtype=np.float64)
        made.append((scale * np.sin(1.7 * place)).reshape(leaf.shape).astype(np.float32))
        start += leaf.size
    _, noise, labels = inputs(shape, 2)
    x = np.sin(0.37 * np.arange(2 * np.prod(shape))).reshape(2, *shape).astype(np.float32)
    params = jax.tree.unflatten(structure, made)
    out = quick_jit(module.apply)({"params": params}, x, noise, labels, **options)
    flat = np.asarray(out).reshape(-1)
    return flat[np.linspace(0, flat.size - 1, 4).astype(int)]


# --- DiT and SiT ---

IMAGE = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
LABELS = np.array([0, 3, 6, 7])  # 7: no label
SMALL_DIT = dict(depth=3, width=48, patch=2)


def dit_peers(t):
    torch, theirs = pytest.importorskip("torch"), official()
    state = theirs.weights(theirs.dit_shapes(channels=3, classes=7, **SMALL_DIT))
    nchw = torch.tensor(IMAGE).permute(0, 3, 1, 2)
    want = theirs.dit(state, nchw, torch.tensor(t), torch.tensor(LABELS), depth=3, heads=3, patch=2)
    return arrays(state), want.permute(0, 2, 3, 1).numpy()


@pytest.mark.parity
def test_dit_is_told_the_index_and_equals_the_papers():
    index = np.array([0.0, 4.0, 500.0, 999.0], "float32")
    state, want = dit_peers(index)
    ours = DiT(num_classes=7, out_channels=6, heads=3, time_scale=1.0, **SMALL_DIT)
    params = from_official(state, patch=2, heads=3)
    fits(params, ours, (8, 8, 3))
    close(quick_jit(ours.apply)({"params": params}, IMAGE, index, LABELS), want)


@pytest.mark.parity
def test_sit_is_told_its_own_time_and_equals_the_papers():
    """Its velocity points to the data, and the half that is never read is left out."""
    time = np.array([0.0, 0.3, 0.71, 1.0], "float32")  # SiT's: 1 is data
    state, want = dit_peers(time)
    ours = SiT(num_classes=7, out_channels=3, heads=3, **SMALL_DIT)
    params = from_official(state, patch=2, heads=3, sit=True)
    fits(params, ours, (8, 8, 3))
    close(quick_jit(ours.apply)({"params": params}, IMAGE, 1 - time, LABELS), -want[..., :3])


def test_official_weights_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="x_embedder.proj.weight"):
        from_official({}, patch=2, heads=3)
    with pytest.raises(UsageError, match="patch: got 4.*2, the checkpoint's"):
        from_official({"x_embedder.proj.weight": np.zeros((8, 3, 2, 2))}, patch=4, heads=3)
