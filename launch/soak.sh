#!/usr/bin/env bash
# A small training of 2,000 steps with bad records, slow workers, SIGTERM, SIGKILL and a full disk, which must end with
# the parameters of an undisturbed one, bit for bit: bash launch/soak.sh [STEPS]. On two cores some twenty minutes.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt requirements-dev.txt
KALEIDO_SOAK_STEPS="${1:-2000}" exec python -m pytest -m slow -s tests/train/test_soak.py
