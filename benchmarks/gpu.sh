#!/usr/bin/env bash
# Everything that wants to be known of a GPU, in at most nine minutes: bash benchmarks/gpu.sh [--data CUBES] [--device cpu] [--short]
# On a machine that has torch, pytorch-lightning, tifffile, tensorboard and what they need alone: the others as wheels in .whl/,
# pip download --no-deps -d .whl albumentations albucore stringzilla simsimd pydantic pydantic-core annotated-types typing-inspection
# lpips python-dotenv zarr numcodecs donfig google-crc32c imagecodecs pytorch-msssim, in the versions of constraints.txt; and those of
# einops, scipy, scikit-image, opencv-python-headless, matplotlib, tensorstore, safetensors and pytest that it has not. They are 43 MB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
if compgen -G ".whl/*.whl" >/dev/null; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
exec "$python" benchmarks/gpu.py "$@"
