#!/usr/bin/env bash
# From a clean clone to pictures of the bundled models, and to a small model trained here, on a CPU in ten minutes.
# Arguments are passed to the training, e.g.
#   bash launch/quickstart.sh --workdir=/tmp/emoji --config.train.num_steps=100
# A second call resumes, or shows the results if everything is done.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt

echo "==> 1 of 2: what the bundled models draw"
python -m kaleido_jax.main sample --model=emoji-tiny --workdir=runs/emoji-tiny \
  --config.sample.grammar=True --config.sample.images_per_caption=2
# None yet, or of an older model.
if [[ ! runs/emoji-tiny/compare.png -nt kaleido_jax/assets/models/emoji-tiny/export.json ]]; then
  python examples/compare.py --kaleido=emoji-tiny --baseline=emoji-tiny-baseline --out=runs/emoji-tiny
fi

echo "==> 2 of 2: python -m kaleido_jax.main --config=configs/emoji_combined.py --workdir=runs/emoji $*"
exec python -m kaleido_jax.main --config=configs/emoji_combined.py --workdir=runs/emoji "$@"
