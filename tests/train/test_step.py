import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kaleido_jax.config.checks import mesh_sizes
from kaleido_jax.models import decode
from kaleido_jax.models.kaleido import build_model, init_params, split_frozen
from kaleido_jax.runtime.mesh import make_mesh
from kaleido_jax.runtime.posthoc_ema import gamma_of
from kaleido_jax.train import step as step_module
from kaleido_jax.train.optimizer import learning_rate, make_optimizer, may_overflow
from kaleido_jax.train.state import Guard, State, adjusted, create_state, moved_ema, moved_profiles, share_of_start
from kaleido_jax.train.step import _gradients, joint_loss, make_train_step, mixed_inputs, token_loss
from tests.tiny import single_net_config, small_nest_config, tiny_batch

CONFIG = single_net_config()
BATCH = {k: jnp.asarray(v) for k, v in tiny_batch(CONFIG).items() if k != "sample_id"}
ROWS = 256  # token rows before the vokens


def _change(config, group, **values):
    return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **values)})


@pytest.fixture(scope="module")
def model():
    return build_model(CONFIG, ROWS)


@pytest.fixture(scope="module")
def params(model):
    return _random(model)


def _random(model):
    shapes = jax.eval_shape(lambda: nn.meta.unbox(init_params(model, jax.random.key(0))))
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.3, jnp.float32), shapes)


@functools.partial(jax.jit, static_argnums=(1, 2))
def losses(params, model, config, batch):
    return joint_loss(params, model, config, batch, 0)[1]


@functools.partial(jax.jit, static_argnums=(1, 2))
def gradients(params, model, config, batch):
    """Of L_DM and L_AR apart, by one linearisation."""
    _, pull = jax.vjp(lambda p: _both_losses(p, model, config, batch), params)
    return pull((1.0, 0.0))[0], pull((0.0, 1.0))[0]


def _both_losses(params, model, config, batch):
    metrics = joint_loss(params, model, config, batch, 0)[1]
    return metrics["loss_dm"], metrics["loss_ar"]


def _norm(tree):
    return float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(tree)))


@pytest.mark.slow
def test_training_reads_the_micro_conditions_of_the_batch():
    net = dataclasses.replace(CONFIG.model.denoiser, micro=(("scale", 8.0),))
    config = _change(CONFIG, "model", denoiser=net)
    model = build_model(config, ROWS)
    params = _random(model)
    default = losses(params, model, config, BATCH)["loss_dm"]
    native, enlarged = (BATCH | {"micro_scale": jnp.full(8, value)} for value in (8.0, 2.0))
    np.testing.assert_allclose(losses(params, model, config, native)["loss_dm"], default, rtol=1e-6)
    assert abs(losses(params, model, config, enlarged)["loss_dm"] - default) > 1e-5


def test_loss_is_dm_plus_eta_ar(model, params):
    parts = losses(params, model, _change(CONFIG, "train", eta=0.25), BATCH)
    np.testing.assert_allclose(parts["loss"], parts["loss_dm"] + 0.25 * parts["loss_ar"], rtol=1e-6)
    np.testing.assert_allclose(parts["loss_dm"], parts["loss_dm_r0"], rtol=1e-6)


def test_both_losses_reach_the_prior_and_only_the_ar_loss_its_head(model, params):
    of_dm, of_ar = gradients(params, model, CONFIG, BATCH)
    assert _norm(of_dm["prior"]["layers"]) > 0 and _norm(of_ar["prior"]["layers"]) > 0
    assert _norm(of_dm["prior"]["logits_dense"]) == 0 and _norm(of_ar["prior"]["logits_dense"]) > 0
    assert _norm(of_dm["denoiser"]) > 0 and _norm(of_ar["denoiser"]) == 0


