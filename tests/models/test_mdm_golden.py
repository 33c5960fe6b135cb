"""Ours against numbers made by running ml-mdm (tests/golden/mdm/README.md).

KALEIDO_MDM_GOLDEN names another folder of such files; every file in it is picked up by its `kind`.
"""

import dataclasses
import json
import os
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from kaleido_jax.config import schema as cfg
from kaleido_jax.diffusion import process, samplers, schedule
from kaleido_jax.diffusion.guidance import CFG, Denoiser
from kaleido_jax.diffusion.loss import diffusion_loss, loss_weight, mixed_rows
from kaleido_jax.errors import UserError
from kaleido_jax.interop.mdm import layout as mdm
from kaleido_jax.models import unet
from kaleido_jax.models.nested_unet import build_denoiser
from kaleido_jax.train.optimizer import learning_rate, make_optimizer
from tests.mdm_config import config_from_mdm, denoiser_to_mdm

FOLDER = Path(os.environ.get("KALEIDO_MDM_GOLDEN") or Path(__file__).parents[1] / "golden" / "mdm")
# From the README there: float32 against float64 differs by 8e-6 in networks and 2e-5 after sampling.
NETWORK, TRAJECTORY, DOUBLE = 2e-5, 5e-5, 1e-12
PREDICTIONS = {"V_PREDICTION": "v", "DDPM": "eps", "DDIM": "eps"}
SCHEDULES = {"DEEPFLOYD": "squared_cosine", "COSINE": "cosine", "DDPM": "linear"}
THRESHOLDS = {"NONE": "none", "CLIP": "clip", "DYNAMIC": "dynamic", "DYNAMIC_IF": "dynamic_capped"}


# ----------------------------------------------------------------------------------------- the files
def meta(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


@cache
def tensors(name):
    return load_file(FOLDER / f"{name}.safetensors")


def names_of(*kinds):
    found = [path.stem for path in sorted(FOLDER.glob("*.json")) if meta(path.stem)["kind"] in kinds]
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=f"no file of kind {kinds}"))]


def cases_of(*kinds):
    names = [name for name in names_of(*kinds) if isinstance(name, str)]
    cases = [(name, case) for name in names for case in meta(name).get("cases", {"case0": ""})]
    return cases or [pytest.param(None, None, marks=pytest.mark.skip(reason=f"no file of kind {kinds}"))]


def state_of(name):
    """Weights under ml-mdm's names."""
    return {k.removeprefix("state."): v for k, v in tensors(name).items() if k.startswith("state.")}


def need(name):
    """Skips where a file's weights are in a file that is not in this folder."""
    if not (FOLDER / f"{name}.safetensors").exists():
        pytest.skip(f"{name} is not in this folder")


def image_size(name):
    """The larger side; unet_masked's images are not square, which the network does not mind."""
    return max(tensors(name)["case0.in.x_t.0"].shape[2:])


@pytest.fixture(params=["float32", pytest.param("float64", marks=pytest.mark.slow)])
def dtype(request):
    """Runs a test in both precisions; in float64 the whole of jax is widened."""
    with jax.enable_x64(request.param == "float64"), jax.default_matmul_precision("highest"):
        yield np.dtype(request.param)


def with_table_of(monkeypatch, name):
    """Hands in the file's frequency table: one ulp of exp moves float64 outputs by 3e-6 at t ~ 1000."""
    table = tensors(name)["buffer.t_emb"].reshape(-1)
    monkeypatch.setattr(unet, "frequencies", lambda emb_channels: table)


def close(ours, reference, tolerance, what=""):
    np.testing.assert_allclose(np.asarray(ours), reference, rtol=0, atol=tolerance, err_msg=what)


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


def nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def test_every_file_is_of_a_kind_that_a_test_here_reads():
    kinds = {"UNet", "NestedUNet", "blocks", "schedules", "sampler_math", "losses", "trajectory", "train_steps"}
    for path in FOLDER.glob("*.json"):
        assert meta(path.stem)["kind"] in kinds, path.name


# ----------------------------------------------------------------------------------------- networks
@cache
def imported(name):
    """(config, text channels, our parameters) of a file."""
    values = meta(name)["config"]
    config, text_channels = config_from_mdm(values, image_size(name)), values["conditioning_feature_dim"]
    return config, text_channels, mdm.denoiser_from_mdm(state_of(name), config, text_channels)


