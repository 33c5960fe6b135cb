"""CC12M's latents as the paper has them: text by the caption instruction, boxes, SEED's vokens, at 256 px.

Command:  python -m kaleido_jax.main annotate --config=configs/annotate_cc12m.py --config.data.root=DIR \\
              --config.annotate.voken.model=SEED --workdir=runs/cc12m
Data:     DIR/train.jsonl with lines {"image": "00001/000010001.jpg", "caption": "..."} of the photos that could be
          fetched, and these below DIR. SEED is the folder of seed_quantizer.pt (AILab-CVC on Hugging Face).
Hardware: as configs/annotate_imagenet.py.
Result:   runs/cc12m/records/, manifest.json and report.html. Train on them with configs/cc12m_combined.py (or
          cc12m_text.py, cc12m_bbox.py, cc12m_voken.py) and --config.data.records=runs/cc12m.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("annotate_imagenet.py")))["get_config"]()
    config.name = "annotate_cc12m"
    config.data.source = "table"
    config.data.split = "train"  # hence train.jsonl
    config.annotate.text.instruction = "caption"
    return config
