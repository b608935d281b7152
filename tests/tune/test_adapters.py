"""LoRA in files: peft's and diffusers' read and written, added to a model with weights."""

import json

import flax.traverse_util as trees
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxgen.api import export
from jaxgen.cli import main
from jaxgen.errors import UsageError
from jaxgen.nn.dit import DiT
from jaxgen.pretrained.dit import from_diffusers
from jaxgen.run.model import load
from jaxgen.tune import adapters, lora
from tests.base_run import base, write

SHAPES = {"out": (6, 5), "conv": (3, 3, 4, 6), "blocks.qkv": (2, 4, 12), "blocks.proj": (2, 4, 4)}
PARAMS = {"net": trees.unflatten_dict({f"{n}.kernel": np.zeros(s, np.float32)
                                       for n, s in SHAPES.items()}, sep=".")}  # fmt: skip
LORA = "wrap=" + repr([dict(name="tune.lora", rank=2, alpha=8.0)])


def random_adapter(rank=3):
    """Of all kernels; neither A nor B is zero."""
    made = lora.adapters(jax.random.key(0), PARAMS, rank, "kernel")
    return jax.tree.map(lambda a: np.random.default_rng(a.size).normal(size=a.shape), made)


def changed(adapter, scale=1.0):
    return trees.flatten_dict(lora.merge({**PARAMS, "lora": adapter}, scale)["net"], sep=".")


def same(a, b, atol=1e-6):
    assert a.keys() == b.keys()
    for name in a:
        scale = np.abs(b[name]).max()
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=atol * scale, err_msg=name)


class Torch:
    """The network of those kernels in torch, with layers of our names, and peft's names of it."""

    def __init__(self):
        self.torch, self.peft = pytest.importorskip("torch"), pytest.importorskip("peft")
        nn = self.torch.nn
        layer = lambda: nn.ModuleDict({"qkv": nn.Linear(4, 12), "proj": nn.Linear(4, 4)})
        net = nn.ModuleDict({"out": nn.Linear(6, 5), "conv": nn.Conv2d(4, 6, 3)})
        net["blocks"] = nn.ModuleList([layer(), layer()])
        self.net = nn.ModuleDict({"net": net})

    def deltas(self, model):
        """What peft adds to each kernel, as ours."""
        found = {}
        for name, module in model.named_modules():
            if hasattr(module, "get_delta_weight"):
                delta = module.get_delta_weight(module.active_adapters[0]).detach().numpy()
                axes = (1, 0) if delta.ndim == 2 else (2, 3, 1, 0)
                found[name.partition("net.")[2]] = delta.transpose(axes)
        for layer in ("qkv", "proj"):
            nothing = PARAMS["net"]["blocks"][layer]["kernel"][0]
            rows = [found.pop(f"blocks.{i}.{layer}", nothing) for i in range(2)]
            found[f"blocks.{layer}"] = np.stack(rows)
        return {f"{name}.kernel": delta for name, delta in found.items()}


@pytest.mark.parity
@pytest.mark.parametrize(
    "options",
    [
        dict(r=3, lora_alpha=7),
        dict(r=4, lora_alpha=7, use_rslora=True),
        dict(r=3, rank_pattern={"out": 2, "blocks.1.qkv": 5}, alpha_pattern={"conv": 9, "qkv": 2}),
        dict(r=3, target_modules=["0.qkv", "1.proj", "out", "conv"]),
    ],
    ids=["alpha", "rslora", "patterns", "some"],
)
def test_a_folder_of_pefts_is_read(options, tmp_path):
    torch = Torch()
    torch.torch.manual_seed(0)
    told = dict(target_modules=["qkv", "proj", "out", "conv"], init_lora_weights=False) | options
    theirs = torch.peft.get_peft_model(torch.net, torch.peft.LoraConfig(**told))
    theirs.save_pretrained(str(tmp_path / "peft"))
    found = adapters.read(tmp_path / "peft", PARAMS)
    same(changed(found), torch.deltas(theirs))


@pytest.mark.parity
def test_peft_reads_ours(tmp_path):
    torch, adapter = Torch(), random_adapter()
    adapters.write(tmp_path / "peft", adapter, rank=3, alpha=7.0, layout="peft")
    theirs = torch.peft.PeftModel.from_pretrained(torch.net, str(tmp_path / "peft"))
    same(torch.deltas(theirs), changed(adapter, 7 / 3))
    same(changed(adapters.read(tmp_path / "peft", PARAMS)), changed(adapter, 7 / 3))


