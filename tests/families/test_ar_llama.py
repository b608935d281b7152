"""Llama: the paper's sizes, transformers' Llama, causality, and decoding with kept keys."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.nn.llama import Llama
from tests.nn_kit import quick_jit

# Sun et al. 2024, table 1 (XXL: "1.4B"; 3B: "3.1B"), millions.
PAPER = {"B": 111, "L": 343, "XL": 775, "XXL": 1400, "3B": 3100}
TINY = dict(num_classes=3, levels=7, depth=2, width=16, heads=2, multiple=8)


def live(module: Llama, scale: float = 0.3):
    """Random parameters, none of them at its start of 0 or 1, and tokens and labels for them."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, module.levels, (3, math.prod(module.shape))), jnp.int32)
    labels = jnp.array([0, 2, 3], jnp.int32)
    abstract = jax.eval_shape(module.init, jax.random.key(0), tokens, labels)["params"]
    params = jax.tree.map(
        lambda a: jnp.asarray(scale * rng.normal(size=a.shape), a.dtype), abstract
    )
    return params, tokens, labels


@pytest.mark.parametrize("size", PAPER)
def test_sizes_have_the_papers_parameters(size):
    module = Llama(1000, 16384, (16, 16), size)
    tokens, labels = jnp.zeros((1, 256), jnp.int32), jnp.zeros(1, jnp.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), tokens, labels)["params"]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert count / 1e6 == pytest.approx(PAPER[size], rel=0.01)


def test_at_initialisation_every_token_is_equally_likely():
    module = Llama(shape=(2, 3), **TINY)
    tokens, labels = jnp.zeros((2, 6), jnp.int32), jnp.array([0, 3])
    variables = quick_jit(module.init)(jax.random.key(0), tokens, labels)
    assert not jnp.any(quick_jit(module.apply)(variables, tokens, labels))


