"""The Inception network of FID, IS, KID and sFID: TensorFlow's of 2015-12-05, 1008 outputs.

Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", figures 5 to 7,
as the graph `classify_image_graph_def.pb` has it, which Heusel et al. 2017 took for FID. It is not
torchvision's network: average pooling does not count padding, and the last block has maximum
pooling. Weights: torch-fidelity's conversion of that graph.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from jaxgen.errors import invalid
from jaxgen.metrics.extractors.network import NetworkExtractor, applied, described
from jaxgen.metrics.extractors.resize import tf1_bilinear
from jaxgen.metrics.extractors.weights import Origin, State, dense, obtain, taken

SIZE = 299
_FILE = "inception-2015-12-05-6726825d.pth"
_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
ORIGIN = Origin(
    name="inception",
    fetch=(
        f"curl -L --create-dirs -o ~/.cache/torch/hub/checkpoints/weights-{_FILE} "
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        f"weights-{_FILE}",
    ),
    # The same bytes under two names: torch-fidelity's and pytorch-fid's.
    torch=(f"weights-{_FILE}", f"pt_{_FILE}"),
    digests={f"weights-{_FILE}": _SHA256, f"pt_{_FILE}": _SHA256},
)
_EPSILON = 1e-3


class Block(nn.Module):
    """What the blocks share: convolutions with a bias (their normalisation is folded into it)."""

    dtype: Any = jnp.float32

    def unit(
        self,
        name: str,
        x: jax.Array,
        features: int,
        kernel: tuple[int, int] = (1, 1),
        stride: int = 1,
    ) -> jax.Array:
        """Convolution, bias, ReLU; padded where stride is 1."""
        padding = "SAME" if stride == 1 else "VALID"
        conv = nn.Conv(features, kernel, stride, padding, dtype=self.dtype, name=name)
        return nn.relu(conv(x))

    def chain(self, name: str, x: jax.Array, *units: tuple[Any, ...]) -> jax.Array:
        """Units one after another, called name_1, name_2, ..."""
        for number, unit in enumerate(units, 1):
            x = self.unit(f"{name}_{number}", x, *unit)
        return x

    def averaged(self, x: jax.Array, features: int) -> jax.Array:
        """The pooling branch: means of 3x3 places, those outside not counted."""
        x = nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
        return self.unit("branch_pool", x, features)


class A(Block):
    """35x35: figure 5."""

    pool: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, 224 + pool]."""
        return _join(
            self.unit("branch1x1", x, 64),
            self.chain("branch5x5", x, (48,), (64, (5, 5))),
            self.chain("branch3x3dbl", x, (64,), (96, (3, 3)), (96, (3, 3))),
            self.averaged(x, self.pool),
        )


class B(Block):
    """35x35 -> 17x17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, (H - 1) // 2, (W - 1) // 2, 480 + C]."""
        return _join(
            self.unit("branch3x3", x, 384, (3, 3), 2),
            self.chain("branch3x3dbl", x, (64,), (96, (3, 3)), (96, (3, 3), 2)),
            nn.max_pool(x, (3, 3), (2, 2)),
        )


class C(Block):
    """17x17: figure 6."""

    inner: int = 128

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, 768]."""
        n, row, column = self.inner, (1, 7), (7, 1)
        return _join(
            self.unit("branch1x1", x, 192),
            self.chain("branch7x7", x, (n,), (n, row), (192, column)),
            self.chain("branch7x7dbl", x, (n,), (n, column), (n, row), (n, column), (192, row)),
            self.averaged(x, 192),
        )


class D(Block):
    """17x17 -> 8x8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, (H - 1) // 2, (W - 1) // 2, 512 + C]."""
        return _join(
            self.chain("branch3x3", x, (192,), (320, (3, 3), 2)),
            self.chain("branch7x7x3", x, (192,), (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2)),
            nn.max_pool(x, (3, 3), (2, 2)),
        )


