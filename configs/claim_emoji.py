"""The paper's figure 5 on scenes of emoji: the same net trained with z of each kind, of all, of an oracle, and without.

Command:  python -m kaleido_jax.main annotate --config=configs/claim_emoji.py:combined-0 --workdir=runs/claim/records-0
          python -m kaleido_jax.main --config=configs/claim_emoji.py:baseline-0 --workdir=runs/claim/baseline-0
          python -m kaleido_jax.main --config=configs/claim_emoji.py:combined-0 --workdir=runs/claim/combined-0
          ... for each of MODELS and each seed; the number after the dash is the seed of scenes, weights and order.
          python -m kaleido_jax.main evaluate --sweep=configs/sweep_emoji.py:claim --workdir=runs/claim/sweep
          `python launch/experiments.py emoji` does all of it. "cpu-" before a model, as in `:cpu-combined-0`, trains it
          for so long as a CPU can, in batches of 16 (`python launch/experiments.py emoji_cpu --jobs=2`).
Hardware: one GPU. The package's two models, the same nets, trained beside each other on an H200 at 10,000 to 13,000
          images/s each (benchmarks/results/emoji_recipe.md). "cpu-": a core draws 44 (combined) to 79 (baseline)
          images/s, so a model takes 27 to 48 minutes of it.
"""

from ml_collections import ConfigDict

from kaleido_jax.config import base_config
from kaleido_jax.errors import user_error

ALL = ("text", "bbox", "blob", "voken")
MODELS: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "combined": ALL,
    "text": ("text",),
    "bbox": ("bbox",),
    "blob": ("blob",),
    "voken": ("voken",),
    "oracle": ("text",),  # the sprite's name and nothing else: the hidden mode itself
    # Controls
    "wide": (),  # a baseline with about as many parameters as `combined` has with its prior
    "eta01": ALL,  # the AR loss counts a tenth
    "uncond30": ALL,  # c and z are dropped in 30 % of the rows instead of 10 %
}
STEPS = 3_000
CPU_STEPS = 8_000  # of 16 images: a sixth of the images, and more steps, which count for more (emoji_recipe.md)
SCENES = 25_000


def get_config(model: str = "combined-0") -> ConfigDict:
    on_cpu = model.startswith("cpu-")
    name, dash, seed = model.removeprefix("cpu-").rpartition("-")
    if name not in MODELS or not dash or not seed.isdecimal():
        expected = f"MODEL-SEED with one of {', '.join(MODELS)}, e.g. combined-0 or cpu-combined-0"
        raise user_error(f"claim_emoji.py:{model}", expected, "choose one")
    config = base_config("emoji_combined:accelerator")
    config.name = f"claim-{model}"
    config.seed = int(seed)
    config.latents.segments = MODELS[name]
    config.data.emoji.two_share = 0.0  # every scene has one mode of its caption
    config.data.emoji.names_alone = name == "oracle"
    config.data.emoji.num_train, config.data.emoji.num_test = SCENES, 200
    config.data.records = f"runs/claim/records-{'oracle-' * (name == 'oracle')}{seed}"  # models of a seed share them
    train = config.train
    train.num_steps, train.checkpoint_every_steps, train.warmup_steps = STEPS, STEPS // 8, 300
    train.keep_every_steps = STEPS // 8  # the first one is the worse model of autoguidance
    train.ema_decay = 0.99  # at 0.999, two thirds of its average would still be the initial weights
    if on_cpu:
        train.batch_size, train.num_steps, train.learning_rate, train.warmup_steps = 16, CPU_STEPS, 2e-3, 200
        train.checkpoint_every_steps = train.keep_every_steps = CPU_STEPS // 8
        train.ema_decay, train.log_every_steps = 0.995, 200  # of the first checkpoint, 0.7 % are initial weights
    train.sample_at_end = False
    config.eval.protocol = "none"  # the sweep measures
    if name == "wide":  # 578 thousand parameters more, where the prior has 574
        config.model.denoiser.attention_ffn, config.model.denoiser.num_text_layers = True, 2
    if name == "eta01":
        train.eta = 0.1
    if name == "uncond30":
        config.diffusion.p_uncond = 0.3
    return config
