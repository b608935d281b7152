"""What tests of imported checkpoints share: files to import, and their own samplers' loops."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxgen.api import import_checkpoint, load


def official():
    """The papers' networks in PyTorch (`tests/nn/official.py`)."""
    pytest.importorskip("torch")
    from tests.nn import official

    return official


def written(path, state):
    """A safetensors file of arrays or tensors."""
    save_file({k: np.asarray(a).copy(order="C") for k, a in state.items()}, path)
    return path


def model(source, out, *overrides, **options):
    """The model that is made of a source."""
    import_checkpoint(source, out, overrides=overrides, **options)
    return load(out)


def close(got, want, tolerance):
    """Within `tolerance` of the largest number, which is not small."""
    want = np.asarray(want)
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def nchw(x):
    import torch

    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1).numpy()