def network(name, dtype):
    """(model, params, config) of a file in a precision."""
    config, text_channels, params = imported(name)
    return build_denoiser(config, text_channels, dtype), jax.tree.map(lambda x: jnp.asarray(x, dtype), params), config


def inputs(name, prefix, dtype):
    """(images, times, text, mask, micros) of a case."""
    given = {k.removeprefix(prefix): v for k, v in tensors(name).items() if k.startswith(prefix)}
    images = [nhwc(given[k]).astype(dtype) for k in sorted(given) if k.startswith("x_t.")]
    micros = {k.removeprefix("micros."): v.astype(dtype) for k, v in given.items() if k.startswith("micros.")}
    mask = given["lm_mask"] > 0 if "lm_mask" in given else None
    times = given.get("times", given.get("time"))
    times = jnp.asarray(times, jnp.int32)
    return jax.tree.map(jnp.asarray, (images, times, given["lm_outputs"].astype(dtype), mask, micros))


def denoise(model, params, images, times, text, mask, micros):
    """Text path and one step of the net."""
    forward = lambda net: net(images, times, net.condition(text, mask, micros))  # noqa: E731
    return model.apply({"params": params}, method=forward)


def jitted(model):
    return jax.jit(lambda *args: denoise(model, *args))


@pytest.mark.parametrize(("name", "case"), cases_of("UNet", "NestedUNet"))
def test_networks_predict_as_ml_mdm(name, case, dtype, monkeypatch):
    with_table_of(monkeypatch, name)
    model, params, _ = network(name, dtype)
    out = jitted(model)(params, *inputs(name, f"{case}.in.", dtype))
    double = dtype == np.float64
    for r, prediction in enumerate(out):
        reference = tensors(name)[f"{case}.out_f64.{r}" if double else f"{case}.out.{r}"]
        close(nchw(prediction), reference, DOUBLE if double else NETWORK, f"resolution {r}")


@pytest.mark.parametrize("name", names_of("UNet", "NestedUNet"))
def test_frequency_table_is_within_one_ulp(name):
    table = tensors(name)["buffer.t_emb"].reshape(-1)
    np.testing.assert_array_max_ulp(unet.frequencies(8 * len(table)), table, maxulp=1)


@pytest.mark.parametrize("name", names_of("UNet", "NestedUNet"))
def test_weights_survive_the_round_trip(name):
    state, (config, _, params) = state_of(name), imported(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == meta(name)["params"]
    back = denoiser_to_mdm(params, config)
    assert back.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value.astype(np.float32), err_msg=key)


def tiny_weights():
    levels = {"channels": (32,), "num_res_blocks": (1,), "num_attn_layers": (0,)}
    config = cfg.UNet(image_size=8, emb_channels=32, mid_blocks=False, **levels)
    abstract = mdm.denoiser_shapes(config, 4)
    return config, denoiser_to_mdm(jax.tree.map(lambda x: np.zeros(x.shape, np.float32), abstract), config)


def test_wrong_weights_are_refused_by_name():
    config, state = tiny_weights()
    with pytest.raises(UserError, match=r"1 missing names \(cond_emb.weight\)"):
        mdm.denoiser_from_mdm({k: v for k, v in state.items() if k != "cond_emb.weight"}, config, 4)
    with pytest.raises(UserError, match=r"1 unknown names \(lm_proj.weight\)"):
        mdm.denoiser_from_mdm(state | {"lm_proj.weight": np.zeros(1)}, config, 4)
    with pytest.raises(UserError, match=r"cond_emb.weight has shape \(32, 5\); expected \(32, 4\)"):
        mdm.denoiser_from_mdm(state | {"cond_emb.weight": np.zeros((32, 5))}, config, 4)


def test_parameters_of_another_config_are_not_exported():
    config, state = tiny_weights()
    params = mdm.denoiser_from_mdm(state, config, 4)
    with pytest.raises(UserError, match="missing names"):
        denoiser_to_mdm(params, cfg.UNet(**{**vars(config), "num_res_blocks": (2,)}))


def test_nets_that_ours_cannot_be_are_refused():
    values = {"resolution_channels": [32], "skip_cond_emb": True}
    with pytest.raises(UserError, match="skip_cond_emb = True"):
        config_from_mdm(values, 8)


# ------------------------------------------------------------------------------------------- blocks
def block_config(**fields):
    return cfg.UNet(emb_channels=24, **fields)  # only what single blocks read


