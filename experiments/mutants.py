"""Small mistakes put into the code one at a time, to see whether a test notices.

    python -m experiments.mutants            # all of them, with the tests that each one names
    python -m experiments.mutants dropout    # those with this word in their name
    python -m experiments.mutants --list

Prints what happened to each; exits with 1 where one survives. A mutant is a text that stands once
in a file and what is put in its place: one that does not apply is stale, which is an error here and
in tests/experiments/test_mutants.py. Tests run in a copy of the tree, one mutant at a time, or in
`--jobs` copies.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from jaxgen.errors import UsageError, invalid

ROOT = Path(__file__).resolve().parent.parent
TREE = ("jaxgen", "tests", "experiments", "configs", "docs", "colab", "pyproject.toml", "README.md")
SECONDS = 900
"""A mutant whose tests take longer has made a program that does not end: it is noticed."""


class Mutant(NamedTuple):
    """In `file`, `old` becomes `new`; tests: arguments of pytest, likeliest to notice first."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """The file's text with the mistake. Raises UsageError where `old` is not there once."""
        if text.count(self.old) != 1:
            seen = f"{text.count(self.old)} times in {self.file}"
            raise invalid(f"mutant {self.name!r}", seen, "a text that stands there once")
        return text.replace(self.old, self.new)


OPTION, PIECE = "tests/config/test_every_option.py", "tests/config/test_every_piece.py"
RUN = "tests/config/test_every_run_option.py"
DIFFUSION = "jaxgen/families/diffusion/"
LOSS = "tests/families/test_diffusion_loss.py"


def swept(case: str) -> tuple[str, ...]:
    """The sweeps of the options of one case."""
    return (f"{OPTION}::test_another_value_is_another_program[{case}]",)


TRAINING = (
    Mutant(
        "label dropout by the time's key",
        DIFFUSION + "terms/loss.py",
        "drop_labels(fold(keys, LABEL), told",
        "drop_labels(fold(keys, TIME), told",
        (f"{LOSS}::test_which_labels_are_dropped_does_not_depend_on_the_time_or_the_noise",),
    ),
    Mutant(
        "the variance bound trains the mean",
        DIFFUSION + "terms/variance.py",
        "out = jax.lax.stop_gradient(noised.output)",
        "out = noised.output",
        (f"{LOSS}::test_the_bound_that_trains_the_variance_leaves_the_mean_alone",),
    ),
    Mutant(
        "importance of times left out",
        DIFFUSION + "terms/loss.py",
        "noised.importance * total * batch",
        "total * batch",
        (f"{LOSS}::test_weights_of_times_levels_and_examples_multiply_the_error",),
    ),
    Mutant(
        "weights of examples left out",
        DIFFUSION + "terms/loss.py",
        ' * batch.get("weight", 1.0)',
        "",
        (f"{LOSS}::test_weights_of_times_levels_and_examples_multiply_the_error",),
    ),
    Mutant(
        "weighting left out",
        DIFFUSION + "terms/loss.py",
        "weighted = noised.error * noised.weight",
        "weighted = noised.error",
        (f"{LOSS}::test_weights_of_times_levels_and_examples_multiply_the_error",),
    ),
    Mutant(
        "the times' state never learns",
        DIFFUSION + "terms/loss.py",
        '{**extra, "times": state}',
        "extra",
        (f"{LOSS}::test_weights_of_times_levels_and_examples_multiply_the_error",),
    ),
    Mutant(
        "the ramp of averages counts steps",
        "jaxgen/training/ema.py",
        "step * batch_size * self.ramp",
        "step * self.ramp",
        ("tests/training/test_train_ema.py",),
    ),
    Mutant(
        "half-lives count steps",
        "jaxgen/training/ema.py",
        "0.5 ** (batch_size / ",
        "0.5 ** (1 / ",
        ("tests/training/test_train_ema.py",),
    ),
    Mutant(
        "clipping after the optimizer",
        "jaxgen/training/optim.py",
        "optax.chain(optax.clip_by_global_norm(clip_norm), core)",
        "optax.chain(core, optax.clip_by_global_norm(clip_norm))",
        ("tests/training/test_optim.py",),
    ),
    Mutant(
        "b2 dropped",
        "jaxgen/training/optim.py",
        "optax.adamw(rate, b1=b1, b2=b2, eps=eps,",
        "optax.adamw(rate, b1=b1, eps=eps,",
        ("tests/training/test_optim.py",),
    ),
    Mutant(
        "weight decay dropped",
        "jaxgen/training/optim.py",
        "b1=b1, b2=b2, eps=eps, weight_decay=weight_decay),",
        "b1=b1, b2=b2, eps=eps, weight_decay=0.0),",
        ("tests/training/test_optim.py",),
    ),
    Mutant(
        "warm-up counts steps",
        "jaxgen/training/optim.py",
        "(seen + batch_size) / max(warmup_images, batch_size)",
        "(count + 1) / max(warmup_images, batch_size)",
        ("tests/training/test_optim.py",),
    ),
    Mutant(
        "final fraction dropped",
        "jaxgen/training/optim.py",
        "1 - (1 - final_fraction) * progress",
        "1 - progress",
        ("tests/training/test_optim.py",),
    ),
    Mutant(
        "momentum dropped",
        "jaxgen/training/optim.py",
        "optax.sgd(rate, momentum=momentum)",
        "optax.sgd(rate)",
        ("tests/training/test_optim.py",),
    ),
    Mutant(
        "accumulate of the config not passed on",
        "jaxgen/run/setup.py",
        "accumulate=train.accumulate,\n",
        "accumulate=1,\n",
        swept("mlp-train-accumulate"),
    ),
    Mutant(
        "flip of the config not passed on",
        "jaxgen/training/loop.py",
        "flip=setup.data.flip,",
        "flip=False,",
        (RUN, "-k", "trains"),
    ),
    Mutant(
        "seed of the config not passed on",
        "jaxgen/training/loop.py",
        'setup.config.get("seed", 0)',
        "0",
        (RUN, "-k", "trains"),
    ),
    Mutant(
        "every step has the first one's noise",
        "jaxgen/training/loop.py",
        "jax.random.fold_in(root, state.step)",
        "jax.random.fold_in(root, 0)",
        ("tests/training/test_step_keys.py",),
    ),
    Mutant(
        "batch size free to change on resume",
        "jaxgen/api.py",
        '*("data.workers", "data.prefetch",',
        '*("data.batch_size", "data.workers", "data.prefetch",',
        (RUN, "-k", "cannot"),
    ),
    Mutant(
        "seed free to change on resume",
        "jaxgen/api.py",
        '        "networks",  # elsewhere',
        '        "seed",\n        "networks",  # elsewhere',
        (RUN, "-k", "cannot"),
    ),
    Mutant(
        "accumulate free to change on resume",
        "jaxgen/api.py",
        'BOUND = ("train.accumulate",)',
        "BOUND: tuple[str, ...] = ()",
        (RUN, "-k", "cannot"),
    ),
    Mutant(
        "the sum of microbatches' gradients",
        "jaxgen/method/learning.py",
        "lambda g: g / accumulate, grads",
        "lambda g: g, grads",
        ("tests/method/test_learning.py",),
    ),
    Mutant(
        "one key for all steps of a learner",
        "jaxgen/method/learning.py",
        "_learner_key(key, count + n)",
        "_learner_key(key, count)",
        ("tests/method/test_learning.py",),
    ),
    Mutant(
        "every learner has the update's key",
        "jaxgen/method/learning.py",
        "            count += learner.steps\n",
        "",
        ("tests/method/test_learning.py",),
    ),
    Mutant(
        "seen counts steps",
        "jaxgen/method/learning.py",
        "step.astype(jnp.float32) * size * mesh",
        "step.astype(jnp.float32) * mesh",
        ("tests/method/test_learning.py", "tests/tokenizers/test_tokenizers_vqgan.py"),
    ),
    Mutant(
        "averages of the parameters before the step",
        "jaxgen/method/learning.py",
        "training.averages.update(state.ema, averaged(params), number, size)",
        "training.averages.update(state.ema, averaged(state.params), number, size)",
        ("tests/method/test_learning.py",),
    ),
    Mutant(
        "averages told of one device's batch",
        "jaxgen/method/learning.py",
        'size = own_size * mesh.size("data")',
        "size = own_size",
        ("tests/method/test_learning.py", "-k", "global_batch"),
    ),
)

