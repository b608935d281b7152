"""DiT, SiT and REPA imported: the forward pass and the samples of their own code and samplers."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import config as configs
from jaxgen.api import import_checkpoint, load, train
from jaxgen.errors import UsageError
from jaxgen.export.card import card
from jaxgen.nn.dit import SIZES as SIZES_OF_THE_PAPER
from jaxgen.nn.positions import sin_cos_2d
from jaxgen.pretrained.layout import Found
from jaxgen.pretrained.layouts import LAYOUTS
from jaxgen.run import portable, record
from jaxgen.run.setup import TOP
from tests.nn_kit import quick_jit
from tests.pretrained.kit import close, model, nchw, nhwc, official, written
from tests.running import run_here

SIZES = dict(depth=2, width=48, patch=2)
LABELS = np.array([0, 4, 2])
HEADS, STEPS = "model.heads=3", "sample.steps=10"


def state_of(*, channels=4, extra=(), side=8):
    """A random checkpoint of DiT's code for latents of this side, positions included."""
    theirs = official()
    shapes = theirs.dit_shapes(channels=channels, classes=5, **SIZES)
    state = theirs.weights({**shapes, **dict(extra)})
    table = np.asarray(sin_cos_2d(side // 2, side // 2, SIZES["width"]))[None]
    return {**state, "pos_embed": table}


def network(state, x, t, labels):
    """The official network's outputs at numbers t [B], NCHW."""
    import torch

    tensors = {k: torch.tensor(np.asarray(a)) for k, a in state.items()}
    t, labels = torch.as_tensor(t), torch.as_tensor(labels)
    return official().dit(tensors, x, t, labels, depth=2, heads=3, patch=2)


def guided(state, x, t, weight, channels):
    """Its outputs guided on the first channels, as their code has it."""
    import torch

    null = np.full_like(LABELS, 5)
    cond, uncond = (network(state, x, t, labels) for labels in (LABELS, null))
    mixed = uncond + weight * (cond - uncond)
    return torch.cat([mixed[:, :channels], cond[:, channels:]], 1)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A pipeline of diffusers in a folder, and its networks."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, patch_size=2, num_embeds_ada_norm=5,
    ).eval()  # fmt: skip
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    embedding = net.transformer_blocks[0].norm1.emb
    for block in net.transformer_blocks:
        block.norm1.emb.load_state_dict(embedding.state_dict())
    kinds = ["DownEncoderBlock2D"] * 2, ["UpDecoderBlock2D"] * 2
    vae = diffusers.AutoencoderKL(
        down_block_types=kinds[0], up_block_types=kinds[1], block_out_channels=(8, 16),
        latent_channels=4, norm_num_groups=4, scaling_factor=0.25,
    ).eval()  # fmt: skip
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    folder = tmp_path_factory.mktemp("pipeline")
    parts = {"transformer": net, "vae": vae, "scheduler": scheduler}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder, net, vae, scheduler


@pytest.mark.parity
def test_a_pipeline_of_diffusers_samples_as_it_did(pipeline, tmp_path):
    """One call to 1e-5; ten steps of DDIM, all channels guided, and the decoded image to 1e-3."""
    import torch

    folder, net, vae, scheduler = pipeline
    ours = model(folder, tmp_path / "dit", STEPS)
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 4)).astype("float32")
    steps = torch.tensor([0, 17, 999])
    with torch.no_grad():
        want = nhwc(net(nchw(x), steps, class_labels=torch.tensor([0, 3, 5])).sample)
    apply = quick_jit(ours.setup.modules.clone(out_channels=8).apply)
    got = apply({"params": ours.weights(None)["net"]}, x, steps.numpy(), np.array([0, 3, 5]))
    close(got[:2], want[:2], 1e-5)
    close(got[2:], want[2:], 5e-5)  # a last digit of a frequency is 6e-5 of an angle at 999

    path = ours.trajectory(LABELS, frames=11)
    scheduler.set_timesteps(10)
    x = nchw(path.states[:, 0])
    for number, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            cond, uncond = (
                net(x, t.expand(3), class_labels=torch.tensor(labels)).sample[:, :4]
                for labels in (LABELS, np.full(3, 5))
            )
        x = scheduler.step(uncond + 4 * (cond - uncond), t, x).prev_sample
        close(path.states[:, number + 1], nhwc(x), 1e-4)
    with torch.no_grad():
        image = nhwc(vae.decode(x / vae.config.scaling_factor).sample.clamp(-1, 1))
    close(path.expected[:, -1], image, 1e-3)


