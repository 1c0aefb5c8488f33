#!/usr/bin/env bash
# Everything that wants to be known of a GPU, in at most nine minutes: bash benchmarks/gpu.sh [--data CUBES] [--device cpu] [--short]
# On a machine that has torch and pytorch-lightning alone: the other packages as wheels in .whl/ (pip download --no-deps -d .whl …).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
if compgen -G ".whl/*.whl" >/dev/null; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
exec "$python" benchmarks/gpu.py "$@"