def level(net, x, temb, text, mask, skips=None):
    """A level block on its own: (output, activations for the skip stack)."""
    keys_values, pushed = iter(unet.keys_values_of([net], text)), []
    for j in range(len(net.in_channels)):
        x = x if skips is None else jnp.concatenate([x, skips[j]], -1)
        x = net.block(j, x, temb, keys_values, mask)
        pushed.append(x)
    x = net.resample(x if skips is None else unet.nearest_x2(x))
    return [x, *pushed, x] if skips is None else [x]


def resnet(module, x, temb):
    return [module(x, temb)]


def attention(module, x, text=None, mask=None):
    """Without text: no value is added, which is what zero values do."""
    keys_values = module.keys_values(jnp.zeros((x.shape[0], 1, module.text_width)) if text is None else text)
    if text is None:
        keys_values = jax.tree.map(jnp.zeros_like, keys_values)
    return [module(x, keys_values, mask)]


def blocks(dtype):
    """Name -> (module, how to run it, names of its inputs)."""
    ffn, plain = block_config(), block_config(attention_ffn=False)
    return {
        "resnet_same": (unet.ResNet(32, 32, block_config(num_groups=8), dtype), resnet, ("x", "temb")),
        "resnet_grow": (unet.ResNet(32, 64, ffn, dtype), resnet, ("x", "temb")),
        "attn_self": (unet.AttentionBlock(64, 20, plain, dtype), attention, ("x",)),
        "attn_cross": (unet.AttentionBlock(64, 20, plain, dtype), attention, ("x", "cond")),
        "attn_cross_mask_ffn": (
            unet.AttentionBlock(64, 20, ffn, dtype),
            attention,
            ("x", "cond", "cond_mask"),
        ),
        "lm_block": (unet.TextBlock(32, dtype), lambda net, *args: [net(*args)], ("x", "mask")),
        "down": (
            unet.Level((32, 64), 64, 1, 20, ffn, dtype, resample_stride=2),
            level,
            ("x", "temb", "conditioning", "cond_mask"),
        ),
        "up": (
            unet.Level((96, 64), 32, 1, 20, ffn, dtype, resample_stride=1),
            level,
            ("x", "temb", "conditioning", "cond_mask", "skip_activations"),
        ),
    }


def block_input(given, key, dtype):
    if key == "skip_activations":
        return [nhwc(v).astype(dtype) for k, v in sorted(given.items()) if k.startswith(key)]
    if key not in given:
        return None
    if key.endswith("mask"):
        return given[key] > 0
    return (nhwc(given[key]) if given[key].ndim == 4 else given[key]).astype(dtype)


@pytest.mark.parametrize("block", list(blocks(np.float32)))
@pytest.mark.parametrize("name", names_of("blocks"))
def test_blocks_compute_as_ml_mdm(name, block, dtype):
    module, run, keys = blocks(dtype)[block]
    prefix = f"{block}.in."
    given = {k.removeprefix(prefix): v for k, v in tensors(name).items() if k.startswith(prefix)}
    args = jax.tree.map(jnp.asarray, [block_input(given, key, dtype) for key in keys])
    state = {k.removeprefix(f"{block}."): v for k, v in state_of(name).items() if k.startswith(f"{block}.")}
    run_it = lambda net: run(net, *args)  # noqa: E731
    abstract = jax.eval_shape(lambda key: module.init(key, method=run_it), jax.random.key(0))
    abstract = unet.nn.meta.unbox(abstract["params"])
    if block == "attn_self":  # ours always has text parameters
        abstract = {k: v for k, v in abstract.items() if k not in ("norm_cond", "kv_cond")}
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), mdm.params_from_mdm(state, abstract))
    if block == "attn_self":
        params |= {"norm_cond": {"scale": jnp.zeros(20), "bias": jnp.zeros(20)}}
        params |= {"kv_cond": {"kernel": jnp.zeros((20, 128)), "bias": jnp.zeros(128)}}
    double = dtype == np.float64
    for i, out in enumerate(module.apply({"params": params}, method=run_it)):
        reference = tensors(name)[f"{block}.out_f64.{i}" if double else f"{block}.out.{i}"]
        out = nchw(out) if reference.ndim == 4 else out
        close(out, reference, DOUBLE if double else NETWORK, f"output {i}")