NETWORKS = (
    Mutant(
        "all streams of an NNX module draw the same",
        "jaxgen/nn/own/nnx.py",
        "jax.random.fold_in(root, number)",
        "root",
        ("tests/nn/test_own.py", "-k", "stream"),
    ),
    Mutant(
        "all streams of a Linen module draw the same",
        "jaxgen/nn/own/linen.py",
        "jax.random.split(case.key)",
        "[case.key] * 2",
        ("tests/nn/test_own.py", "-k", "stream"),
    ),
    Mutant(
        "an Equinox module's examples draw by their place on the device",
        "jaxgen/nn/own/base.py",
        "position(*BATCH) * count + jnp.arange(count)",
        "jnp.arange(count)",
        ("tests/nn/test_own.py", "-k", "devices"),
    ),
    Mutant(
        "an NNX module trains while it is sampled",
        "jaxgen/nn/own/nnx.py",
        "network.train() if case.train else network.eval()",
        "network.train()",
        ("tests/nn/test_own.py", "-k", "sampling"),
    ),
    Mutant(
        "dropout not scaled",
        "jaxgen/nn/parallel.py",
        "draw(each), rows / (1 - self.rate), 0",
        "draw(each), rows, 0",
        ("tests/nn/test_nn_dropout.py",),
    ),
    Mutant(
        "dropout the same for all examples",
        "jaxgen/nn/parallel.py",
        "position(*BATCH) * examples + jnp.arange(examples)",
        "jnp.zeros(examples, jnp.int32)",
        ("tests/nn/test_nn_dropout.py",),
    ),
    Mutant(
        "dropout the same at all places",
        "jaxgen/nn/parallel.py",
        "fold(k, n))(first + jnp.arange(count))",
        "fold(k, n))(0 * jnp.arange(count))",
        ("tests/nn/test_nn_dropout.py",),
    ),
    Mutant(
        "dropout the same for all microbatches",
        "jaxgen/method/streams.py",
        'jax.random.fold_in(jax.random.fold_in(key, DROPOUT), batch["microbatch"])',
        "jax.random.fold_in(key, DROPOUT)",
        ("tests/nn/test_nn_dropout.py",),
    ),
    Mutant(
        "label dropout keeps the share",
        "jaxgen/method/streams.py",
        "jax.vmap(jax.random.uniform)(keys) < share",
        "jax.vmap(jax.random.uniform)(keys) > share",
        (f"{LOSS}::test_label_dropout_drops_its_share",),
    ),
    Mutant(
        "actnorm initialised at every step",
        "jaxgen/families/flows/method.py",
        'extra = {"initialised": jnp.ones((), bool)}',
        'extra = {"initialised": done}',
        ("tests/families/test_flows.py::test_actnorm_is_set_by_the_first_batch_and_never_again",),
    ),
    Mutant(
        "modulation without its one",
        "jaxgen/nn/layers.py",
        "* (1 + scale)",
        "* scale",
        ("tests/nn/test_nn_dit.py", "-k", "equals_diffusers"),
    ),
)

