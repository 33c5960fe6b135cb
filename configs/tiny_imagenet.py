"""Photographs whose caption is a superclass and whose hidden mode is the subclass: with vokens, boxes, both, or no z.

Command:  python examples/tiny_imagenet.py --npz=TRAIN.npz --out=data/train --side=32   (and VAL.npz to data/val)
          python -m kaleido_jax.main annotate --config=configs/tiny_imagenet.py --workdir=runs/tiny
          python -m kaleido_jax.main --config=configs/tiny_imagenet.py:baseline --workdir=runs/tiny_baseline
          ... for voken, bbox and both, and further seeds with --config.seed=1 (in another --workdir);
          python -m kaleido_jax.main evaluate --sweep=configs/sweep_tiny_imagenet.py --workdir=runs/tiny_sweep
Data:     50 classes of Tiny ImageNet in ten superclasses, 25,000 photographs of 64 px; non-commercial research alone
Hardware: one GPU; nobody has run it yet
"""

from ml_collections import ConfigDict

from kaleido_jax.config import base_config
from kaleido_jax.errors import user_error

SEGMENTS = {"baseline": (), "voken": ("voken",), "bbox": ("bbox",), "both": ("bbox", "voken")}
STEPS = 3_000


def get_config(variant: str = "both") -> ConfigDict:
    if variant not in SEGMENTS:
        raise user_error(f"tiny_imagenet.py:{variant}", f"one of {', '.join(SEGMENTS)}", "choose one")
    config = base_config("emoji_combined:accelerator")  # its net: what is cheap enough to be trained several times
    config.name = f"tiny-imagenet-{variant}"
    config.latents.segments = SEGMENTS[variant]
    config.latents.codebook_size = 256  # of a residual quantizer on pixels: not of the network that measures
    config.latents.vokens_per_image = 8
    config.latents.max_latents_tokens = 32  # the longest z has 29
    config.model.t5.vocabulary = "data/train/spiece.model"  # written beside the images, of their names
    config.data.source = "coco"
    config.data.root = "data/train"
    config.data.records = "runs/tiny"  # made once, for all variants
    config.annotate.segments = ("bbox", "voken")
    config.annotate.required = ("bbox", "voken")  # 56 boxes have no area: no variant trains on these images
    config.annotate.image_size = 32
    config.annotate.shard_size = 512  # enough shards for many processes
    train = config.train
    train.num_steps, train.checkpoint_every_steps = STEPS, STEPS // 8
    train.keep_every_steps = STEPS // 8  # the first one is the worse model of autoguidance
    train.ema_decay = 0.99  # at 0.999, two thirds of its average would still be the initial weights
    train.warmup_steps = 300
    train.sample_at_end = False
    config.sample.captions = ()
    config.eval.protocol = "none"  # the sweep measures
    return config
