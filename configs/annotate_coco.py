"""COCO's photos with the latents that people have drawn and written already: no model is needed.

Command:  python -m kaleido_jax.main annotate --config=configs/annotate_coco.py --config.data.root=DIR \\
              --workdir=runs/coco
Data:     COCO 2017 (cocodataset.org): DIR/annotations/*.json and DIR/val2017/*.jpg, or one DIR/annotations.json with
          its photos in DIR/images. For COCO's own layout add --config.data.split=val2017 (or train2017).
Hardware: any CPU; docs/annotate.md has rates. --config.annotate.num_workers=N uses N processes.
Result:   runs/coco/records/, manifest.json and report.html, at 256 px (--config.annotate.image_size=64 for the
          first stage). A photo without captions or without objects is left out and counted.

To train a small model of such photos, begin with `init --data=DIR` instead, whose config annotates them and trains on
the result (docs/own-pictures.md). A config of yours takes these records by data.records = "runs/coco" if it has this
one's model.t5.vocabulary, latents.codebook_size and latents.vokens_per_image, and images of a size that divides theirs.
"""

from ml_collections import ConfigDict

from kaleido_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "annotate_coco"
    config.data.source = "coco"
    config.data.root = None  # --config.data.root
    # E.g. (4, 5, 7): CC BY, CC BY-SA and no known restriction, which may be shown anywhere.
    config.data.coco.licenses = ()
    config.annotate.image_size = 256

    # text: the longest caption; bbox and blob: the ten largest objects; voken: finite scalars fitted on these photos,
    # since a few hundred are too few for codebooks.
    config.annotate.voken.quantizer = "fsq"
    config.latents.segments = ("text", "bbox", "blob", "voken")
    config.latents.codebook_size = 64  # values a voken may have
    config.latents.vokens_per_image = 8
    config.latents.max_latents_tokens = 640  # with eos; ten boxes and ten ellipses of T5's digits
    config.annotate.shard_size = 512
    return config
