"""ImageNet's latents as the paper has them: text by the label instruction, boxes, SEED's vokens, at 256 px.

Command:  python -m kaleido_jax.main annotate --config=configs/annotate_imagenet.py --config.data.root=DIR \\
              --config.annotate.voken.model=SEED --workdir=runs/imagenet
Data:     DIR/train/n01440764/*.JPEG and so on, as ImageNet comes; the names of its classes are in the package.
          Or TFDS's in array_record files: --config.data.source=tfds --config.data.tfds.folder=imagenet2012.
          SEED is the folder of seed_quantizer.pt (AILab-CVC on Hugging Face).
Hardware: Qwen2.5-VL-7B behind a server on port 8000 ("A server" in docs/annotate.md) on as many GPUs as there are, and
          one for SEED. Nobody has run the whole of it with this code; docs/annotate.md estimates the GPU hours.
Result:   runs/imagenet/records/, manifest.json and report.html. Train on them with configs/imagenet_combined.py and
          --config.data.records=runs/imagenet.
"""

from ml_collections import ConfigDict

from kaleido_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "annotate_imagenet"
    config.data.source = "folder"
    config.data.root = None  # --config.data.root
    config.data.split = "train"
    config.data.max_caption_tokens = 16  # that of imagenet_combined
    config.annotate.image_size = 256
    config.annotate.view_size = 448  # as large as the pictures that the model is shown below

    config.latents.segments = config.annotate.segments = ("text", "bbox", "voken")  # blob: see docs/annotate.md
    config.latents.codebook_size = 8192
    config.latents.vokens_per_image = 32
    config.latents.max_latents_tokens = 416

    config.annotate.endpoint.base_url = "http://localhost:8000/v1"
    config.annotate.endpoint.model = "Qwen/Qwen2.5-VL-7B-Instruct"
    config.annotate.endpoint.concurrency = 128  # as many as one GPU keeps in flight; more GPUs want more
    config.annotate.batch_size = 512  # images asked about at once; the slowest answer of these is waited for
    config.annotate.text.kind = "openai"
    config.annotate.text.instruction = "label"
    config.annotate.bbox.kind = "openai"
    config.annotate.bbox.coordinates = "pixels"  # Qwen2.5-VL's; Qwen3-VL answers in thousandths
    config.annotate.bbox.max_boxes = 6  # with 160 tokens of text and 64 of vokens they fit into max_tokens
    config.annotate.voken.kind = "seed"
    return config