# ---------------------------------------------------------------------------------------- diffusion
def diffusion_config(sampler, **fields):
    """Our process of ml-mdm's sampler fields; an unshifted schedule is a shift by scale^0."""
    return cfg.Diffusion(
        schedule=SCHEDULES[sampler["schedule_type"]],
        num_steps=sampler["num_diffusion_steps"],
        prediction=PREDICTIONS[sampler["prediction_type"]],
        loss_space=PREDICTIONS[sampler["loss_target_type"]],
        shift_power=float(sampler["schedule_shifted_power"] if sampler["schedule_shifted"] else 0),
        **fields,
    )


@pytest.mark.parametrize("name", names_of("schedules"))
def test_schedules_equal(name):
    given = tensors(name)
    for key, info in meta(name)["schedules"].items():
        reference = given[f"{key}.gammas"]
        if "from_" not in info:
            ours = SCHEDULES[info["ml_mdm_name"]]
            np.testing.assert_allclose(
                schedule.SCHEDULES[ours](info["steps"]), given[f"{key}.gammas_f64"][1:], rtol=1e-12
            )
            np.testing.assert_array_equal(schedule.alpha_bar_table(ours, info["steps"]), reference, err_msg=key)
            continue
        base = given[f"{info['from_']}.gammas"]
        power, scale = (int(part.lstrip("powerscal")) for part in key.split(".")[1:])  # shift.powerP.scaleS
        assert scale**power == info["snr_divided_by"]
        shifted = np.asarray(schedule.shift(jnp.asarray(base), scale, float(power)))
        close(shifted, reference, 1e-6, key)
        close(np.sqrt(shifted), given[f"{key}.alpha"], 1e-6, key)
        close(np.sqrt(1 - shifted), given[f"{key}.sigma"], 1e-5, key)


@pytest.mark.parametrize("name", names_of("schedules"))
def test_vdm_weights_equal(name):
    for key, reference in tensors(name).items():
        if key.endswith(".vdm_loss_weights"):
            ours = schedule.vdm_weights(tensors(name)[key.replace("vdm_loss_weights", "gammas")])
            np.testing.assert_allclose(ours, reference, rtol=5e-5, err_msg=key)  # theirs, a ratio - 1, is float32


@pytest.mark.parametrize("name", names_of("schedules"))
def test_step_lists_equal(name):
    for key, reference in tensors(name).items():
        if key.startswith("timesteps.infer"):
            n = int(key.removeprefix("timesteps.infer"))
            np.testing.assert_array_equal(schedule.step_list(1000, n), reference)


def relative(ours, reference, what, rtol=1e-5):
    """float32 arithmetic in another order: relative to the largest value."""
    close(ours, reference, rtol * max(1.0, np.abs(reference).max()), what)


@pytest.mark.parametrize("name", names_of("sampler_math"))
def test_targets_conversions_and_thresholds_equal(name):
    given = tensors(name)
    x, eps, alpha_bar, pred = (jnp.asarray(given[f"in.{key}"]) for key in ("images", "eps", "gamma", "pred"))
    x_t = process.add_noise(x, eps, alpha_bar)
    relative(x_t, given["x_t"], "x_t")
    for key, space in (("V_PREDICTION", "v"), ("DDPM", "eps")):
        relative(process.from_x0_eps(x, eps, alpha_bar, space), given[f"target.{key}"], key)
        x0, noise = process.to_x0_eps(pred, x_t, alpha_bar, space)
        relative(x0, given[f"x0_from_pred.{key}"], key)
        relative(noise, given[f"eps_from_pred.{key}"], key)
        prediction = process.change_prediction(x, x_t, alpha_bar, "x0", space)
        relative(prediction, given[f"pred_from_x0.{key}"], key, rtol=1e-4)
    for key, kind in THRESHOLDS.items():
        relative(process.threshold(1.3 * pred, kind), given[f"threshold.{key}"], key)


def reverse_step(sample, images, predictions, noise, levels, diffusion, scales):
    """One of the config's sampler, which carries nothing."""
    sampler, carried = samplers.SAMPLERS[sample.sampler](sample), [()] * len(images)
    levels = samplers.Levels(*levels)
    return samplers.reverse_step(sampler, images, carried, predictions, noise, levels, diffusion, sample, scales)[:2]


