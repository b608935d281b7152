"""FID's Inception against torch-fidelity's, on random weights."""

from __future__ import annotations

import dataclasses

import flax
import jax
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.metrics.extractors import inception
from jaxgen.metrics.extractors.resize import tf1_bilinear
from tests.torch_fidelity_kit import torch_fidelity

BLOCKS = {
    "A": (inception.A(pool=32), 192, lambda m: m.InceptionA(192, pool_features=32)),
    "B": (inception.B(), 288, lambda m: m.InceptionB(288)),
    "C": (inception.C(inner=128), 768, lambda m: m.InceptionC(768, channels_7x7=128)),
    "D": (inception.D(), 768, lambda m: m.InceptionD(768)),
    "E": (inception.E(), 1280, lambda m: m.InceptionE_1(1280)),
    "E, maximum": (inception.E(maximum=True), 2048, lambda m: m.InceptionE_2(2048)),
}


def randomise(module, seed: int) -> dict[str, np.ndarray]:
    """Random weights that keep the size of activations, and normalisation that does something."""
    import torch

    rng = np.random.default_rng(seed)
    state = {}
    for name, value in module.state_dict().items():
        shape = tuple(value.shape)
        if name.endswith("num_batches_tracked"):
            state[name] = np.array(7)
        elif name.endswith(("running_var", "bn.weight")):
            state[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif value.ndim == 1:
            state[name] = rng.normal(0, 0.3, shape).astype(np.float32)
        else:
            state[name] = rng.standard_normal(shape, np.float32) * np.float32(
                np.sqrt(2 / np.prod(shape[1:]))
            )
    module.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    module.eval()
    return state


def near(made, expected) -> None:
    # Measured: 2e-6 of the largest at most.
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parity
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_torch_fidelitys(name):
    block, channels, make = BLOCKS[name]
    theirs = make(torch_fidelity("feature_extractor_inceptionv3"))
    import torch

    state = randomise(theirs, seed=len(name))
    x = np.random.default_rng(0).normal(size=(1, 7, 9, channels)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    units = {key.rpartition(".conv.")[0] for key in state if ".conv." in key}
    params = {unit: inception.folded(state, unit) for unit in units}
    near(jax.jit(block.apply)({"params": params}, x), expected)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """(their network, the file of its weights): torch-fidelity's, which downloads nothing here."""
    module = torch_fidelity("feature_extractor_inceptionv3")
    import torch

    class Bare(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            return super().load_state_dict(state) if state else None

    file = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save({}, file)
    network = Bare("theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=file)
    state = randomise(network, seed=1)
    torch.save({k: torch.tensor(v) for k, v in state.items()}, file)
    return network, file


def outputs_of_theirs(network, images: np.ndarray) -> dict[str, np.ndarray]:
    import torch

    seen = {}
    hook = network.Mixed_6d.register_forward_hook(lambda *given: seen.update(map=given[2]))
    with torch.no_grad():
        pool, logits = network(torch.tensor(images.transpose(0, 3, 1, 2)))
    hook.remove()
    spatial = seen["map"][:, :7].permute(0, 2, 3, 1).reshape(len(images), -1)
    return {"features": pool.numpy(), "logits": logits.numpy(), "spatial": spatial.numpy()}


@pytest.mark.parity
def test_the_network_is_torch_fidelitys_on_small_images(theirs, monkeypatch):
    # The last maps are 3x3: as small as tells maxima from means. Both see them at this size.
    network, _ = theirs
    monkeypatch.setattr(network, "INPUT_IMAGE_SIZE", 139)
    images = np.random.default_rng(3).integers(0, 256, (1, 40, 52, 3), np.uint8)
    expected = outputs_of_theirs(network, images)
    params = inception.convert({k: v.numpy() for k, v in network.state_dict().items()})
    x = (tf1_bilinear(images, (139, 139)) - 128) / 128
    made = jax.jit(inception.InceptionV3().apply)({"params": params}, x)
    assert set(made) == set(expected)
    for name in expected:
        near(made[name], expected[name])


@pytest.mark.parity
def test_the_network_is_torch_fidelitys(theirs, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network, file = theirs
    assert sum(p.numel() for p in network.parameters()) == 23_850_960
    images = np.random.default_rng(3).integers(0, 256, (2, 40, 52, 3), np.uint8)
    expected = outputs_of_theirs(network, images)
    one = jax.local_devices()[:1]
    ours = dataclasses.replace(inception.extractor(file, batch=2), devices=one)
    made = ours.outputs(images, "features", "spatial", "logits")
    for name in expected:
        near(made[name], expected[name])
    assert made["spatial"].shape == (2, 2023)
    np.testing.assert_array_equal(ours.features(images), made["features"])
    np.testing.assert_array_equal(ours.spatial(images[:1]), made["spatial"][:1])
    np.testing.assert_array_equal(ours.logits(images), made["logits"])


@pytest.mark.parity
def test_other_inceptions_are_refused(theirs):
    state = {k: v.numpy() for k, v in theirs[0].state_dict().items()}
    with pytest.raises(UsageError, match="AuxLogits"):
        inception.convert(state | {"AuxLogits.fc.weight": np.zeros(1)})
    del state["Mixed_7c.branch_pool.bn.running_mean"]
    with pytest.raises(UsageError, match="Mixed_7c.branch_pool.bn.running_mean"):
        inception.convert(state)


def test_sizes():
    flat = flax.traverse_util.flatten_dict(inception.shapes(), sep=".")
    assert len(flat) == 2 * 94 + 1
    assert flat["fc.kernel"].shape == (2048, 1008)
    kernels = sum(v.size for k, v in flat.items() if k.endswith("kernel"))
    biases = sum(v.size for k, v in flat.items() if k.endswith("bias"))
    # Theirs has a gain and a shift per channel, and the bias that scores leave out.
    assert kernels + 2 * biases + 1008 == 23_850_960
