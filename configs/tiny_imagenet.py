"""Photographs whose caption is a superclass and whose hidden mode is the subclass: with vokens, boxes, both, or no z.

Command:  python examples/tiny_imagenet.py --npz=TRAIN.npz --out=data/train --side=32   (and VAL.npz to data/val)
          python -m kaleido_jax.main annotate --config=configs/tiny_imagenet.py:both-0 --workdir=runs/tiny/records
          python -m kaleido_jax.main --config=configs/tiny_imagenet.py:baseline-0 --workdir=runs/tiny/baseline-0
          ... for each of SEGMENTS and each seed; the number after the dash is the seed of weights and order. "cpu-"
          before a model trains it for so long as a CPU can, in runs/tiny_cpu.
          python -m kaleido_jax.main evaluate --sweep=configs/sweep_tiny_imagenet.py --workdir=runs/tiny/sweep
          `python launch/experiments.py tiny_imagenet` (or tiny_imagenet_cpu) does all of it but the first.
Data:     50 classes of Tiny ImageNet in ten superclasses, 25,000 photographs of 64 px; non-commercial research alone
Hardware: one GPU, on which nobody has run it yet. "cpu-": a core took 9 (baseline) to 33 minutes for a model,
          which is too short for photographs (docs/results/tiny-imagenet.md)
"""

from ml_collections import ConfigDict

from kaleido_jax.config import base_config
from kaleido_jax.errors import user_error

SEGMENTS = {"baseline": (), "voken": ("voken",), "bbox": ("bbox",), "both": ("bbox", "voken")}


def get_config(model: str = "both-0") -> ConfigDict:
    size = "cpu-" if model.startswith("cpu-") else ""
    name, dash, seed = model.removeprefix(size).rpartition("-")
    if name not in SEGMENTS or not dash or not seed.isdecimal():
        expected = f"MODEL-SEED with one of {', '.join(SEGMENTS)}, e.g. both-0 or cpu-both-0"
        raise user_error(f"tiny_imagenet.py:{model}", expected, "choose one")
    # The net and the training of the emoji scenes: what is cheap enough to be done several times.
    config = base_config(f"claim_emoji:{size}baseline-{seed}")
    config.name = f"tiny-imagenet-{model}"
    config.latents.segments = SEGMENTS[name]
    config.latents.codebook_size = 256  # of a residual quantizer on pixels: not of the network that measures
    config.latents.vokens_per_image = 8
    config.latents.max_latents_tokens = 32  # the longest z has 29
    config.model.t5.vocabulary = "data/train/spiece.model"  # written beside the images, of their names
    config.data.source = "coco"
    config.data.root = "data/train"
    config.data.records = "runs/tiny/records"  # made once, for all models
    config.annotate.segments = ("bbox", "voken")
    config.annotate.required = ("bbox", "voken")  # 56 boxes have no area: no model trains on these images
    config.annotate.image_size = 32
    config.annotate.shard_size = 512  # enough shards for many processes
    config.sample.captions = ()
    return config