@pytest.mark.parametrize("eta", ["None", "0", "0.5", "1.0"])
@pytest.mark.parametrize("name", names_of("sampler_math"))
def test_reverse_steps_equal(name, eta):
    given = tensors(name)
    diffusion = cfg.Diffusion()
    sampler = {"sampler": "ddpm"} if eta == "None" else {"sampler": "ddim", "ddim_eta": float(eta)}
    for key, kind in THRESHOLDS.items():
        sample = cfg.Sample(threshold=kind, **sampler)
        for row in range(2):
            x_t, pred, z = (jnp.asarray(given[k][row : row + 1]) for k in ("x_t", "in.pred", "in.noise"))
            t, s = (jnp.asarray(given[key][row]) for key in ("in.gamma", "in.gamma_last"))
            (x_s,), _ = reverse_step(sample, [x_t], [pred], [z], (t, t, s), diffusion, (1,))
            relative(x_s, given[f"step.{key}.eta_{eta}.x_last"][row : row + 1], f"{key} row {row}")


@pytest.mark.parametrize("kind", ["shifted_p1", "shifted_p2", "unshifted"])
@pytest.mark.parametrize("name", names_of("sampler_math"))
def test_nested_noising_equals(name, kind):
    given, scales = tensors(name), (4, 1)
    diffusion = cfg.Diffusion(shift_power={"shifted_p1": 1.0, "shifted_p2": 2.0, "unshifted": 0.0}[kind])
    clean = [jnp.asarray(nhwc(given[f"nested.in.images.{r}"])) for r in range(2)]
    close(process.pyramid(clean[0], scales)[1], clean[1], 1e-6, "pyramid")
    if kind == "unshifted":  # ml-mdm's other way: amplitudes divided by the scale
        clean = [x / scale for x, scale in zip(clean, scales, strict=True)]
    eps = [jnp.asarray(nhwc(given[f"nested.in.eps.{r}"])) for r in range(2)]
    x_t, alpha_bars = process.q_sample(diffusion, clean, eps, jnp.asarray(given["nested.in.time"]), scales)
    for r in range(2):
        relative(alpha_bars[r], given[f"nested.{kind}.gamma.{r}"], "gamma")
        relative(nchw(x_t[r]), given[f"nested.{kind}.x_t.{r}"], "x_t")
        v = process.from_x0_eps(clean[r], eps[r], alpha_bars[r], "v")
        relative(nchw(v), given[f"nested.{kind}.v_target.{r}"], "v")


# -------------------------------------------------------------------------------------------- losses
def loss_weights(pipeline, levels):
    if not pipeline.get("use_double_loss", True):
        return (1.0,) + (0.0,) * (levels - 1)
    text = pipeline.get("multi_res_weights")
    return tuple(float(w) for w in text.split(":")) if text else ()


def mixed_ratio(pipeline, levels):
    """As `train.mixed_ratio`: "2:1" is (2, 1); all rows everywhere where it is off."""
    text = pipeline.get("mixed_ratio")
    return tuple(int(part) for part in text.split(":")) if text else (1,) + (0,) * (levels - 1)


def noised_case(name, case, info, scales, dtype):
    """(config, clean, eps, x_t, alpha_bars, rest of the network's inputs) of a loss case."""
    given = tensors(name)
    _, times, text, mask, micros = inputs(name, f"{case}.in.", dtype)
    diffusion = diffusion_config(info["sampler"], loss_weights=loss_weights(info["pipeline"], len(scales)))
    clean = process.pyramid(jnp.asarray(nhwc(given[f"{case}.in.images"]), dtype), scales)
    if not info["sampler"]["schedule_shifted"]:
        clean = [x / scale for x, scale in zip(clean, scales, strict=True)]
    eps = [jnp.asarray(nhwc(given[f"{case}.in.eps.{r}"]), dtype) for r in range(len(scales))]
    x_t, alpha_bars = process.q_sample(diffusion, clean, eps, times, scales)
    for r, (noisy, alpha_bar) in enumerate(zip(x_t, alpha_bars, strict=True)):
        relative(alpha_bar, given[f"{case}.gamma.{r}"], f"gamma {r}")
        relative(nchw(noisy), given[f"{case}.x_t.{r}"], f"x_t {r}")
    rows = mixed_rows(mixed_ratio(info["pipeline"], len(scales)), len(times))
    clean, eps, x_t, alpha_bars = (
        [x[:n] for x, n in zip(xs, rows, strict=True)] for xs in (clean, eps, x_t, alpha_bars)
    )
    return diffusion, clean, eps, x_t, alpha_bars, (times, text, mask, micros)


