"""A small model of one's own pictures, 32 or 64 px: what the verb `init` builds on (docs/own-pictures.md).

Command:  python -m kaleido_jax.main init --data=DIR --workdir=runs/mine
          It writes runs/mine/config.py, which names one of the variants below and sets what depends on the pictures:
          where they are, the vocabulary, the lengths, the segments, the number of steps.
Variants: ":32" and ":64" for CPUs, ":32-accelerator" and ":64-accelerator" for a GPU or TPU.
Hardware: one CPU core and 2 GB of memory for ":32"; 20,000 images of training take about 11 minutes there.
"""

from ml_collections import ConfigDict

from kaleido_jax.config import base_config
from kaleido_jax.errors import user_error

VARIANTS = ("32", "64", "32-accelerator", "64-accelerator")


def get_config(variant: str = "32") -> ConfigDict:
    if variant not in VARIANTS:
        raise user_error(f"own_pictures:{variant}", f"one of {', '.join(VARIANTS)}", "choose one")
    size, _, accelerator = variant.partition("-")
    # The emoji's recipe: patches of 4 px, 128 wide, a small T5 that is trained along, x0 as prediction and in the loss
    # (benchmarks/results/emoji_recipe.md).
    config = base_config("emoji_combined:64" if size == "64" else "emoji_combined")
    config.name = "own_pictures"
    config.data.length_buckets = ()  # each would compile, which a short run does not get back

    # Finite scalars, since albums have too few pictures for codebooks: 8 tokens of up to 64 values.
    config.latents.segments = ("text", "voken")
    config.latents.codebook_size, config.latents.vokens_per_image = 64, 8
    config.annotate.segments = ("text", "voken")
    config.annotate.voken.quantizer = "fsq"
    config.annotate.bbox.max_boxes = 3  # what a small prior can learn, and a small picture can show
    config.annotate.shard_size = 128  # the most that are annotated again where a picture was changed

    train = config.train
    train.batch_size, train.num_steps, train.learning_rate = 16, 1_200, 2e-3
    train.ema_decay, train.log_every_steps, train.checkpoint_every_steps = 0.99, 50, 500
    if accelerator:  # larger batches keep it busy; less noise in the gradient bears a higher rate
        train.batch_size, train.num_steps, train.learning_rate, train.warmup_steps = 256, 4_000, 3e-3, 500
        train.ema_decay, train.log_every_steps, train.checkpoint_every_steps = 0.999, 250, 2_000
        config.data.num_workers = 4

    sample = config.sample
    # After so little training 4 turns into garish colors and shows the patches; accelerators train longer.
    sample.sampler, sample.num_steps, sample.gamma, sample.guidance_interval = "ddpm", 50, 2.0, ()
    sample.sigma_min = 0.0
    sample.top_p, sample.grammar = 0.95, True  # every z parses, however short the training was
    config.eval.protocol = "none"  # `init` writes "records"
    config.eval.num_samples, config.eval.gamma = 200, sample.gamma
    if accelerator:
        config.eval.num_samples = 2_000
    return config
