"""Latents of photographs without labels of people and without a large model: small ONNX models on any CPU.

Command:  python -m kaleido_jax.main annotate --config=configs/annotate_onnx.py --config.data.root=DIR \\
              --config.annotate.bbox.model=yolox_nano.onnx --config.annotate.blob.model=u2netp.onnx --workdir=runs/onnx
Data:     COCO's layout, of which only the captions are used, for text; --config.data.source=folder for one folder for
          each class, and others (docs/annotate.md). `init --detector=yolox_nano.onnx --masks=u2netp.onnx` writes a
          config with these annotators that also trains a small model.
Weights:  any YOLOX as its own program exports it, with its class names, one per line, in yolox_nano.names beside it;
          any ONNX model that maps an image to a mask, such as U2-Net. Several sizes of both are public.
Hardware: any CPU with onnxruntime (pip install 'kaleido_jax[onnx]').
Result:   runs/onnx/records/, manifest.json and report.html, which says how far these latents agree with what people
          drew, where they did. A photo in which nothing was found has empty segments; one without a caption, or with
          boxes but no mask in any, is left out and counted. What to expect is in
          benchmarks/results/annotate_agreement.md: a weak stand-in for the paper's annotators, to try the whole way.
"""

from ml_collections import ConfigDict

from kaleido_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "annotate_onnx"
    config.data.source = "coco"
    config.data.root = None  # --config.data.root
    config.annotate.image_size = 256
    config.annotate.bbox.kind = "onnx"
    config.annotate.blob.kind = "onnx"
    # Codebooks need many times 64 photos a token; finite scalars a few times the 16 numbers that 8 tokens hold.
    config.annotate.voken.quantizer = "fsq"
    config.annotate.voken.feature = "pixels"  # "autoencoder" with .feature_model = the weights of a TAESD's encoder
    config.latents.segments = ("text", "bbox", "blob", "voken")
    config.latents.codebook_size = 64
    config.latents.vokens_per_image = 8
    config.latents.max_latents_tokens = 640  # with eos; ten boxes and ten ellipses of T5's digits
    config.annotate.shard_size = 512
    return config