FAMILIES = (
    Mutant(
        "label dropout off in the discrete family",
        "jaxgen/families/discrete/loss.py",
        'drop_labels(fold(keys, DROPPED), batch["label"], label_dropout, null)',
        'batch["label"]',
        swept("maskgit-method"),
    ),
    Mutant(
        "label smoothing dropped",
        "jaxgen/families/discrete/loss.py",
        "error = (1 - label_smoothing) * error + label_smoothing * flat",
        "pass",
        ("tests/families/test_discrete_loss.py",),
    ),
    Mutant(
        "smoothing twice the share",
        "jaxgen/families/discrete/loss.py",
        "(1 - label_smoothing) * error + label_smoothing * flat",
        "error + label_smoothing * flat",
        ("tests/families/test_discrete_loss.py",),
    ),
    Mutant(
        "masked loss over all tokens",
        "jaxgen/families/discrete/loss.py",
        "(error * chosen).mean() / mean_share",
        "error.mean()",
        ("tests/families/test_discrete_loss.py",),
    ),
    Mutant(
        "choice temperature that never reaches zero",
        "jaxgen/families/discrete/sampler.py",
        "(1 - (np.arange(steps) + 1) / steps)",
        "(1 - np.arange(steps) / steps)",
        ("tests/families/test_discrete_core.py::test_ramps_of_a_sampler_end_where_they_should",),
    ),
    Mutant(
        "final temperature ignored",
        "jaxgen/families/discrete/sampler.py",
        "temperature + (final - temperature) * done",
        "temperature + 0 * done",
        ("tests/families/test_discrete_core.py::test_ramps_of_a_sampler_end_where_they_should",),
    ),
    Mutant(
        "label dropout off in the flow family",
        "jaxgen/families/flows/method.py",
        'drop_labels(fold(keys, DROPPED), batch["label"], label_dropout, spec.null_label)',
        'batch["label"]',
        swept("tarflow-method"),
    ),
    Mutant(
        "VAE warm-up ignored",
        "jaxgen/families/variational/method.py",
        'beta * jnp.minimum(1.0, batch["seen"][0] / warmup)',
        "jnp.asarray(beta)",
        swept("cvae-method"),
    ),
    Mutant(
        "VAE free bits ignored",
        "jaxgen/families/variational/bounds.py",
        "jnp.maximum(kl.mean(), nats)",
        "kl.mean()",
        swept("cvae-method"),
    ),
    Mutant(
        "IWAE weights with gradient",
        "jaxgen/families/variational/bounds.py",
        "jax.nn.softmax(jax.lax.stop_gradient(log_w), axis=0)",
        "jax.nn.softmax(log_w, axis=0)",
        ("tests/experiments/test_experiments.py", "-k", "iwae"),
    ),
    Mutant(
        "the doubly reparameterised weight once",
        "jaxgen/families/variational/bounds.py",
        "weights**2 * log_w_of_z",
        "weights * log_w_of_z",
        ("tests/experiments/test_experiments.py", "-k", "iwae"),
    ),
    Mutant(
        "r1 of generated images",
        "jaxgen/families/adversarial/regularisers.py",
        "weight / 2 * _slopes(case, case.real)",
        "weight / 2 * _slopes(case, case.fake)",
        ("tests/families/test_gan_parts.py", "-k", "r1"),
    ),
    Mutant(
        "lazy penalties as large as others",
        "jaxgen/families/adversarial/regularisers.py",
        "lambda: every * penalty(case), none",
        "lambda: penalty(case), none",
        ("tests/families/test_gan_matrix.py", "-k", "lazy"),
    ),
    Mutant(
        "LeCam anchored to its own side",
        "jaxgen/families/adversarial/regularisers.py",
        'jnp.square(real - case.state["fake"])',
        'jnp.square(real - case.state["real"])',
        ("tests/families/test_gan_matrix.py", "-k", "lecam"),
    ),
    Mutant(
        "gradient penalty's target ignored",
        "jaxgen/families/adversarial/regularisers.py",
        "jnp.square(norm - target)",
        "jnp.square(norm - 1.0)",
        (PIECE, "-k", "regulariser"),
    ),
    Mutant(
        "replay of the newest only",
        "jaxgen/families/gflownet/replay.py",
        "there = jnp.arange(ring.size) < ring.count",
        "there = jnp.arange(ring.size) == (ring.count - 1) % ring.size",
        ("tests/families/test_gflownet_method.py::test_replay_draws_from_everything_that_is_kept",),
    ),
    Mutant(
        "replay's priority ignored",
        "jaxgen/families/gflownet/replay.py",
        'priority * ring.rows["log_rewards"]',
        '0 * ring.rows["log_rewards"]',
        (
            "tests/families/test_gflownet_method.py::test_the_ring_keeps_the_newest_and_draws_by_reward",
        ),
    ),
    Mutant(
        "chains never start anew",
        "jaxgen/families/energy/chains.py",
        "(fold(keys, LABEL)) < self.restart",
        "(fold(keys, LABEL)) < 0.0",
        swept("jem-method"),
    ),
    Mutant(
        "the adversary from the start",
        "jaxgen/tokenizers/autoencoding.py",
        'batch["seen"][0] >= self.adversarial_start',
        'batch["seen"][0] >= 0',
        ("tests/tokenizers/test_tokenizers_vqgan.py", "-k", "before_its_start"),
    ),
    Mutant(
        "the adaptive weight upside down",
        "jaxgen/tokenizers/autoencoding.py",
        "reconstruction / (adversarial + 1e-4)",
        "adversarial / (reconstruction + 1e-4)",
        ("tests/tokenizers/test_tokenizers_vqgan.py", "-k", "ratio_by_hand"),
    ),
    Mutant(
        "no straight-through gradient",
        "jaxgen/tokenizers/quantisers.py",
        "return z + jax.lax.stop_gradient(chosen - z)",
        "return chosen",
        ("tests/tokenizers/test_tokenizers_quantisers.py",),
    ),
    Mutant(
        "the codebook loss trains the encoder",
        "jaxgen/tokenizers/quantisers.py",
        "jnp.square(hold(z) - chosen)",
        "jnp.square(z - chosen)",
        ("tests/tokenizers/test_tokenizers_quantisers.py",),
    ),
)