@pytest.fixture(scope="module")
def transformers():
    """diffusers' DiT, and ours with its weights."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, out_channels=1, num_layers=2,
        sample_size=4, patch_size=2, num_embeds_ada_norm=3, norm_eps=1e-6,
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    embedding = theirs.transformer_blocks[0].norm1.emb
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(embedding.state_dict())
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    params = {"net": from_diffusers(state, patch=2, heads=2)}
    return torch, theirs, params


def outputs(transformers, params=None):
    """What the network says, theirs or (of params) ours."""
    torch, theirs, _ = transformers
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype("float32")
    steps, labels = np.array([0, 17, 500]), np.array([0, 2, 3])
    if params is not None:
        net = DiT(num_classes=3, out_channels=1, depth=2, width=16, heads=2, patch=2)
        return net.apply({"params": params["net"]}, x, jnp.asarray(steps / 1000), labels)
    with torch.no_grad():
        given = torch.tensor(x).permute(0, 3, 1, 2)
        said = theirs(given, torch.tensor(steps), class_labels=torch.tensor(labels)).sample
    return said.permute(0, 2, 3, 1).numpy()


TARGETS = ["to_q", "to_v", "to_out.0", "ff.net.0.proj", "norm1.linear", "proj_out_2"]


@pytest.mark.parity
def test_diffusers_file_of_a_dit_is_read_and_written(transformers, tmp_path):
    """On its layers' names, through its own writer; back through peft's loader."""
    torch, theirs, params = transformers
    peft = pytest.importorskip("peft")
    from diffusers.loaders.lora_base import LoraBaseMixin

    plain = outputs(transformers)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, init_lora_weights=False)
    peft.inject_adapter_in_model(config, theirs)
    wanted = outputs(transformers)
    assert np.abs(wanted - plain).max() > 0.1 * np.abs(plain).max()
    state = LoraBaseMixin.pack_weights(peft.get_peft_model_state_dict(theirs), "transformer")
    said = {f"transformer.{k}": v for k, v in config.to_dict().items() if k in ("r", "lora_alpha")}
    LoraBaseMixin.write_lora_layers(state, str(tmp_path), True, "a.safetensors", None, True, said)
    found = adapters.read(tmp_path / "a.safetensors", params, heads=2)
    merged = lora.merge({**params, "lora": found}, 1.0)
    bound = dict(rtol=0, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(outputs(transformers, merged), wanted, **bound)
    with pytest.raises(UsageError, match=r"heads.*number of heads"):
        adapters.read(tmp_path / "a.safetensors", params)

    ours = lora.adapters(jax.random.key(0), params, 2, r"blocks\.(qkv|proj|contract)|net\.out")
    ours = jax.tree.map(lambda a: np.asarray(a) + 0.2, ours)
    place = tmp_path / "b.safetensors"
    adapters.write(place, ours, rank=2, alpha=3.0, layout="diffusers", heads=2)
    about = json.loads(safetensors.safe_open(place, "numpy").metadata()["lora_adapter_metadata"])
    own = {k.removeprefix("transformer."): v for k, v in about.items()}
    peft.inject_adapter_in_model(peft.LoraConfig(**own), theirs, adapter_name="ours")
    held = safetensors.torch.load_file(place)
    held = {k.removeprefix("transformer."): v for k, v in held.items()}
    peft.set_peft_model_state_dict(theirs, held, adapter_name="ours")
    for module in theirs.modules():
        if hasattr(module, "set_adapter"):
            module.set_adapter("ours")
    wanted = outputs(transformers)
    merged = lora.merge({**params, "lora": ours}, 1.5)
    bound = dict(rtol=0, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(outputs(transformers, merged), wanted, **bound)


def test_names_of_the_papers_code_and_alphas_in_the_file_are_read(tmp_path):
    """The layout of older files: a number `alpha` beside each layer."""
    chance = np.random.default_rng(0)
    params = {"net": {"blocks": {"qkv": {"kernel": np.zeros((2, 4, 12), np.float32)}}}}
    a, b = chance.normal(size=(3, 4)), chance.normal(size=(12, 3))
    held = {"blocks.1.attn.qkv.lora_A.weight": a, "blocks.1.attn.qkv.lora_B.weight": b}
    held |= {"blocks.1.attn.qkv.alpha": np.array(6.0)}
    file = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in held.items()}, file)
    found = adapters.read(file, params, heads=2)
    kernel = lora.merge({**params, "lora": found}, 1.0)["net"]["blocks"]["qkv"]["kernel"]
    wanted = (2 * b @ a).T.reshape(4, 3, 2, 2).transpose(0, 2, 1, 3).reshape(4, 12)
    np.testing.assert_allclose(kernel[1], wanted, atol=1e-5)
    assert not kernel[0].any()


def put(module, a, b):
    """A layer of those shapes in the file."""
    named = f"base_model.model.net.{module}.lora_"
    return lambda held, config: held.update(
        {f"{named}A.weight": np.ones(a, np.float32), f"{named}B.weight": np.ones(b, np.float32)}
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda held, config: config.update(use_dora=True), "with use_dora.*plain LoRA"),
        (lambda held, config: config.update(peft_type="IA3"), "with IA3.*plain LoRA"),
        (
            lambda held, config: held.pop("base_model.model.net.out.lora_B.weight"),
            "net.out has lora_A.*lora_A and lora_B",
        ),
        (put("in", (3, 6), (5, 3)), r"net\.in\.kernel: \(6, 5\) there, nothing here"),
        (put("out", (3, 9), (5, 3)), r"net\.out\.kernel: \(9, 5\) there, \(6, 5\) here"),
        (
            put("blocks.7.proj", (3, 4), (4, 3)),
            r"proj\.kernel: \(8, 4, 4\) there, \(2, 4, 4\) here",
        ),
    ],
)
def test_what_does_not_fit_is_refused(spoil, words, tmp_path):
    place = adapters.write(tmp_path / "peft", random_adapter(), rank=3, alpha=3.0, layout="peft")
    held = safetensors.numpy.load_file(place / adapters.WEIGHTS)
    config = json.loads((place / adapters.CONFIG).read_text())
    spoil(held, config)
    safetensors.numpy.save_file(held, place / adapters.WEIGHTS)
    (place / adapters.CONFIG).write_text(json.dumps(config))
    with pytest.raises(UsageError, match=words):
        adapters.read(place, PARAMS)


def test_pickles_and_what_is_not_there_are_refused(tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04K\x01.")
    for place in (tmp_path, tmp_path / "adapter_model.bin", tmp_path / "none"):
        with pytest.raises(UsageError, match="adapter.*safetensors"):
            adapters.read(place, PARAMS)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A run of LoRA, as if trained."""
    return write(tmp_path_factory.mktemp("tuned") / "run", LORA)