def test_dropping_replaces_caption_and_latents_for_the_denoiser_only(model, params):
    dropped = _change(CONFIG, "diffusion", p_uncond=1.0)
    other = BATCH | {k: v[::-1] for k, v in BATCH.items() if k != "image"}
    here, there = losses(params, model, dropped, BATCH), losses(params, model, dropped, other)
    np.testing.assert_allclose(here["loss_dm"], there["loss_dm"], rtol=1e-6)
    kept = losses(params, model, _change(CONFIG, "diffusion", p_uncond=0.0), BATCH)
    np.testing.assert_allclose(here["loss_ar"], kept["loss_ar"], rtol=1e-6)
    assert abs(float(here["loss_dm"] - kept["loss_dm"])) > 1e-5


def test_frozen_encoder_gets_no_gradient_and_is_in_no_state(params):
    t5 = dataclasses.replace(CONFIG.model.t5, encoder=dataclasses.replace(CONFIG.model.t5.encoder, trainable=False))
    config = _change(CONFIG, "model", t5=t5)
    frozen_model = build_model(config, ROWS)
    for grads in gradients(params, frozen_model, config, BATCH):
        assert _norm(grads["encoder"]) == 0 and _norm(grads["prior"]) > 0
    trainable, frozen = split_frozen(params, config)
    assert set(frozen) == {"encoder"} and set(trainable) == {"prior", "denoiser"}


@pytest.mark.slow
def test_baseline_has_no_prior_and_trains(model):
    config = _change(CONFIG, "latents", segments=())
    batch = {k: BATCH[k] for k in ("image", "encoder_input_tokens")}
    baseline = build_model(config, ROWS)
    state, frozen, _ = create_state(
        config, baseline, make_optimizer(config.train), make_mesh(mesh_sizes(config.mesh, jax.device_count()))
    )
    assert set(state.params) == {"encoder", "denoiser"}
    _, metrics = jax.jit(make_train_step(baseline, config, make_optimizer(config.train)))(state, frozen, batch)
    assert "loss_ar" not in metrics and np.isfinite(metrics["loss"])


def test_token_loss_is_the_mean_over_valid_tokens_and_log_v_when_uniform():
    targets = jnp.asarray([[1, 2, 0], [3, 0, 0]])
    weights = jnp.asarray([[1.0, 1, 0], [1, 0, 0]])
    nll = optax.softmax_cross_entropy_with_integer_labels
    np.testing.assert_allclose(token_loss(nll(jnp.zeros((2, 3, 7)), targets), weights), np.log(7), rtol=1e-6)
    sure = 50.0 * jax.nn.one_hot(targets, 7).at[0, 2].set(jnp.arange(7.0))  # a padded position may say anything
    np.testing.assert_allclose(token_loss(nll(sure, targets), weights), 0, atol=1e-6)


def test_mixed_inputs_swap_their_share_of_the_valid_tokens_for_what_the_logits_say():
    targets, weights = BATCH["decoder_target_tokens"], BATCH["decoder_loss_weights"]
    keys = jax.random.split(jax.random.key(0), len(targets))
    sure = 50.0 * jax.nn.one_hot(jnp.full(targets.shape, 2), ROWS + CONFIG.latents.codebook_size)
    given = decode.shift_right(targets)
    np.testing.assert_array_equal(mixed_inputs(keys, sure, BATCH, 0.0), given)
    np.testing.assert_array_equal(
        mixed_inputs(keys, sure, BATCH, 1.0), decode.shift_right(jnp.where(weights > 0, 2, targets))
    )
    mixed = mixed_inputs(keys, sure, BATCH, 0.3)
    swapped = ((mixed != given).sum() / weights[:, :-1].sum()).item()
    assert 0.2 < swapped < 0.4
    np.testing.assert_array_equal(
        mixed[:3], mixed_inputs(keys[:3], sure[:3], {k: v[:3] for k, v in BATCH.items()}, 0.3)
    )