SAMPLING = (
    Mutant(
        "EDM's s_noise ignored",
        DIFFUSION + "solvers/edm.py",
        "s_noise * normal",
        "normal",
        (PIECE, "-k", "solver"),
    ),
    Mutant(
        "churn beyond its range of sigma",
        DIFFUSION + "solvers/edm.py",
        "(ratio >= s_min) & (ratio <= s_max)",
        "ratio >= s_min",
        (PIECE, "-k", "solver"),
    ),
    Mutant(
        "DDIM's eta ignored",
        DIFFUSION + "solvers/ancestral.py",
        "eta**2",
        "0.0",
        (PIECE, "-k", "ancestral"),
    ),
    Mutant(
        "SDE's noise doubled",
        DIFFUSION + "solvers/sde.py",
        "jnp.sqrt(rate * path.sigma(t) * h)",
        "2 * jnp.sqrt(rate * path.sigma(t) * h)",
        ("tests/families/test_diffusion_solvers.py", "-k", "stochastic_solver_law"),
    ),
    Mutant(
        "Langevin at half its step's noise",
        DIFFUSION + "solvers/sde.py",
        "jnp.sqrt(2 * size) * fresh",
        "jnp.sqrt(size) * fresh",
        ("tests/families/test_diffusion_solvers.py", "-k", "stochastic_solver_law"),
    ),
    Mutant(
        "momentum of APG ignored",
        DIFFUSION + "guidance/apg.py",
        "momentum * ",
        "0 * ",
        (PIECE, "-k", "apg"),
    ),
    Mutant(
        "guidance outside of its interval",
        DIFFUSION + "guidance/interval.py",
        "(time >= np.float32(low)) & (time <= np.float32(high))",
        "time >= np.float32(low)",
        (PIECE, "-k", "interval"),
    ),
    Mutant(
        "rescaling by the whole ratio",
        DIFFUSION + "guidance/rescale.py",
        "share * expand(ratio, guided_output) + 1 - share",
        "expand(ratio, guided_output)",
        (PIECE, "-k", "rescale"),
    ),
    Mutant(
        "the proposal's noise decides",
        "jaxgen/method/mcmc.py",
        "(fold(keys, ACCEPTED))) < ratio",
        "(fold(keys, PROPOSAL))) < ratio",
        ("tests/families/test_energy.py", "-k", "law_of_its_step"),
    ),
    Mutant(
        "every proposal accepted",
        "jaxgen/method/mcmc.py",
        "(fold(keys, ACCEPTED))) < ratio",
        "(fold(keys, ACCEPTED))) < jnp.inf",
        ("tests/families/test_energy.py", "-k", "law_of_its_step"),
    ),
    Mutant(
        "resampling favours the first",
        "jaxgen/steer/search.py",
        "wins = second[0] > first[0]",
        "wins = second[0] < first[0]",
        ("tests/steer/test_steer.py", "-k", "best_of_what"),
    ),
)

SCORES = (
    Mutant(
        "precision with the rim outside",
        "jaxgen/metrics/scores/manifold.py",
        '    "precision": (3, False),\n',
        '    "precision": (3, True),\n',
        ("tests/metrics/test_metrics_scores.py", "-k", "rim"),
    ),
    Mutant(
        "coverage with the rim inside",
        "jaxgen/metrics/scores/manifold.py",
        '"coverage": (5, True)',
        '"coverage": (5, False)',
        ("tests/metrics/test_metrics_scores.py", "-k", "rim"),
    ),
    Mutant(
        "density over the wrong k",
        "jaxgen/metrics/scores/manifold.py",
        "rows.sum() / (k * len(rows))",
        "rows.sum() / (3 * len(rows))",
        ("tests/metrics/test_metrics_scores.py", "-k", "rim"),
    ),
    Mutant(
        "calibration on its own images",
        "jaxgen/metrics/scores/calibration.py",
        "scores[np.arange(len(labels)), labels]",
        "scores.max(1)",
        ("tests/metrics/test_metrics_calibration.py", "-k", "temperature"),
    ),
    Mutant(
        "split deviations not unbiased",
        "jaxgen/metrics/scores/table.py",
        "ddof=1",
        "ddof=0",
        ("tests/metrics/test_metrics_files.py",),
    ),
)

