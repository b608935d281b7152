"""LlamaGen imported: logits, the most probable guided tokens, and images of its own code."""

from __future__ import annotations

import numpy as np
import pytest

from jaxgen.api import import_checkpoint, load
from jaxgen.errors import UsageError
from jaxgen.nn.llama import SIZES as SIZES_OF_THE_PAPER
from jaxgen.pretrained.layout import Found
from jaxgen.pretrained.layouts import LAYOUTS
from tests.nn_kit import quick_jit
from tests.pretrained.kit import close, nchw, nhwc, official, written

GPT = dict(layers=2, width=32)
VQ = dict(widths=(32, 64), blocks=1, channels=32, levels=11, width=4)
LABELS = np.array([0, 2, 1])
CHANGES = ("model.heads=2", "data.holds.shape=(3,3)", "sample.top_k=1")


def gpt(tokens, labels, state):
    torch = pytest.importorskip("torch")
    given = torch.tensor(np.array(tokens)), torch.tensor(labels)
    sizes = dict(layers=2, heads=2, side=3, turned=False)
    return official().llamagen(state, *given, **sizes).numpy()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The two checkpoints: files, their weights, and the tokenizer's network."""
    folder, theirs = tmp_path_factory.mktemp("llamagen"), official()
    shapes = theirs.llamagen_shapes(hidden=96, levels=11, classes=3, **GPT)
    first = theirs.weights(shapes, scale=0.3)
    net = theirs.LlamaGenVQ(**VQ)
    second = theirs.weights(net.names(), seed=1)
    extra = {**second, "quantize.codebook_used": np.zeros(8, "float32")}
    places = written(folder / "gpt.safetensors", first), written(folder / "vq.safetensors", extra)
    return places, first, second, net


@pytest.mark.parity
def test_llamagen_makes_the_images_that_it_made(files, tmp_path):
    """Logits to 1e-5; nine guided tokens, the most probable; their image to 1e-3."""
    (place, vae), state, second, net = files
    import_checkpoint(place, tmp_path / "run", vae=vae, overrides=CHANGES)
    ours = load(tmp_path / "run")
    tokens = np.random.default_rng(3).integers(0, 11, (4, 9))
    labels = np.array([0, 1, 2, 3])  # 3: no label
    apply = quick_jit(ours.setup.modules.apply)
    got = apply({"params": ours.weights(None)["net"]}, tokens, labels)
    close(got, gpt(tokens, labels, state), 1e-5)
    assert ours.setup.config.sample.guidance == 2.0
    chosen = np.zeros((3, 9), int)
    for i in range(9):
        cond, uncond = (gpt(chosen, rows, state)[:, i] for rows in (LABELS, np.full(3, 3)))
        chosen[:, i] = (uncond + 2 * (cond - uncond)).argmax(-1)
    made = ours.sample(LABELS)
    np.testing.assert_array_equal(made.codes, chosen.reshape(3, 3, 3))
    image = nhwc(net.decode(second, pytest.importorskip("torch").tensor(made.codes).long()))
    close(made.images, np.clip(image, -1, 1), 1e-3)


@pytest.mark.parity
def test_its_tokenizer_encodes_as_it_did(files, tmp_path):
    (_, vae), _, second, net = files
    import_checkpoint(vae, tmp_path / "vq", overrides=("data.holds.shape=(8,8,3)",))
    ours = load(tmp_path / "vq")
    x = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype("float32")
    tokens = ours.encode(x)
    np.testing.assert_array_equal(tokens, net.encode(second, nchw(x)).numpy())
    assert len(np.unique(tokens)) > 4


def test_sizes_are_known_by_their_shapes():
    """All of the paper's, by shapes alone: nothing of that size is made."""

    def array(*shape):
        return np.lib.stride_tricks.as_strided(np.zeros(1, "float32"), shape, (0,) * len(shape))

    for name, fields in SIZES_OF_THE_PAPER.items():
        width = fields["width"]
        hidden = -(-int(8 * width / 3) // 256) * 256
        state = {
            "tok_embeddings.weight": array(16384, width),
            "cls_embedding.embedding_table.weight": array(1001, width),
            "layers.0.feed_forward.w1.weight": array(hidden, width),
            f"layers.{fields['depth'] - 1}.ffn_norm.weight": array(width),
        }
        config = LAYOUTS["llamagen"].config(Found(state))
        wanted = dict(name="llama.Llama", size=name, zero_class_token=True)
        assert config["model"] == wanted
        holds = dict(shape=None, num_classes=1000, levels=16384, tokens=True)
        assert config["data"]["holds"] == holds


@pytest.mark.parity
def test_what_does_not_fit_is_one_message(files, tmp_path):
    (place, vae), *_ = files
    with pytest.raises(UsageError, match=r"holds.shape: got None.*\(16,16\) of tokens"):
        import_checkpoint(place, tmp_path / "x", overrides=CHANGES[:1])
    theirs = official()
    other = theirs.LlamaGenVQ(**{**VQ, "levels": 12})
    wrong = written(tmp_path / "other.safetensors", theirs.weights(other.names()))
    allowed = r"--vae: got 'codes \(3, 3\) of 12 levels'.*codes \(3, 3\) of 11 levels"
    with pytest.raises(UsageError, match=allowed):
        import_checkpoint(place, tmp_path / "x", vae=wrong, overrides=CHANGES)
    with pytest.raises(UsageError, match="--vae: got \"LlamaGen's GPT"):
        import_checkpoint(place, tmp_path / "x", vae=place, overrides=CHANGES)
    assert not (tmp_path / "x").exists() and vae.is_file()
