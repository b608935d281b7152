"""Frozen arrays are arguments of the programs: none of them is a constant of an update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.families.diffusion import denoising
from jaxgen.families.diffusion.descriptions.neighbours import neighbours
from jaxgen.families.diffusion.descriptions.representation import representation
from jaxgen.families.diffusion.terms.alignment import alignment
from jaxgen.method import Encoder, Spec
from jaxgen.nn.mlp import MLP
from jaxgen.nn.vqgan import VQGAN
from jaxgen.tokenizers.vqgan import vqgan
from jaxgen.training.ema import Averages

SPEC, SIZE = Spec((8, 8, 1), 3), 5000
ENCODER = Encoder(lambda p, x: x.reshape(len(x), -1) @ p, jnp.ones((64, SIZE // 64 + 1)))
DATA = np.random.default_rng(0).normal(size=(SIZE // 64 + 1, 8, 8, 1)).astype(np.float32)
SMALL = dict(out_channels=1, code_channels=8, channels=8, attention_levels=(), blocks=1, groups=4)


def diffusion(**options):
    net = MLP(num_classes=3, out_channels=1, width=16, depth=1)
    return denoising(SPEC, net, optax.sgd(0.1), Averages((10,)), **options)


METHODS = {
    "neighbours": lambda: diffusion(
        describe=neighbours(SPEC, encoder=ENCODER, database=(DATA, None), count=2)
    ),
    "representation": lambda: diffusion(describe=representation(SPEC, encoder=ENCODER, width=8)),
    "alignment": lambda: diffusion(terms=[alignment(SPEC, layer=1, encoder=ENCODER, width=8)]),
    "perceptual": lambda: vqgan(
        SPEC, VQGAN(**SMALL, widths=(8, 16)), optax.sgd(0.1), Averages((10,)), perceptual=ENCODER
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_an_update_holds_no_array_of_an_encoder_or_a_database(name):
    method = METHODS[name]()
    assert method.frozen and max(a.size for a in jax.tree.leaves(method.frozen)) >= SIZE
    state = jax.eval_shape(method.init, jax.random.key(0))
    # What nobody trains is in no part of the state.
    for part in (state.params, state.opt_state, state.ema):
        names = {str(getattr(p, "key", p)) for path, _ in jax.tree_util.tree_leaves_with_path(part)
                 for p in path}  # fmt: skip
        assert "frozen" not in names
    batch = {"image": jnp.zeros((4, 8, 8, 1)), "label": jnp.zeros(4, jnp.int32)}
    key = jax.random.key(0)
    traced = jax.make_jaxpr(method.update)(state, batch, key, method.frozen)
    assert max((np.size(c) for c in traced.consts), default=0) < 1000
    # Where they are not given they are constants, which is how the test sees one.
    alone = jax.make_jaxpr(lambda *a: method.update(*a))(state, batch, key)
    assert max(np.size(c) for c in alone.consts) >= SIZE