PARTS = (
    Mutant(
        "cosine path without its offset",
        DIFFUSION + "core/path.py",
        "scale = 1 / math.cos(half * offset / (1 + offset))",
        "scale = 1.0",
        ("tests/families/test_diffusion_paths.py",),
    ),
    Mutant(
        "log-normal times without their deviation",
        DIFFUSION + "core/times.py",
        "path.t_of_sigma(jnp.exp(mean + std * z))",
        "path.t_of_sigma(jnp.exp(mean + z))",
        (PIECE, "-k", "times"),
    ),
    Mutant(
        "logit-normal times without their mean",
        DIFFUSION + "core/times.py",
        "jax.nn.sigmoid(mean + std * z)",
        "jax.nn.sigmoid(std * z)",
        (PIECE, "-k", "times"),
    ),
    Mutant(
        "min-SNR without its minimum",
        DIFFUSION + "core/weighting.py",
        "jnp.minimum(_snr(path, t), gamma) * gain**2",
        "_snr(path, t) * gain**2",
        (PIECE, "-k", "weighting"),
    ),
    Mutant(
        "rho of the grid ignored",
        DIFFUSION + "core/grids.py",
        "path.t_of_sigma(ramp**rho)",
        "path.t_of_sigma(ramp**7.0)",
        ("tests/families/test_diffusion_paths.py", "-k", "karras"),
    ),
    Mutant(
        "UniPC without its corrector",
        DIFFUSION + "solvers/unipc.py",
        "        if corrector:\n",
        "        if False:\n",
        (PIECE, "-k", "unipc"),
    ),
    Mutant(
        "relative tolerance ignored",
        DIFFUSION + "solvers/adaptive.py",
        "atol + rtol * jnp",
        "atol + atol * jnp",
        (PIECE, "-k", "adaptive"),
    ),
    Mutant(
        "CADS never mixes",
        DIFFUSION + "guidance/cads.py",
        "return anneal(y, noise, g, scale, mix)",
        "return anneal(y, noise, g, scale, 1.0)",
        (PIECE, "-k", "cads"),
    ),
    Mutant(
        "zero-init of a fixed length",
        DIFFUSION + "guidance/cfg_zero.py",
        "jax.lax.cond(within_times(t, 0.0, above)",
        "jax.lax.cond(within_times(t, 0.0, 0.96)",
        ("tests/families/test_guidance_forms.py", "-k", "zero_init"),
    ),
    Mutant(
        "diffier's rate ignored",
        DIFFUSION + "guidance/diffier.py",
        "step = rate * sigma**2",
        "step = 0.5 * sigma**2",
        (PIECE, "-k", "diffier"),
    ),
    Mutant(
        "nested sections are told nothing",
        "jaxgen/config.py",
        "**wanted(value, ROOMS[key], place, given))",
        ")",
        swept("mlp-method"),
    ),
    Mutant(
        "the same noise for every example",
        "jaxgen/method/streams.py",
        'jax.random.fold_in(key, i))(batch["index"])',
        'jax.random.fold_in(key, 0 * i))(batch["index"])',
        ("tests/training/test_step_keys.py",),
    ),
    Mutant(
        "consistency: a step along the path and not back",
        "jaxgen/distill/consistency.py",
        "moved = x0 - expand(",
        "moved = x0 + expand(",
        ("tests/distill/test_consistency.py", "-k", "line_of_each_pair"),
    ),
    Mutant(
        "guided trajectories: every state is the first",
        "jaxgen/distill/student.py",
        "jnp.where(expand(last == n + 1, x), x, kept)",
        "jnp.where(expand(last == n + 1, x), kept, kept)",
        ("tests/distill/test_guidance.py", "-k", "states_of_a_trajectory"),
    ),
    Mutant(
        "an imported DiT: all channels are guided",
        "jaxgen/pretrained/dit.py",
        """    said, data = _official(found)
    guided = [dict(name="cfg.cfg", weight=1.5, channels=3)]
    return dict(
        data=data,
        model=said["model"],""",
        """    said, data = _official(found)
    guided = [dict(name="cfg.cfg", weight=1.5)]
    return dict(
        data=data,
        model=said["model"],""",
        ("tests/pretrained/test_dit.py", "-k", "dits_own"),
    ),
    Mutant(
        "an imported U-ViT: label and time keep each other's positions",
        "jaxgen/pretrained/uvit.py",
        "a[0][[1, 0, ",
        "a[0][[0, 1, ",
        ("tests/pretrained/test_uvit.py", "-k", "pixels"),
    ),
    Mutant(
        "an imported EDM2: queries, keys and values stay channel by channel",
        "jaxgen/pretrained/edm.py",
        "return np.swapaxes(cut, -1, -2).reshape(columns.shape)",
        "return cut.reshape(columns.shape)",
        ("tests/pretrained/test_edm.py", "-k", "edm2"),
    ),
    Mutant(
        "an imported ADM: heads in the other order",
        "jaxgen/pretrained/adm.py",
        "return np.swapaxes(cut, -2, -3).reshape(columns.shape)",
        "return cut.reshape(columns.shape)",
        ("tests/pretrained/test_adm.py", "-k", "papers"),
    ),
    Mutant(
        "weights that are left over are passed over",
        "jaxgen/pretrained/layout.py",
        "if missing or left:\n        raise unfit(what, missing, left)",
        "if missing:\n        raise unfit(what, missing, left)",
        ("tests/pretrained/test_dit.py", "-k", "does_not_fit"),
    ),
    Mutant(
        "an adapter's alpha is lost where it is read",
        "jaxgen/tune/adapters.py",
        "scale * b.reshape(b.shape[0], rank).T",
        "b.reshape(b.shape[0], rank).T",
        ("tests/tune/test_adapters.py", "-k", "papers_code"),
    ),
    Mutant(
        "queries, keys and values of an adapter in layers, not by head",
        "jaxgen/pretrained/dit.py",
        "Factors(a, by_head(cut, _known(heads)))",
        "Factors(a, b)",
        ("tests/tune/test_adapters.py", "-k", "papers_code"),
    ),
    Mutant(
        "adapters: their weight is not asked",
        "jaxgen/run/adapters.py",
        "ours[n] + weight * a",
        "ours[n] + a",
        ("tests/tune/test_adapters.py", "-k", "when_one_samples"),
    ),
    Mutant(
        "routed networks: all of the first",
        "jaxgen/nn/routed.py",
        "own = group == number",
        "own = 0 * group == number",
        ("tests/nn/test_routed.py", "-k", "its_own_network"),
    ),
    Mutant(
        "the pool: a student of whom was asked, not of the best",
        "jaxgen/distill/pool.py",
        "for number in (best[labels], whose)",
        "for number in (whose, whose)",
        ("tests/distill/test_pool.py", "-k", "best_alone"),
    ),
    Mutant(
        "domain expansion: latents keep their own part of a direction",
        "jaxgen/tune/expansion.py",
        "- z @ directions.T",
        "- 0 * z @ directions.T",
        ("tests/tune/test_expansion.py", "-k", "have_the_shifts"),
    ),
    Mutant(
        "forgetting at the wrong strength",
        "jaxgen/unlearn/forget.py",
        "theirs(-eta, labels)",
        "theirs(-1.0, labels)",
        swept("forget-wrap.0-eta"),
    ),
    Mutant(
        "forgetting: a class's guidance is taken for its whole answer",
        "jaxgen/unlearn/forget.py",
        "ours(1.0) - ours(0.0) - (",
        "ours(1.0) - (",
        ("tests/unlearn/test_forget.py", "-k", "at_the_copy"),
    ),
    Mutant(
        "forgetting: the answer with a label is preserved",
        "jaxgen/unlearn/answers.py",
        "_square(ours(0.0) - theirs(0.0, labels))",
        "_square(ours(1.0) - theirs(1.0, labels))",
        ("tests/unlearn/test_forget.py", "-k", "preserved"),
    ),
    Mutant(
        "redaction: the kept rows are not held",
        "jaxgen/unlearn/redact.py",
        "kept += jnp.mean(square, where=~own)",
        "kept += jnp.mean(square, where=own)",
        ("tests/unlearn/test_redact.py", "-k", "by_hand"),
    ),
    Mutant(
        "redaction: the tables themselves are trained",
        "jaxgen/tune/changes.py",
        "trains=(group,))",
        "trains=None)",
        ("tests/unlearn/test_redact.py", "-k", "draws_the_references"),
    ),
    Mutant(
        "repulsion: every learner is repelled",
        "jaxgen/unlearn/repulsion.py",
        "repelled(it) if group in trained[name] else it",
        "repelled(it)",
        ("tests/unlearn/test_repulsion.py", "-k", "alone"),
    ),
    Mutant(
        "repulsion: the parameters are drawn in",
        "jaxgen/unlearn/repulsion.py",
        "value + weight * found",
        "value - weight * found",
        ("tests/unlearn/test_repulsion.py", "-k", "leads_away"),
    ),
    Mutant(
        "worst case: weights that sum to more",
        "jaxgen/unlearn/worst_case.py",
        "jnp.where(above, mu, low), jnp.where(above, high, mu)",
        "jnp.where(above, low, mu), jnp.where(above, mu, high)",
        ("tests/unlearn/test_worst_case.py", "-k", "projection"),
    ),
    Mutant(
        "rewriting: the change goes along the key itself",
        "jaxgen/tune/rewriting.py",
        "direction = jnp.linalg.solve(moment, key)",
        "direction = key",
        ("tests/experiments/test_experiments.py", "-k", "passes and rewriting"),
    ),
    Mutant(
        "directional: the two generators draw other latents",
        "jaxgen/tune/directional.py",
        "(draw(p, keys, batch",
        "(draw(p, keys[:: 1 if GROUP in p else -1], batch",
        ("tests/tune/test_directional.py", "-k", "by_hand"),
    ),
    Mutant(
        "LoRA's alpha ignored",
        "jaxgen/tune/lora.py",
        "scale = (rank if alpha is None else alpha) / rank if rank > 0 else 0.0",
        "scale = 1.0 if rank > 0 else 0.0",
        swept("lora-wrap.0"),
    ),
    Mutant(
        "memorised: at the threshold too",
        "jaxgen/metrics/scores/memorisation.py",
        "(sample_distances < threshold)",
        "(sample_distances <= threshold)",
        ("tests/metrics/test_metrics_scores.py", "-k", "memorised_share"),
    ),
    Mutant(
        "MMD with the diagonal",
        "jaxgen/metrics/scores/kernel.py",
        "total / (len(a) * (len(a) - 1))",
        "total / len(a) ** 2",
        ("tests/metrics/test_metrics_scores.py", "-k", "mmd or kid or unbiased"),
    ),
    Mutant(
        "classes leave by their best draw",
        "jaxgen/classify/generative.py",
        "np.argsort(of_candidates.mean(2), axis=1",
        "np.argsort(of_candidates.min(2), axis=1",
        ("tests/classify/test_classify_generative.py",),
    ),
    Mutant(
        "confidence without the root of the draws",
        "jaxgen/classify/generative.py",
        "behind.std(2, ddof=1) / np.sqrt(upto)",
        "behind.std(2, ddof=1)",
        ("tests/classify/test_classify_generative.py",),
    ),
    Mutant(
        "flips by one coin a batch",
        "jaxgen/data/order.py",
        "_coins(seed, int(block))[places[chosen]]",
        "_coins(seed, int(block))[0 * places[chosen]]",
        ("tests/data/test_data_pipeline.py", "tests/data/test_data_sources.py"),
    ),
    Mutant(
        "every epoch in one order",
        "jaxgen/data/order.py",
        "[seed, _ORDER, epoch]",
        "[seed, _ORDER, 0]",
        ("tests/data/test_data_pipeline.py",),
    ),
    Mutant(
        "the ring forgets the newest",
        "jaxgen/method/ring.py",
        "place = (ring.count + jnp.arange(fresh)) % size",
        "place = jnp.arange(fresh) % size",
        ("tests/families/test_energy.py", "-k", "every_row"),
    ),
    Mutant(
        "the batch reads another place",
        "jaxgen/data/pipeline.py",
        "positions = step * self.batch_size + rows",
        "positions = step + rows",
        ("tests/data/test_data_pipeline.py",),
    ),
)

