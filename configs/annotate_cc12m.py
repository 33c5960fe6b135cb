"""CC12M's latents as the paper has them: text by the caption instruction, boxes, SEED's vokens, at 256 px.

Command:  python -m kaleido_jax.main annotate --config=configs/annotate_cc12m.py --config.data.root=DIR \\
              --config.annotate.voken.model=SEED --workdir=runs/cc12m
Data:     DIR/train.jsonl with lines {"image": "00001/000010001.jpg", "caption": "..."} of the photos that could be
          fetched, and these below DIR; or DIR/00000.tar and so on, as img2dataset writes them, with
          --config.data.source=tar --config.data.split= . SEED is the folder of seed_quantizer.pt (AILab-CVC on
          Hugging Face).
Hardware: as configs/annotate_imagenet.py.
Result:   runs/cc12m/records/, manifest.json and report.html. Train on them with configs/cc12m.py:combined (or
          :text, :bbox, :voken) and --config.data.records=runs/cc12m.
"""

from ml_collections import ConfigDict

from kaleido_jax.config import base_config


def get_config() -> ConfigDict:
    config = base_config("annotate_imagenet")
    config.name = "annotate_cc12m"
    config.data.source = "table"
    config.data.max_caption_tokens = 128
    config.data.split = "train"  # hence train.jsonl
    config.annotate.text.instruction = "caption"
    return config