class E(Block):
    """8x8: figure 7. maximum: whether the pooling branch takes maxima, as the last block does."""

    maximum: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, 2048]."""
        shared = self.unit("branch3x3_1", x, 384)
        two = self.chain("branch3x3dbl", x, (448,), (384, (3, 3)))
        if self.maximum:
            pooled = nn.max_pool(x, (3, 3), (1, 1), "SAME")
            pooled = self.unit("branch_pool", pooled, 192)
        else:
            pooled = self.averaged(x, 192)
        return _join(
            self.unit("branch1x1", x, 320),
            self.unit("branch3x3_2a", shared, 384, (1, 3)),
            self.unit("branch3x3_2b", shared, 384, (3, 1)),
            self.unit("branch3x3dbl_3a", two, 384, (1, 3)),
            self.unit("branch3x3dbl_3b", two, 384, (3, 1)),
            pooled,
        )


class InceptionV3(Block):
    """x float [B, 299, 299, 3], (bytes - 128) / 128 -> features, spatial and logits, float32.

    "features" [B, 2048]: the last pooling, which FID is of. "spatial" [B, 2023]: the first 7
    channels of the graph's `mixed_6/conv` (17x17), which sFID is of (Nash et al. 2021). "logits"
    [B, 1008] without their bias, whose softmax the Inception Score is of.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """[B, 299, 299, 3] -> {"features", "spatial", "logits"}."""
        x = x.astype(self.dtype)
        x = self.unit("Conv2d_1a_3x3", x, 32, (3, 3), 2)
        x = self._valid("Conv2d_2a_3x3", x, 32)
        x = self.unit("Conv2d_2b_3x3", x, 64, (3, 3))
        x = self.unit("Conv2d_3b_1x1", nn.max_pool(x, (3, 3), (2, 2)), 80)
        x = nn.max_pool(self._valid("Conv2d_4a_3x3", x, 192), (3, 3), (2, 2))
        for name, pool in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = A(self.dtype, pool=pool, name=f"Mixed_{name}")(x)
        x = B(self.dtype, name="Mixed_6a")(x)
        for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = C(self.dtype, inner=inner, name=f"Mixed_{name}")(x)
            if name == "6d":
                spatial = x[..., :7].reshape(x.shape[0], -1)
        x = D(self.dtype, name="Mixed_7a")(x)
        x = E(self.dtype, name="Mixed_7b")(x)
        x = E(self.dtype, maximum=True, name="Mixed_7c")(x)
        features = x.astype(jnp.float32).mean((1, 2))
        logits = nn.Dense(1008, use_bias=False, name="fc")(features)
        return {"features": features, "spatial": spatial.astype(jnp.float32), "logits": logits}

    def _valid(self, name: str, x: jax.Array, features: int) -> jax.Array:
        """A unit of 3x3 without padding."""
        return nn.relu(nn.Conv(features, (3, 3), padding="VALID", dtype=self.dtype, name=name)(x))


def _join(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


def convert(state: State) -> dict[str, Any]:
    """Parameters of `InceptionV3` from the state dict of torch-fidelity's or pytorch-fid's network.

    Normalisation is folded into kernels and biases, in float64. UsageError for what is missing and
    for weights that this network has no place for.
    """
    flat = flax.traverse_util.flatten_dict(shapes(), sep=".")
    params: dict[str, np.ndarray] = {"fc.kernel": dense(state, "fc")["kernel"]}
    used = {"fc.weight", "fc.bias"}
    for name in {key.rpartition(".")[0] for key in flat} - {"fc"}:
        params |= {f"{name}.{k}": v for k, v in folded(state, name).items()}
        used |= {k for k in state if k.startswith((f"{name}.conv.", f"{name}.bn."))}
    if left := sorted(set(state) - used):
        raise invalid("weights", left[0], "FID's Inception without further weights")
    return flax.traverse_util.unflatten_dict(params, sep=".")


def folded(state: State, name: str) -> dict[str, np.ndarray]:
    """Kernel and bias of one convolution and the batch normalisation after it."""
    tensor = lambda which: taken(state, f"{name}.{which}").astype(np.float64)
    scale = tensor("bn.weight") / np.sqrt(tensor("bn.running_var") + _EPSILON)
    kernel = tensor("conv.weight").transpose(2, 3, 1, 0) * scale
    bias = tensor("bn.bias") - tensor("bn.running_mean") * scale
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}


@functools.cache
def shapes() -> Any:
    """Shapes of the parameters of `InceptionV3`."""
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), images)["params"]


class Inception(NetworkExtractor):
    """`NetworkExtractor` with the other outputs that scores are made of."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, 1008], without bias: the Inception Score takes their softmax."""
        return self.outputs(images, "logits")["logits"]

    def spatial(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, 2023]: sFID's features."""
        return self.outputs(images, "spatial")["spatial"]

    def parts(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Features, spatial ones and float64 probabilities, from one pass."""
        outputs = self.outputs(images, "features", "spatial", "logits")
        logits = outputs.pop("logits").astype(np.float64)
        return {**outputs, "probabilities": scipy.special.softmax(logits, 1)}


def extractor(
    weights: str | Path | None = None, *, dtype: str = "float32", batch: int = 64
) -> Inception:
    """FID's Inception on images resized by `tf1_bilinear`. See `jaxgen.metrics.extractors.load`."""
    apply = applied(InceptionV3, dtype)
    params, digest = obtain(ORIGIN, convert, shapes(), weights)
    return Inception(
        name="inception",
        digest=described(digest, dtype),
        params=params,
        prepare=lambda images: (tf1_bilinear(images, (SIZE, SIZE)) - 128) / 128,
        apply=apply,
        batch=batch,
    )