@pytest.mark.slow
def test_scheduled_sampling_changes_the_ar_loss_alone(model, params):
    plain = losses(params, model, CONFIG, BATCH)
    mixed = losses(params, model, _change(CONFIG, "train", scheduled_sampling=0.5), BATCH)
    np.testing.assert_allclose(mixed["loss_dm"], plain["loss_dm"], rtol=1e-6)
    assert abs(float(mixed["loss_ar"] - plain["loss_ar"])) > 1e-4 and np.isfinite(mixed["loss_ar"])


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_on_one_batch(model):
    config = _change(CONFIG, "train", learning_rate=3e-3, num_steps=30, warmup_steps=1)
    optimizer = make_optimizer(config.train)
    state, frozen, _ = create_state(config, model, optimizer, make_mesh(mesh_sizes(config.mesh, jax.device_count())))
    step = jax.jit(make_train_step(model, config, optimizer))
    losses = []
    for _ in range(12):
        state, metrics = step(state, frozen, BATCH)
        losses.append(float(metrics["loss_ar"]))
    assert losses[-1] < losses[0] - 0.5
    assert int(state.step) == 12
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, state.ema)
    assert max(jax.tree.leaves(moved)) > 0  # the EMA lags behind


@functools.partial(jax.jit, static_argnums=(1, 2))
def gradient(params, model, config, batch):
    """As the step takes it, over all parts of the batch."""
    return _gradients(_state(params), {}, batch, model, config)


def _state(params, guard=None):
    return State(step=jnp.int32(0), params=params, ema=params, opt_state=(), guard=guard or Guard.fresh())


@pytest.mark.parametrize("vdm", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(model, params, vdm):
    config = _change(CONFIG, "diffusion", vdm_weights=vdm)
    whole, parts = (gradient(params, model, _change(config, "train", accumulate=n), BATCH) for n in (1, 4))
    for name in ("loss", "loss_dm", "loss_ar"):
        np.testing.assert_allclose(parts[1][name], whole[1][name], rtol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), parts[0], whole[0])


def test_logits_in_chunks_give_the_same_loss_and_gradient(model, params):
    """24 does not divide 64 positions: the last chunk is padded."""
    config = _change(CONFIG, "train", logits_chunk=24)
    (here, loss), (there, chunked) = (gradient(params, model, c, BATCH) for c in (CONFIG, config))
    np.testing.assert_allclose(chunked["loss_ar"], loss["loss_ar"], rtol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), there, here)
    rows = ROWS + CONFIG.latents.codebook_size
    shapes = str(jax.make_jaxpr(gradient, static_argnums=(1, 2))(params, model, config, BATCH))
    assert f"f32[8,24,{rows}]" in shapes and f"f32[8,64,{rows}]" not in shapes  # never whole


def _stepped(config, batches, guard=None, dtype="float32"):
    """The states and metrics of some steps on tiny weights."""
    model = build_model(config, ROWS)
    optimizer = make_optimizer(config.train)
    state, frozen, _ = create_state(config, model, optimizer, make_mesh(mesh_sizes(config.mesh, jax.device_count())))
    state = state if guard is None else state.replace(guard=guard)
    step = jax.jit(make_train_step(model, config, optimizer))
    out = [(state, {})]
    for batch in batches:
        out.append(step(out[-1][0], frozen, batch))
    return out[1:]


BAD = BATCH | {"image": BATCH["image"] * jnp.nan}


def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted():
    config = _change(CONFIG, "train", ema_profiles=(0.1,), warmup_steps=10)
    first, bad, worse, good = _stepped(config, [BATCH, BAD, BAD, BATCH])
    for state, _ in (bad, worse):
        jax.tree.map(np.testing.assert_array_equal, state.params, first[0].params)
        jax.tree.map(np.testing.assert_array_equal, state.opt_state, first[0].opt_state)
    counts = [(int(m["skipped_in_row"]), int(m["skipped_steps"])) for _, m in (first, bad, worse, good)]
    assert counts == [(0, 0), (1, 1), (2, 2), (0, 2)]
    assert int(good[0].step) == 4  # so the next batch has new noise
    assert float(good[1]["learning_rate"]) == pytest.approx(float(learning_rate(config.train)(1)))  # the second applied
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(good[0]))
    # In the averages, skipped steps count with the parameters that they left.
    early = 0.75 ** (gamma_of(0.1) + 1)
    jax.tree.map(
        lambda found, a, b: np.testing.assert_allclose(found, early * a + (1 - early) * b, rtol=1e-5, atol=1e-7),
        *(good[0].profiles[0], first[0].params, good[0].params),
    )