@pytest.mark.parity
def test_forward_equals_transformers_llama():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    module = Llama(shape=(3, 4), **TINY)
    params, tokens, labels = live(module)
    theirs = hugging_face(torch, transformers, module, params)
    with torch.no_grad():
        want = theirs(inputs_embeds=sequence(torch, params, tokens, labels)).logits.numpy()
    got = quick_jit(module.apply)({"params": params}, tokens, labels)
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def hugging_face(torch, transformers, module: Llama, params):
    """transformers' LlamaForCausalLM with our weights; the rotary angles are ours, in 2-D."""
    hidden = params["blocks"]["contract"]["kernel"].shape[1]
    config = transformers.LlamaConfig(
        vocab_size=module.levels, hidden_size=module.width, intermediate_size=hidden,
        num_hidden_layers=module.depth, num_attention_heads=module.heads,
        num_key_value_heads=module.heads, rms_norm_eps=1e-5, tie_word_embeddings=False,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()

    def tensor(a):
        return torch.tensor(np.asarray(a).copy())

    blocks, state = params["blocks"], {}
    for i in range(module.depth):
        name = f"model.layers.{i}."
        # Our columns go head by head: a head's query, key and value.
        qkv = np.reshape(blocks["qkv"]["kernel"][i], (module.width, module.heads, 3, -1))
        q, k, v = (tensor(qkv[:, :, j].reshape(module.width, -1).T) for j in range(3))
        gate, up = (tensor(blocks[n]["kernel"][i].T) for n in ("gate", "value"))
        state |= {
            name + "self_attn.q_proj.weight": q,
            name + "self_attn.k_proj.weight": k,
            name + "self_attn.v_proj.weight": v,
            name + "self_attn.o_proj.weight": tensor(blocks["proj"]["kernel"][i].T),
            name + "mlp.gate_proj.weight": gate,
            name + "mlp.up_proj.weight": up,
            name + "mlp.down_proj.weight": tensor(blocks["contract"]["kernel"][i].T),
            name + "input_layernorm.weight": tensor(blocks["attention_norm"]["scale"][i]),
            name + "post_attention_layernorm.weight": tensor(blocks["mlp_norm"]["scale"][i]),
        }
    state["model.embed_tokens.weight"] = tensor(params["tokens"]["embedding"])
    state["model.norm.weight"] = tensor(params["norm"]["scale"])
    state["lm_head.weight"] = tensor(params["out"]["kernel"].T)
    theirs.load_state_dict(state)
    angles = tensor(module._angles(module._length))

    class Rotary(torch.nn.Module):
        def forward(self, x, position_ids):
            both = torch.cat([angles, angles], dim=-1)[position_ids[0]][None]
            return both.cos(), both.sin()

    theirs.model.rotary_emb = Rotary()
    return theirs


def sequence(torch, params, tokens, labels):
    """The label's embedding, then the tokens' but the last."""
    first = np.asarray(params["labels"]["embedding"])[np.asarray(labels)][:, None]
    rest = np.asarray(params["tokens"]["embedding"])[np.asarray(tokens)][:, :-1]
    return torch.tensor(np.concatenate([first, rest], axis=1))


@pytest.mark.parametrize("shape", [(3, 3), (2, 2, 3)], ids=str)
def test_a_row_depends_on_the_label_and_on_all_tokens_before_it_alone(shape):
    module = Llama(shape=shape, **TINY)
    params, tokens, labels = live(module)
    apply = quick_jit(module.apply)
    base = apply({"params": params}, tokens, labels)
    for j in range(tokens.shape[1]):
        moved = apply({"params": params}, tokens.at[:, j].add(1) % 7, labels)
        change = np.abs(moved - base).max((0, 2))
        assert (change[: j + 1] == 0).all(), "a row saw its own token or a later one"
        assert (change[j + 1 :] > 1e-6).all(), "a later row did not see the token"
    other = apply({"params": params}, tokens, (labels + 1) % 4)
    assert (np.abs(other - base).max(2) > 1e-6).all()


def test_without_causality_every_row_sees_every_token_and_the_mask():
    module = Llama(shape=(2, 3), causal=False, extra=1, **TINY)
    params, tokens, labels = live(module)
    tokens = tokens.at[0, 2].set(7)  # the mask
    apply = quick_jit(module.apply)
    base = apply({"params": params}, tokens, labels)
    assert base.shape == (3, 6, 7) and jnp.isfinite(base).all()
    for j in range(6):
        moved = apply({"params": params}, tokens.at[:, j].add(1) % 8, labels)
        assert (np.abs(moved - base).max((0, 2)) > 1e-6).all()
    assert jnp.isnan(apply({"params": params}, tokens.at[0, 0].set(8), labels)[0]).any()


@pytest.mark.parametrize("shape", [(3, 4), (2, 2, 3)], ids=str)
def test_decoding_with_kept_keys_gives_the_rows_of_the_whole(shape):
    module = Llama(shape=shape, **TINY)
    params, tokens, labels = live(module)
    whole = quick_jit(module.apply)({"params": params}, tokens, labels)

    @quick_jit
    def rows(params, tokens, labels, wrong=0):
        memory, step = module.decoder(params, labels)
        body = lambda memory, i: step(memory, tokens, i)[::-1]
        return jax.lax.scan(body, memory, jnp.arange(tokens.shape[1]) + wrong)[1].swapaxes(0, 1)

    assert np.abs(whole).max() > 1
    np.testing.assert_allclose(rows(params, tokens, labels), whole, atol=1e-4)
    # One place off is not the same: the comparison can fail.
    assert np.abs(rows(params, tokens, labels, wrong=1) - whole).max() > 0.1


def test_bfloat16_decodes_as_it_predicts():
    module = Llama(shape=(3, 4), dtype="bfloat16", **TINY)
    params, tokens, labels = live(module, 0.1)
    whole = quick_jit(module.apply)({"params": params}, tokens, labels)
    memory, step = module.decoder(params, labels)
    first, _ = quick_jit(step)(memory, tokens, jnp.int32(0))
    assert first.dtype == whole.dtype == jnp.float32
    np.testing.assert_allclose(first, whole[:, 0], atol=0.02 * np.abs(whole).max())


def test_stacked_and_unrolled_layers_agree_and_dropout_is_live():
    module = Llama(shape=(2, 3), dropout=0.5, **TINY)
    params, tokens, labels = live(module)
    a = quick_jit(module.apply)({"params": params}, tokens, labels)
    b = quick_jit(module.clone(scan=False, remat="none").apply)({"params": params}, tokens, labels)
    np.testing.assert_allclose(a, b, atol=1e-5)
    keys = {"dropout": jax.random.key(0)}
    c = module.apply({"params": params}, tokens, labels, train=True, rngs=keys)
    assert np.abs(c - a).max() > 0.1


def test_bad_options_name_themselves():
    tokens, labels = jnp.zeros((1, 6), jnp.int32), jnp.zeros(1, jnp.int32)
    for module, message in (
        (Llama(shape=(2, 3), **{**TINY, "width": 18}), "model.width: got 18"),
        (Llama(shape=(2, 4), **TINY), r"tokens: got \(1, 6\).*\[B, 8\]"),
        (Llama(shape=(6,), **TINY), r"model.shape: got \(6,\)"),
    ):
        with pytest.raises(UsageError, match=message):
            jax.eval_shape(module.init, jax.random.key(0), tokens, labels)
    with pytest.raises(UsageError, match="model.size.*'XXL'"):
        Llama(1, 2, (2, 2), "XX")
    out = Llama(shape=(2, 3), **TINY)
    params, tokens, _ = live(out)
    assert jnp.isnan(out.apply({"params": params}, tokens, jnp.full(3, 4))).all()
