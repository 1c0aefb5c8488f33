#!/usr/bin/env bash
# ./run.sh                        quickstart: phantom data, a short training, an isotropic volume and a report on it
# ./run.sh test [pytest options]  ruff, mypy and the tests
# ./run.sh --jsn aisr --prj name  python train.py --jsn aisr --prj name in the project's environment
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

python=.venv/bin/python
stamp=.venv/installed

set_up() {
    local base
    for base in python3 python3.13 python3.12 python3.11 none; do
        "$base" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && break
    done
    if [ "$base" = none ]; then
        echo "error: IsoScopeXX needs Python 3.11, 3.12 or 3.13; install one of them and run this again." >&2
        exit 2
    fi
    # A half-made or outdated .venv (no python3-venv, another Python since) is made anew, and installed into again.
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        "$base" -m venv --clear .venv || {
            echo "error: $base cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
            exit 2
        }
    fi
    if ! cmp -s <(cat pyproject.toml constraints.txt) "$stamp"; then
        echo "Installing into .venv (several GB; once) …"
        "$python" -m pip install --constraint constraints.txt --editable '.[test]'
        cat pyproject.toml constraints.txt > "$stamp"
    fi
}

set_up
case "${1:-quickstart}" in
    quickstart)
        data=data/phantom run=logs/phantom/quickstart volume=x3d0/phantom_004.tif
        "$python" prepare.py phantom --data_root data
        "$python" train.py --jsn quickstart --prj quickstart --logs logs --data_root data --overwrite
        "$python" infer.py enhance --run "$run" --input "$data/val/$volume" --output "$run/enhanced.ome.tif"
        "$python" evaluate.py --reconstruction "$run/enhanced.ome.tif" --truth "$data/truth/$volume" \
            --input "$data/val/$volume" --input-position average --factor 8 --output "$run/report"
        echo "The run, its pictures and TensorBoard logs: $PWD/$run ('$PWD/.venv/bin/tensorboard' --logdir '$PWD/$run/logs')"
        echo "A phantom made isotropic: $PWD/$run/enhanced.ome.tif; how good it is: $PWD/$run/report/report.html"
        ;;
    test)
        shift
        echo "ruff … (a second)"
        "$python" -m ruff check .
        "$python" -m ruff format --check .
        echo "mypy … (half a minute to two the first time, then seconds)"
        "$python" -m mypy
        echo "pytest … (7 minutes on two quiet cores; a dot for each test)"
        "$python" -m pytest "$@"
        ;;
    *)
        exec "$python" train.py "$@"
        ;;
esac