def test_a_step_without_a_finite_update_changes_nothing_either(monkeypatch):
    """Of a finite gradient, as where Adam divides 0 by 0."""
    gradient = {"prior": {"a": jnp.array([0.0, 1.0])}}
    monkeypatch.setattr(step_module, "_gradients", lambda *_: (gradient, {"loss": jnp.float32(1)}))
    config = _change(CONFIG, "train", adam_eps=1e-46)
    optimizer = make_optimizer(config.train)
    zeros = jax.tree.map(jnp.zeros_like, gradient)
    state = State(jnp.int32(0), zeros, zeros, optimizer.init(zeros), Guard.fresh())
    after, metrics = make_train_step(build_model(config, ROWS), config, optimizer)(state, {}, BATCH)
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (state.params, state.opt_state))
    assert np.isfinite(metrics["grad_norm_prior"]) and int(metrics["skipped_steps"]) == 1
    assert may_overflow(_change(CONFIG, "train", learning_rate=1e39).train)  # no such learning rate in float32
    assert not may_overflow(_change(CONFIG, "train", adam_eps=1e-16, clip_norm=1e6).train)


@pytest.mark.slow
def test_float16_halves_its_scale_where_gradients_overflow_and_recovers():
    config = _change(CONFIG, "model", precision="float16")
    huge = Guard.fresh().replace(loss_scale=jnp.float32(2.0**24), since=jnp.int32(7))
    steps = _stepped(config, [BATCH] * 16, guard=huge)
    scales = [float(state.guard.loss_scale) for state, _ in steps]
    skipped = int(steps[-1][0].guard.skipped)
    assert scales[0] == 2.0**23 and 0 < skipped < 14 and scales[-1] == 2.0 ** (24 - skipped)
    assert int(steps[-1][0].guard.since) == 16 - skipped and np.isfinite(steps[-1][1]["loss"])
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), steps[0][0].params, steps[-1][0].params)
    assert max(jax.tree.leaves(moved)) > 0
    plain = _stepped(CONFIG, [BATCH])[0][1]["loss"]
    np.testing.assert_allclose(steps[0][1]["loss"], plain, rtol=2e-2)


def test_the_loss_scale_doubles_after_many_finite_steps():
    nearly = Guard.fresh().replace(since=jnp.int32(1999))
    grown = adjusted(nearly, jnp.bool_(True))
    assert float(grown.loss_scale) == 2.0**16 and int(grown.since) == 0
    assert float(adjusted(nearly.replace(loss_scale=jnp.float32(1)), jnp.bool_(False)).loss_scale) == 1


def test_an_ema_of_every_third_step_decays_as_much_as_three():
    train = dataclasses.replace(CONFIG.train, ema_decay=0.9, ema_every_steps=3)
    ema = {"a": jnp.float32(1)}
    values = []
    for step in range(6):
        ema = moved_ema(ema, {"a": jnp.float32(0)}, jnp.int32(step), train)
        values.append(float(ema["a"]))
    np.testing.assert_allclose(values, [1, 1, 0.9**3, 0.9**3, 0.9**3, 0.9**6], rtol=1e-6)
    held = [share_of_start(dataclasses.replace(train, num_steps=steps)) for steps in range(1, 7)]
    np.testing.assert_allclose(held, values, rtol=1e-6)