def test_adapters_are_added_when_one_samples(tuned, tmp_path):
    """A run's and a file's alike, several with weights; a weight of 0 is the model itself."""
    model, other = load(base()), load(tuned)
    run, file = str(tuned), str(tmp_path / "a.safetensors")
    export(other, file, adapter="jaxgen")
    export(other, tmp_path / "peft", adapter="peft")
    draw = lambda **more: model.sample([1, 2], seed=1, **more).images
    plain, merged = draw(), draw(adapters=run)
    assert np.abs(merged - plain).max() > 1e-3
    np.testing.assert_array_equal(draw(adapters={run: 0.0}), plain)
    same = dict(rtol=0, atol=1e-5 * np.abs(merged).max())
    for way in (file, {file: 1.0}, str(tmp_path / "peft"), {run: 0.25, file: 0.75}):
        np.testing.assert_allclose(draw(adapters=way), merged, **same)
    np.testing.assert_allclose(draw(adapters={run: 1.0, file: -1.0}), plain, **same)
    weights = lora.merge(
        {"net": model.weights(None)["net"], "lora": other.weights(None)["lora"]}, 4.0
    )
    added = model.weights(None, {run: 1.0})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), added["net"],
                 weights["net"])  # fmt: skip
    # One program serves all weights.
    assert len(model._programs) == 1


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (3, "sample.adapters.*a place, or"),
        ({}, "sample.adapters.*a place, or"),
        ({"RUN": "much"}, "much.*a finite number"),
        ({"RUN": float("nan")}, "nan.*a finite number"),
        ("BASE", "a run without an adapter"),
        ("/nowhere", "adapter.*/nowhere"),
    ],
)
def test_bad_adapters_are_one_message(section, words, tuned):
    named = {"RUN": str(tuned), "BASE": base()}
    if isinstance(section, dict):
        section = {named.get(k, k): v for k, v in section.items()}
    with pytest.raises(UsageError, match=words):
        load(base()).sample([1], adapters=named.get(section, section) if isinstance(
            section, str) else section)  # fmt: skip


def test_adapters_of_another_network_are_refused(tuned, tmp_path):
    wide = load(write(tmp_path / "wide", "model.width=32"))
    export(load(tuned), tmp_path / "a.safetensors", adapter="jaxgen")
    for place in (tuned, tmp_path / "a.safetensors"):
        with pytest.raises(UsageError, match="an adapter of this network.*net"):
            wide.sample([1], adapters=str(place))


def test_the_command_line_exports_and_adds_them(tuned, tmp_path, capsys):
    own = ["export", "--workdir", str(tuned), "--adapter", "peft", "--out", str(tmp_path / "peft")]
    assert main(own) == 0
    assert (tmp_path / "peft" / "adapter_config.json").is_file()
    draw = ["sample", "--workdir", base(), "--labels", "1", "--out", str(tmp_path / "a.npz")]
    assert main([*draw, f"--sample.adapters={tmp_path / 'peft'}"]) == 0
    capsys.readouterr()
    for more, words in (
        (["--adapter", "peft", "--out", str(tmp_path / "peft")], "nothing is yet"),
        (["--adapter", "jaxgen", "--out", str(tmp_path / "x.bin")], "safetensors"),
        (
            ["--adapter", "diffusers", "--out", str(tmp_path / "x.safetensors")],
            "'diffusers' of net",
        ),
        (["--adapter", "peft", "--license", "mit", "--out", str(tmp_path / "y")], "--license"),
    ):
        assert main(["export", "--workdir", str(tuned), *more]) == 2
        assert words in capsys.readouterr().err
    args = ["export", "--workdir", base(), "--adapter", "peft", "--out", str(tmp_path / "z")]
    assert main(args) == 2 and "tune.lora" in capsys.readouterr().err


def test_a_second_lora_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"tune\.lora twice"):
        write(tmp_path / "run", "wrap=" + repr(2 * [dict(name="tune.lora", rank=2)]))