@pytest.mark.parametrize(("name", "case"), cases_of("losses"))
def test_losses_and_gradients_equal(name, case, dtype, monkeypatch):
    info = meta(name)["cases"][case]
    need(info["weights_from"])
    with_table_of(monkeypatch, info["weights_from"])
    model, params, config = network(info["weights_from"], dtype)
    scales = cfg.scales(cfg.Model(denoiser=config))
    diffusion, clean, eps, x_t, alpha_bars, rest = noised_case(name, case, info, scales, dtype)
    weight = None
    if info["pipeline"]["use_vdm_loss_weights"]:  # the file's own, as ours differ by its float32 rounding
        weight = jnp.asarray(tensors(name)[f"{case}.vdm_weights"], dtype)
        ours = loss_weight(dataclasses.replace(diffusion, vdm_weights=True), rest[0])
        np.testing.assert_allclose(ours, weight, rtol=5e-5)

    def loss_of(params):
        predictions = denoise(model, params, x_t, *rest)
        ratio = mixed_ratio(info["pipeline"], len(scales))
        return diffusion_loss(diffusion, predictions, x_t, clean, eps, alpha_bars, weight, ratio)[0]

    norms = info.get("grad_l2_per_parameter")
    loss, grads = jax.jit(jax.value_and_grad(loss_of))(params) if norms else (jax.jit(loss_of)(params), None)
    double = dtype == np.float64
    np.testing.assert_allclose(loss, info["loss_f64" if double else "loss"], rtol=DOUBLE if double else 1e-5)
    if norms:
        check_gradients(denoiser_to_mdm(grads, config), norms, name, case)


def check_gradients(grads, norms, name, case):
    """Norms of all, values of some; the recorded ones are float32, so both precisions meet its tolerance."""
    for key, norm in norms.items():
        close(np.linalg.norm(grads[key]), norm, 1e-5, key)
    for key, reference in tensors(name).items():
        if key.startswith(f"{case}.grad."):
            relative(grads[key.removeprefix(f"{case}.grad.")], reference, key)


# ---------------------------------------------------------------------------------------- sampling
def sample_config(info):
    eta = info["ddim_eta"]
    sampler = {"sampler": "ddpm"} if eta is None else {"sampler": "ddim", "ddim_eta": float(eta)}
    return cfg.Sample(
        num_steps=info["steps"],
        gamma=float(info["guidance_scale"]),
        threshold=THRESHOLDS[info["sampler"]["threshold_function"]],
        **sampler,
    )


def guided(model, params, text, mask, batch, gamma):
    """(images, times) -> predictions; the recorded text has unconditional rows first."""
    condition = lambda rows: model.apply({"params": params}, text[rows], mask[rows], method="condition")  # noqa: E731
    net = lambda *args: model.apply({"params": params}, *args)  # noqa: E731
    cond, uncond = condition(slice(-batch, None)), condition(slice(batch))
    denoiser = Denoiser(denoise=net, cond=cond, uncond=uncond, read=lambda *states: cond, states=())
    keys = jax.random.split(jax.random.key(0), batch)
    # Convolutions of float64 are loops that LLVM makes; the suite's flags, which spare it the work, leave them slow.
    options = {"xla_backend_optimization_level": 1} if jax.config.jax_enable_x64 else None
    return jax.jit(lambda *args: CFG(gamma=gamma)(denoiser, *args, keys, ())[0], compiler_options=options)


def recorded_noise(given, step, images):
    """Noise of a step, zeros where none was drawn."""
    keys = [f"in.step_noise.{step * len(images) + r}" for r in range(len(images))]
    return [
        jnp.asarray(nhwc(given[k]), x.dtype) if k in given else jnp.zeros_like(x)
        for k, x in zip(keys, images, strict=True)
    ]