@pytest.mark.parametrize("every", [1, 4])
def test_averages_are_means_of_the_history_by_powers_of_its_steps(every):
    """From the first step on, whatever they begin with."""
    widths, steps = (0.02, 0.05, 0.1, 0.28), 2000
    train = dataclasses.replace(CONFIG.train, ema_profiles=widths, ema_every_steps=every)
    history = np.random.default_rng(0).normal(size=(steps, 3)).astype(np.float32).cumsum(axis=0)

    def move(profiles, step):
        profiles = moved_profiles(profiles, {"a": history_on_device[step]}, step, train)
        return profiles, profiles

    history_on_device = jnp.asarray(history)
    start = tuple({"a": jnp.full(3, 1e3, jnp.float32)} for _ in widths)
    _, found = jax.lax.scan(move, start, jnp.arange(steps))
    for time in (every, 7 * every, steps):
        edges = np.arange(0, time + 1, every) / time
        for width, profile in zip(widths, found, strict=True):
            shares = np.diff(edges ** (gamma_of(width) + 1))
            expected = shares @ history[every - 1 : time : every].astype(np.float64)
            np.testing.assert_allclose(profile["a"][time - 1], expected, rtol=2e-5, atol=1e-4)
    if every > 1:
        np.testing.assert_array_equal(found[0]["a"][every - 1], found[0]["a"][2 * every - 2])
        np.testing.assert_array_equal(found[0]["a"][every - 2], start[0]["a"])


def test_the_optimizer_clips_parts_and_keeps_its_first_moment_in_bfloat16():
    train = dataclasses.replace(
        CONFIG.train, clip_norm=100.0, clip_part_norms=(("prior", 1.0),), adam_mu_dtype="bfloat16", adam_b1=0.0
    )
    grads = {"prior": jnp.asarray([3.0, 4.0]), "denoiser": jnp.asarray([6.0, 8.0])}
    optimizer = make_optimizer(train)
    _, state = optimizer.update(grads, optimizer.init(grads), grads)
    adam = next(part for part in state if hasattr(part, "mu"))
    np.testing.assert_allclose(adam.mu["prior"].astype(jnp.float32), [0.6, 0.8], rtol=1e-2)
    np.testing.assert_allclose(adam.mu["denoiser"].astype(jnp.float32), [6, 8], rtol=1e-2)
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.mu)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.nu)} == {jnp.dtype("float32")}


def test_warm_up_and_cosine():
    train = dataclasses.replace(CONFIG.train, learning_rate=1.0, warmup_steps=10, num_steps=110, lr_schedule="cosine")
    rate = learning_rate(train)
    np.testing.assert_allclose([rate(k) for k in (0, 1, 5, 10, 60, 110)], [0.1, 0.1, 0.5, 1.0, 0.5, 0.0], atol=1e-6)
    assert learning_rate(dataclasses.replace(train, lr_schedule="constant"))(1000) == 1.0


@pytest.mark.slow
def test_a_mixed_batch_has_the_outer_loss_of_its_first_rows_alone():
    config = small_nest_config(train__mixed_ratio=(1, 1), train__eta=0.0)
    off = _change(config, "train", mixed_ratio=())
    model = build_model(config, ROWS)
    params = _random(model)
    batch = {k: jnp.asarray(v) for k, v in tiny_batch(config).items() if k != "sample_id"}
    first = {k: v[:4] for k, v in batch.items()}
    mixed, alone = losses(params, model, config, batch), losses(params, model, off, first)
    np.testing.assert_allclose(mixed["loss_dm_r0"], alone["loss_dm_r0"], rtol=1e-5)
    np.testing.assert_allclose(mixed["loss"], mixed["loss_dm_r0"] + mixed["loss_dm_r1"], rtol=1e-6)
    # with a shut adapter the inner net does not know the outer one, and sees the whole batch either way
    params["denoiser"]["in_adapter"] = jax.tree.map(jnp.zeros_like, params["denoiser"]["in_adapter"])
    inner = [losses(params, model, c, batch)["loss_dm_r1"] for c in (config, off)]
    np.testing.assert_allclose(*inner, rtol=1e-5)