FOLDER, HUB = "tests/export/test_folder.py", "tests/export/test_hub.py"
PROGRAM = "tests/export/test_program.py"
DOORS = (
    Mutant(
        "export: parameters are constants",
        "jaxgen/export/program.py",
        "program.fn(jax.lax.optimization_barrier(held), *given)",
        "program.fn(held, *given)",
        (PROGRAM,),
    ),
    Mutant(
        "export: bytes are rounded once",
        "jaxgen/export/program.py",
        "jax.lax.bitcast_convert_type(bits + none, jnp.float32)",
        "x",
        (PROGRAM, "-k", "bytes"),
    ),
    Mutant(
        "export: an image's place is the batch's",
        "jaxgen/export/program.py",
        "jax.random.fold_in(root, i))(index)",
        "jax.random.fold_in(root, i + 1))(index)",
        (PROGRAM, "-k", "one_file"),
    ),
    Mutant(
        "export: paths of the machine go along",
        "jaxgen/export/folder.py",
        "            bare(said),\n",
        "            said,\n",
        (FOLDER, "-k", "path_of_the_machine"),
    ),
    Mutant(
        "export: the other average",
        "jaxgen/export/folder.py",
        "params = model.weights(ema)",
        'params = model.weights("params")',
        (FOLDER, "-k", "average_is_chosen"),
    ),
    Mutant(
        "export: digests are not compared",
        "jaxgen/run/portable.py",
        "if hashlib.sha256((root / name).read_bytes()).hexdigest() != digest:",
        "if not digest:",
        (FOLDER, "-k", "flipped"),
    ),
    Mutant(
        "pull: whatever is there is fetched",
        "jaxgen/run/hub.py",
        """                allow_patterns=list(portable.PATTERNS),
                local_dir=folder,""",
        """                local_dir=folder,""",
        (HUB,),
    ),
    Mutant(
        "export: v in the place of the velocity",
        "jaxgen/export/onnx.py",
        "prediction.velocity(denoiser.path, t)",
        "prediction.v(denoiser.path, t)",
        ("tests/export/test_onnx.py",),
    ),
    Mutant(
        "launch k8s: all pods are the first",
        "jaxgen/launch/k8s.py",
        "job-completion-index'",
        "job-completion'",
        ("tests/launch/test_k8s.py",),
    ),
    Mutant(
        "launch k8s: bad input starts again",
        "jaxgen/launch/k8s.py",
        '"values": [USAGE],',
        '"values": [1],',
        ("tests/launch/test_k8s.py",),
    ),
)