@pytest.mark.parametrize("name", names_of("trajectory"))
def test_sampling_trajectories_equal(name, dtype, monkeypatch):
    info, given = meta(name), tensors(name)
    need(info["weights_from"])
    with_table_of(monkeypatch, info["weights_from"])
    model, params, config = network(info["weights_from"], dtype)
    diffusion, sample = diffusion_config(info["sampler"]), sample_config(info)
    scales = cfg.scales(cfg.Model(denoiser=config))
    steps = schedule.step_list(diffusion.num_steps, sample.num_steps)
    np.testing.assert_array_equal(steps, info["timesteps"])
    text, mask = jnp.asarray(given["in.lm_outputs"].astype(dtype)), jnp.asarray(given["in.lm_mask"] > 0)
    predict = guided(model, params, text, mask, info["batch"], sample.gamma)
    alpha_bars = jnp.asarray(schedule.alpha_bar_table(diffusion.schedule, diffusion.num_steps), dtype)
    images = [jnp.asarray(nhwc(given[f"in.noise.{r}"]), dtype) for r in range(len(scales))]
    for i, (t, s) in enumerate(zip(steps[:-1], steps[1:], strict=True)):
        predictions = predict(images, jnp.full(info["batch"], t - 1))
        draws = recorded_noise(given, i, images)
        ends = alpha_bars[t], alpha_bars[t], alpha_bars[s]
        images, _ = reverse_step(sample, images, predictions, draws, ends, diffusion, scales)
        for r in range(len(scales)):
            # Guidance multiplies the reference's own float32 error: 5.6e-5 at weight 7, seen from float64.
            close(nchw(predictions[r]), given[f"step{i}.v_guided.{r}"], 2 * TRAJECTORY, f"v of step {i}")
            close(nchw(images[r]), given[f"step{i}.x_next.{r}"], TRAJECTORY, f"x after step {i}")
    final = nchw(jnp.clip(images[0], -1, 1))
    close(final, given["out.final"], TRAJECTORY)
    if dtype == np.float64:
        close(final, given["out.final_f64"], DOUBLE)


# ---------------------------------------------------------------------------------------- training
def train_config(info):
    optimizer = info["optimizer"]
    return cfg.Train(
        learning_rate=optimizer["base_lr"],
        warmup_steps=info["lr_warmup_steps"],
        adam_b1=optimizer["betas"][0],
        adam_b2=optimizer["betas"][1],
        adam_eps=optimizer["eps"],
        clip_norm=info["gradient_clip_norm"],
        ema_decay=info["ema_decay"],
    )


@pytest.mark.parametrize("name", names_of("train_steps"))
def test_training_steps_equal(name, monkeypatch):
    info, given = meta(name), tensors(name)
    need(info["weights_from"])
    with_table_of(monkeypatch, info["weights_from"])
    model, params, net_config = network(info["weights_from"], np.float32)
    diffusion, config = diffusion_config(info["sampler"]), train_config(info)
    optimizer = make_optimizer(config)
    opt_state, ema = optimizer.init(params), params

    @jax.jit
    def value_and_grad(params, clean, eps, rest):
        def loss_of(params):
            x_t, alpha_bars = process.q_sample(diffusion, [clean], [eps], rest[0], (1,))
            predictions = denoise(model, params, x_t, *rest)
            return diffusion_loss(diffusion, predictions, x_t, [clean], [eps], alpha_bars)[0]

        return jax.value_and_grad(loss_of)(params)

    @jax.jit
    def apply(grads, opt_state, params, ema):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, opt_state, optax.incremental_update(params, ema, 1 - config.ema_decay)

    for i, step in enumerate(info["steps"]):
        clean, eps = (nhwc(given[f"step{i}.in.{key}"]) for key in ("images", "eps"))
        loss, grads = value_and_grad(params, clean, eps, inputs(name, f"step{i}.in.", np.float32)[1:])
        np.testing.assert_allclose(loss, step["loss"], rtol=1e-5)
        np.testing.assert_allclose(optax.global_norm(grads), step["grad_norm_before_clip"], rtol=1e-5)
        np.testing.assert_allclose(learning_rate(config)(i), step["lr_used"], rtol=1e-6)
        params, opt_state, ema = apply(grads, opt_state, params, ema)
    check_weights(denoiser_to_mdm(params, net_config), denoiser_to_mdm(ema, net_config), info, given)


def check_weights(params, ema, info, given):
    """Adam turns the sign of near-zero gradients into whole steps, hence 1e-4."""
    for prefix, ours in (("final.", params), ("final_ema.", ema)):
        for key, reference in given.items():
            if key.startswith(prefix):
                close(ours[key.removeprefix(prefix)], reference, 1e-4, key)
    for key, summary in info["final_summaries"].items():
        tolerance = 1e-4 * np.sqrt(params[key].size)
        close(np.linalg.norm(params[key]), summary["l2"], tolerance, key)
        close(np.linalg.norm(ema[key]), summary["ema_l2"], tolerance, key)