@pytest.mark.parity
def test_dits_own_checkpoint_samples_as_it_did(tmp_path, monkeypatch):
    """Ten of DDPM's respaced steps with the learned variance, three channels guided."""
    from jaxgen.families.diffusion.solvers import base

    noise = np.random.default_rng(1).normal(size=(8, 8, 4)).astype("float32")
    monkeypatch.setattr(base, "normal", lambda keys, *_: jnp.asarray(noise)[None])
    state = state_of()
    file = written(tmp_path / "dit.safetensors", state)
    ours = model(file, tmp_path / "dit", HEADS, STEPS, layout="dit")
    assert ours.tokenizer is None and ours.setup.coding.scale == 0.18215
    path = ours.trajectory(LABELS, frames=11)
    # The posterior of the chain of ten levels, its variance between beta-tilde and beta.
    levels = np.arange(0, 1000, 111)
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[levels]
    before = np.append(1, bar[:-1])
    beta = 1 - bar / before
    small = beta * (1 - before) / (1 - bar)
    small[0] = small[1]
    x = path.states[:, 0]
    for n in reversed(range(10)):
        out = nhwc(guided(state, nchw(x), np.full(3, levels[n], "float32"), 1.5, 3))
        x0 = (x - np.sqrt(1 - bar[n]) * out[..., :4]) / np.sqrt(bar[n])
        share = (out[..., 4:] + 1) / 2
        std = np.exp((share * np.log(beta[n]) + (1 - share) * np.log(small[n])) / 2)
        mean = np.sqrt(before[n]) * beta[n] * x0 + np.sqrt(1 - beta[n]) * (1 - before[n]) * x
        x = (mean / (1 - bar[n]) + (n > 0) * std * noise).astype("float32")
    close(path.states[:, -1], x, 1e-3)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["sit", "repa"])
def test_sit_and_repa_sample_as_they_did(name, tmp_path):
    """Eight steps along the velocity: SiT's to the data, three channels guided; REPA's, all."""
    state = state_of()
    if name == "repa":
        for part in ("weight", "bias"):
            rows = state[f"final_layer.linear.{part}"].reshape(2, 2, 8, -1)[:, :, :4]
            state[f"final_layer.linear.{part}"] = rows.reshape(16, *(48,) * (part == "weight"))
        state["projectors.0.0.weight"] = np.ones((6, 48), "float32")
    file = written(tmp_path / "x.safetensors", state)
    layout = None if name == "repa" else name
    changes = ("sample.steps=8", "sample.solver=euler", "sample.grid=uniform")
    ours = model(file, tmp_path / "run", HEADS, *changes, layout=layout)
    path = ours.trajectory(LABELS, frames=2)
    x = nchw(path.states[:, 0])
    for t in 1 - np.arange(8) / 8:
        if name == "sit":
            x = x + guided(state, x, np.full(3, 1 - t, "float32"), 1.5, 3)[:, :4] / 8
        else:
            x = x - guided(state, x, np.full(3, t, "float32"), 1.8 if t <= 0.7 else 1.0, 4) / 8
    close(path.states[:, -1], nhwc(x), 1e-3)