MATCHING, CONTRAST = "tests/distill/test_matching.py", "tests/tune/test_contrast.py"
NEAR, PAGE = "tests/unlearn/test_near_access.py", "tests/report/test_page.py"
TEACHERS = (
    Mutant(
        "matching: a divergence without its factor",
        "jaxgen/distill/divergence.py",
        "lambda log_ratio: log_ratio / 2 - jnp.log(2.0)",
        "lambda log_ratio: log_ratio / 2",
        (MATCHING, "-k", "gradient_is_the_divergences"),
    ),
    Mutant(
        "matching: weights are not normalised",
        "jaxgen/distill/divergence.py",
        "log - jax.nn.logsumexp(log) + jnp.log(log.size)",
        "log",
        (MATCHING, "-k", "gradient_is_the_divergences"),
    ),
    Mutant(
        "matching: the implicit distance the other way",
        "jaxgen/distill/matching.py",
        "off = (x0 - ours)",
        "off = (ours - x0)",
        (MATCHING, "-k", "implicit_matching"),
    ),
    Mutant(
        "matching: the fake score does not start at the teacher",
        "jaxgen/run/start.py",
        "to_host(copied(params, copies))",
        "to_host(params)",
        (MATCHING, "-k", "wherever_that_was"),
    ),
    Mutant(
        "matching: a draw is kept a call too early",
        "jaxgen/distill/matching.py",
        "expand(last == n + 1, x), x, kept",
        "expand(last == n, x), x, kept",
        (MATCHING, "-k", "what_the_sampler_does"),
    ),
    Mutant(
        "matching: the teacher is not guided",
        "jaxgen/distill/matching.py",
        "other.method.sampler(guidance=guidance).denoiser(",
        "other.method.sampler(guidance=1.0).denoiser(",
        (MATCHING, "-k", "guidance_of_the_teacher"),
    ),
    Mutant(
        "contrast: a negative may be the image's own label",
        "jaxgen/tune/contrast.py",
        "jax.random.randint(k, (), 1, n)",
        "jax.random.randint(k, (), 0, n)",
        (CONTRAST, "-k", "never_the_images_own"),
    ),
    Mutant(
        "contrast: rows without a label have a negative",
        "jaxgen/tune/contrast.py",
        "weight * told * jax.nn.softplus",
        "weight * jax.nn.softplus",
        (CONTRAST, "-k", "without_a_label"),
    ),
    Mutant(
        "contrast: noise of its own for each side",
        "jaxgen/tune/ratio.py",
        "reference(held, x, labels, keys, each, draws)",
        "reference(held, x, labels, keys, each + 2, draws)",
        (CONTRAST, "-k", "shared_noise"),
    ),
    Mutant(
        "chain: a step's density without its deviation",
        DIFFUSION + "solvers/base.py",
        "((x - mean) / std) ** 2 - jnp.log(std)",
        "((x - mean) / std) ** 2",
        ("tests/method/test_chain.py", "-k", "gaussian_step"),
    ),
    Mutant(
        "GRPO: the divergence of a draw alone",
        "jaxgen/tune/grpo.py",
        "jnp.cumsum(excess[:, ::-1], axis=1)[:, ::-1]",
        "excess",
        ("tests/tune/test_grpo.py", "-k", "gradient_over_all"),
    ),
    Mutant(
        "GRPO: a mean that the sample itself is in",
        "jaxgen/tune/grpo.py",
        "off * count / jnp.maximum(count - 1, 1)",
        "off",
        ("tests/tune/test_grpo.py", "-k", "advantages"),
    ),
    Mutant(
        "DPO: the loser is the better",
        "jaxgen/tune/preference.py",
        "judged()(x, labels) - judged()(y, labels)",
        "judged()(y, labels) - judged()(x, labels)",
        ("tests/tune/test_preference.py", "-k", "pairs_are"),
    ),
    Mutant(
        "told: the worst in the best's place",
        "jaxgen/tune/told.py",
        "levels + levels - 1",
        "levels",
        ("tests/tune/test_told.py", "-k", "best_is_drawn"),
    ),
    Mutant(
        "weighted: what cannot be judged is seen",
        "jaxgen/tune/weighted.py",
        "jnp.isfinite(value) if least is None",
        "jnp.isfinite(value) | True if least is None",
        ("tests/tune/test_weighted.py", "-k", "worth_it"),
    ),
    Mutant(
        "truncated: no more noise than it was cut short at",
        "jaxgen/tune/truncated.py",
        "known.back(keys, state, n, m)",
        "known.back(keys, state, n, n)",
        ("tests/tune/test_truncated.py", "-k", "more_noise"),
    ),
    Mutant(
        "contrast as guidance: a sum",
        "jaxgen/families/autoregressive/guidance.py",
        "p - jax.nn.log_softmax(logits[second])",
        "p + jax.nn.log_softmax(logits[second])",
        ("tests/families/test_ar_guidance.py", "-k", "contrast_is"),
    ),
    Mutant(
        "PEZ: the gradient at the prompt itself",
        "jaxgen/steer/pez.py",
        "loss(prompt + jax.lax.stop_gradient(words - prompt))",
        "loss(prompt)",
        ("tests/steer/test_pez.py", "-k", "moves_the_prompt"),
    ),
    Mutant(
        "near access: the last that passes",
        "jaxgen/unlearn/near_access.py",
        "passes = ~done & (excess",
        "passes = (excess",
        (NEAR, "-k", "first_draw"),
    ),
    Mutant(
        "near access: the furthest of the networks counts",
        "jaxgen/unlearn/near_access.py",
        "ours - jnp.min(",
        "ours - jnp.max(",
        (NEAR, "-k", "nearest"),
    ),
    Mutant(
        "report: a figure switches the reader's backend",
        "jaxgen/report/page.py",
        "    return Figure(figsize=(width, height)",
        """    matplotlib.use("Agg", force=False)
    return Figure(figsize=(width, height)""",
        (PAGE, "-k", "backend"),
    ),
)

