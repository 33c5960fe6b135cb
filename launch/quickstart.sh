#!/usr/bin/env bash
# From a clean clone to a trained small model and a grid of its images, on a CPU. Arguments are passed to the program, e.g.
#   bash launch/quickstart.sh --workdir=/tmp/emoji --config.train.num_steps=100
# A second call resumes, or shows the results if everything is done.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
echo "==> python -m kaleido_jax.main --config=configs/emoji_combined.py --workdir=runs/emoji $*"
exec python -m kaleido_jax.main --config=configs/emoji_combined.py --workdir=runs/emoji "$@"