def test_published_sizes_are_known_by_their_shapes(tmp_path):
    """All of the paper's, by shapes alone: nothing of that size is made."""

    def shapes(depth, width, patch, side):
        official_shapes = {
            "x_embedder.proj.weight": (width, 4, patch, patch),
            "y_embedder.embedding_table.weight": (1001, width),
            "blocks.0.mlp.fc1.weight": (4 * width, width),
            "final_layer.linear.bias": (patch * patch * 8,),
            "pos_embed": (1, (side // patch) ** 2, width),
            f"blocks.{depth - 1}.mlp.fc2.bias": (width,),
        }
        empty = np.zeros(1, "float32")
        strided = np.lib.stride_tricks.as_strided
        return {n: strided(empty, s, (0,) * len(s)) for n, s in official_shapes.items()}

    for name, fields in SIZES_OF_THE_PAPER.items():
        for patch in (2, 4, 8):
            state = shapes(fields["depth"], fields["width"], patch, 64)
            config = LAYOUTS["dit"].config(Found(state))
            assert config["model"] == dict(name="dit.DiT", size=f"{name}/{patch}", time_scale=1.0)
            assert config["data"]["holds"] == dict(shape=(64, 64, 4), num_classes=1000, levels=None)
            assert config["method"]["learned_variance"]


def rng_state():
    """Names and shapes of a tiny checkpoint, without PyTorch."""
    rng = np.random.default_rng(0)
    width, depth = 48, 2
    shapes = {
        "x_embedder.proj": (width, 4, 2, 2),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (32, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for i in range(depth):
        shapes |= {
            f"blocks.{i}.attn.qkv": (3 * width, width),
            f"blocks.{i}.attn.proj": (width, width),
            f"blocks.{i}.mlp.fc1": (4 * width, width),
            f"blocks.{i}.mlp.fc2": (width, 4 * width),
            f"blocks.{i}.adaLN_modulation.1": (6 * width, width),
        }
    state = {f"{n}.weight": rng.normal(size=s) * 0.1 for n, s in shapes.items()}
    state |= {f"{n}.bias": rng.normal(size=s[0]) * 0.1 for n, s in shapes.items()}
    state["y_embedder.embedding_table.weight"] = rng.normal(size=(6, width))
    state["pos_embed"] = np.asarray(sin_cos_2d(4, 4, width))[None]
    return {k: a.astype("float32") for k, a in state.items()}


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda s: s, dict(), r"--layout: got None; allowed: --layout dit or --layout sit"),
        (lambda s: s, dict(layout="dti"), "--layout: got 'dti'.*Did you mean 'dit'"),
        (lambda s: s, dict(layout="dit"), r"config.model.heads: got None.*--config.model.heads=N"),
        (
            lambda s: {k: a for k, a in s.items() if k != "pos_embed"},
            dict(layout="dit", overrides=(HEADS,)),
            r"config.data.holds.shape: got None.*--config.data.holds.shape",
        ),
        (
            lambda s: {k: a for k, a in s.items() if "blocks.1.attn.proj" not in k} | {"odd": s[
                "pos_embed"
            ]},
            dict(layout="dit", overrides=(HEADS,)),
            "missing: blocks.1.attn.proj.bias, blocks.1.attn.proj.weight; left over: odd",
        ),
        (
            lambda s: s | {"blocks.1.mlp.fc1.bias": np.zeros(7, "float32")},
            dict(layout="dit", overrides=(HEADS,)),
            "of another shape: blocks.0.mlp.fc1.bias",
        ),
        (
            lambda s: s | {"t_embedder.mlp.0.weight": np.zeros((48, 128), "float32")},
            dict(layout="dit", overrides=(HEADS,)),
            r"of another shape: noise.hidden.kernel \(128, 48\), not \(256, 48\)",
        ),
        (
            lambda s: s | {"pos_embed": s["pos_embed"] + 1},
            dict(layout="dit", overrides=(HEADS,)),
            "pos_embed.*sines and cosines",
        ),
        (
            lambda s: s,
            dict(layout="dit", overrides=(HEADS, "model.patch=4")),
            "patch: got 4.*2, the checkpoint's",
        ),
        (lambda s: s, dict(layout="dit", vae="nowhere"), "SOURCE: got 'nowhere'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_message(change, options, message, tmp_path):
    file = written(tmp_path / "x.safetensors", change(rng_state()))
    with pytest.raises(UsageError, match=message):
        import_checkpoint(file, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_what_is_asked_and_says_what_is_missing(tmp_path):
    """Only a missing VAE is said, since the codes are what it is a model of."""
    file, out = written(tmp_path / "x.safetensors", rng_state()), tmp_path / "out"
    code, said, err = run_here(
        "import",
        str(file),
        "--layout",
        "sit",
        "--out",
        str(out),
        "--config.model.heads=3",
        "--json",
    )
    assert code == 0 and "--vae" in err
    told = json.loads(said)
    assert told["layout"] == "sit" and told["shape"] == [8, 8, 4] and told["classes"] == 5
    assert portable.verify(out)["images"] == 0
    what = dict(receipts=[], others={}, grids=[], licence=None)
    about = record.recorded(out)["imported"]
    assert "imported from `x.safetensors`, of layout sit, with jaxgen" in card(
        "x", load(out), ema="params", imported=about, **what
    )
    code, _, err = run_here("sample", "--workdir", str(out), "--out", str(tmp_path / "x.png"))
    assert code == 2 and "--tokenizer: got None" in err and "--codes" in err
    code, _, err = run_here("import", str(file), "--layout", "sit", "--out", str(out))
    assert code == 2 and "new folder" in err
    code, _, err = run_here("import", str(file), "--out", str(tmp_path / "other"))
    assert code == 2 and len(err.strip().splitlines()) == 1


def test_it_is_a_model_like_any_other(tmp_path):
    """Samples, scores, a plan; codes classified; LoRA that begins at it, and a student of it."""
    file, out = written(tmp_path / "x.safetensors", rng_state()), tmp_path / "out"
    import_checkpoint(file, out, layout="dit", overrides=(HEADS, "sample.steps=2"))
    grid = tmp_path / "codes.npz"
    for command in (
        ("sample", "--workdir", str(out), "--per_label", "1", "--codes", "--out", str(grid)),
        ("plan", "--config", str(out), "--topology", "cpu:1", "--what", "sample"),
    ):
        code, _, err = run_here(*command)
        assert code == 0, err
    rng = np.random.default_rng(0)
    moments = {"mean": rng.normal(size=(10, 8, 8, 4)), "std": np.ones((10, 8, 8, 4))}
    moments = {k: a.astype("float32") for k, a in moments.items()}
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", labels=np.arange(10) % 5, **moments)
    here = f"--config.data.source.path={tmp_path}/{{split}}.npz"
    scored = ("evaluate", "--workdir", str(out), here, "--samples", "10", "--intervals", "0")
    for command in (("classify", "--workdir", str(out), here, "--draws", "1"), scored):
        code, _, err = run_here(*command)
        assert code == 0, err
    config = record.saved_config(out)
    changes = (here.removeprefix("--config."), "data.batch_size=8")
    changes += ("train.images=16", "ema.half_life=(8,)", "evaluate.at_end=False")
    configs.override(config, (*changes, "log.tensorboard=False"), TOP)
    config.wrap = [dict(name="tune.lora.lora", rank=2)]
    trained = train(config, tmp_path / "run", init_from=str(out))
    moved = trained.sample([0, 1]).images - load(out).sample([0, 1]).images
    assert np.isfinite(moved).all()
    assert jax.tree.leaves(trained.model.params["params"]["lora"])
    config.networks = dict(teacher=str(out))
    config.model.conditions = (("w", "number"),)
    config.wrap = [dict(name="distill.guidance.guided")]
    configs.override(config, ("sample.guidance=1.5",), TOP)
    student = train(config, tmp_path / "student", init_from=str(out))
    assert np.isfinite(student.sample([0, 1]).images).all()