MUTANTS = (*TRAINING, *NETWORKS, *FAMILIES, *SAMPLING, *SCORES, *PARTS, *DOORS, *TEACHERS)


def run(mutants: tuple[Mutant, ...], jobs: int = 1) -> Iterator[tuple[Mutant, bool, float]]:
    """(mutant, whether a test noticed, seconds), in copies of the tree, `jobs` at a time."""
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()

    def tried(mutant: Mutant) -> tuple[Mutant, bool, float]:
        folder, begin = free.get(), time.monotonic()
        path = folder / mutant.file
        text = path.read_text()
        path.write_text(mutant.applied(text))
        noticed = not passes(mutant.tests, str(folder))
        path.write_text(text)
        free.put(folder)
        return mutant, noticed, time.monotonic() - begin

    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(jobs) as pool:
        for number in range(jobs):
            folder = Path(root) / str(number)
            folder.mkdir()
            for name in TREE:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, folder / name)
            free.put(folder)
        yield from pool.map(tried, mutants)


def passes(tests: tuple[str, ...], folder: str) -> bool:
    """Whether the tests pass; where none ran, none has noticed. Raises UsageError: no such file."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider"]
    # A slow test is a test, too.
    command += ["-m", "", *tests]
    environment = os.environ | {"PYTHONPATH": folder}
    try:
        code = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=SECONDS, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return False
    if code == pytest.ExitCode.USAGE_ERROR:
        raise invalid("tests", " ".join(tests), "tests that exist")
    return code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", help="words of the names of mutants (default: all)")
    parser.add_argument("--list", action="store_true", help="their names, and run nothing")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    given = parser.parse_args(arguments)
    if given.jobs < 1:
        raise invalid("--jobs", given.jobs, "jobs >= 1")
    chosen = tuple(m for m in MUTANTS if all(word in m.name for word in given.words))
    if not chosen:
        raise invalid("words", " ".join(given.words), "words of a mutant's name; see --list")
    for mutant in chosen:
        mutant.applied((ROOT / mutant.file).read_text())
    if given.list:
        print("\n".join(mutant.name for mutant in chosen))
        return 0
    survivors = []
    for mutant, noticed, seconds in run(chosen, given.jobs):
        print(
            f"{'noticed ' if noticed else 'SURVIVED'} {seconds:6.0f} s  {mutant.name}", flush=True
        )
        survivors += [] if noticed else [mutant]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were noticed.")
    for mutant in survivors:
        print(f"  {mutant.name}: {mutant.file}; {' '.join(mutant.tests)}")
    return 1 if survivors else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        sys.exit(f"error: {error}")
