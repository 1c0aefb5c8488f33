#!/usr/bin/env bash
# ./run.sh                        quickstart: phantom data, a short training, an isotropic volume and a report on it;
#                                 after Ctrl-C the same command goes on; `./run.sh quickstart --overwrite` begins again
# ./run.sh --jsn aisr --prj name  python train.py --jsn aisr --prj name in the project's environment
# ./run.sh prepare …              the same for prepare.py; likewise train, infer, evaluate and import_reference
# ./run.sh test [pytest options]  ruff, mypy and the tests; `./run.sh lint` and `type` are parts of it, `test-slow` is the rest
# ./run.sh bench NAME [option …]  a measurement of benchmarks/, such as bench step; without NAME it lists them
# ./run.sh docs                   the pages of docs/ as a site, in site/
# ./run.sh setup                  the installation alone
# ./run.sh --cpu …                any of these; PyTorch is installed without CUDA (docs/install.md says where from)
# The environment is .venv, or the folder that ISOSCOPE_VENV names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

venv=${ISOSCOPE_VENV:-.venv}
python=$venv/bin/python
stamp=$venv/installed

set_up() {
    local base quietly=
    for base in python3 python3.13 python3.12 python3.11 none; do
        "$base" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && break
    done
    if [ "$base" = none ]; then
        echo "error: IsoScopeXX needs Python 3.11, 3.12 or 3.13; install one of them and run this again." >&2
        exit 2
    fi
    # A half-made or outdated .venv (no python3-venv, another Python since) is made anew, and installed into again.
    if ! "$python" -c "import pip" >/dev/null 2>&1; then
        "$base" -m venv --clear "$venv" || {
            echo "error: $base cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
            exit 2
        }
    fi
    [ "$cpu" = no ] || touch "$venv/cpu"
    if [ "$(wanted)" != "$(cat "$stamp" 2>/dev/null)" ]; then
        if [ -e "$stamp" ]; then
            quietly=yes
            echo "What the checkout needs has changed: bringing $venv up to date (a minute or more) …"
        else
            echo "Installing into $venv (several GB; once) …"
        fi
        wanted > "$venv/wanted"
        sed '1,/^# constraints$/d' "$venv/wanted" > "$venv/constraints.txt"
        "$python" -m pip install ${quietly:+--quiet} --constraint "$venv/constraints.txt" --editable '.[test]' || {
            [ ! -e "$venv/cpu" ] || no_cpu_build
            exit 2
        }
        mv "$venv/wanted" "$stamp"
    fi
}

# What the environment is to be: without CUDA, PyTorch's own builds for a CPU, where they are not the only ones there are.
wanted() {
    cat pyproject.toml
    echo "# constraints"
    if [ -e "$venv/cpu" ] && [ "$(uname -sm)" = "Linux x86_64" ]; then
        sed -e 's/^\(torch\|torchvision\)==[0-9.]*$/&+cpu/' -e '/^\(nvidia-\|cuda-\|triton\)/d' constraints.txt
    else
        cat constraints.txt
    fi
}

no_cpu_build() {
    rm -f "$venv/cpu"
    echo "error: nothing that pip asks here has PyTorch's builds for a CPU (torch==…+cpu). PyTorch's page 'Start Locally' names the" >&2
    echo "index that has them: PIP_EXTRA_INDEX_URL=ITS_ADDRESS ./run.sh --cpu. Without --cpu the usual build runs on a CPU, too." >&2
}

quickstart() {
    local data=data/phantom run=logs/phantom/quickstart volume=x3d0/phantom_004.tif code=0 resume=
    [ ! -e "$run/checkpoints/last.ckpt" ] || [ "${1:-}" = --overwrite ] || resume=yes
    echo "1 of 4: a phantom, whose truth is known (prepare.py)"
    "$python" prepare.py phantom --data_root data
    echo "2 of 4: a training on its sections (train.py); loading PyTorch …"
    "$python" train.py --jsn quickstart --prj quickstart --logs logs --data_root data ${resume:+--resume} "$@" || code=$?
    if [ "$code" = 130 ] || [ "$code" = 75 ]; then
        echo "To finish the quickstart type ./run.sh again; it goes on from here." >&2
    elif [ "$code" != 0 ] && [ -n "$resume" ]; then
        echo "To begin again: ./run.sh quickstart --overwrite (the run that is there is set aside)." >&2
    fi
    [ "$code" = 0 ] || exit "$code"
    echo "3 of 4: a phantom that it has not seen is made isotropic (infer.py)"
    "$python" infer.py enhance --run "$run" --input "$data/val/$volume" --output "$run/enhanced.ome.tif" --overwrite
    echo "4 of 4: how good is it? (evaluate.py)"
    "$python" evaluate.py --reconstruction "$run/enhanced.ome.tif" --truth "$data/truth/$volume" \
        --input "$data/val/$volume" --input-position average --factor 8 --output "$run/report" --overwrite
    cat << END

Done. In $PWD/$run lie
  report/report.html   how good it is; open it in a browser
  enhanced.ome.tif     the phantom made isotropic
  pictures             how it looked while it learnt
To go on:
  ./run.sh infer view $data/val/$volume $run/enhanced.ome.tif   # sections and volume, in the browser
  $venv/bin/tensorboard --logdir logs/phantom   # curves
  your own volumes: README.md, "Your own volumes"
END
}

lint() {
    echo "ruff … (a second)"
    "$python" -m ruff check .
    "$python" -m ruff format --check .
}

docs() {
    "$python" -c 'import mkdocs' 2>/dev/null || "$python" -m pip install --constraint constraints.txt --editable '.[docs]'
    PYTHONPATH=. "$python" docs/settings.py
    "$python" -m mkdocs build --quiet
    echo "The pages: $PWD/site/index.html"
}

types() {
    echo "mypy … (half a minute to two the first time, then seconds)"
    "$python" -m mypy
}

usage() {
    sed -n '2,/^set/{/^#/p;}' "$0"
}

cpu=no
if [ "${1:-}" = --cpu ]; then
    cpu=yes
    shift
fi
command=${1:-quickstart}
case "$command" in
    -h | --help | help)
        usage
        exit
        ;;
    quickstart | prepare | train | infer | evaluate | import_reference | setup | lint | type | docs | bench | test | test-slow | -*) ;;
    *)
        echo "error: './run.sh $command' is not known; its first lines say what is:" >&2
        usage >&2
        exit 2
        ;;
esac
set_up
case "$command" in
    quickstart)
        quickstart "${@:2}"
        ;;
    prepare | train | infer | evaluate | import_reference)
        exec "$python" "$command.py" "${@:2}"
        ;;
    setup) ;;
    lint) lint ;;
    type) types ;;
    docs) docs ;;
    bench)
        [ -f "benchmarks/${2:-}.py" ] || {
            echo "error: name one of these: $(grep -l '^if __name__' benchmarks/*.py | sed 's/.*\/\(.*\)\.py/\1/' | xargs)" >&2
            exit 2
        }
        exec "$python" "benchmarks/$2.py" "${@:3}"
        ;;
    test)
        lint
        types
        echo "pytest … (6 to 7 minutes on two quiet cores; a dot for each test)"
        # each process computes with one thread: small tensors gain nothing from more
        OMP_NUM_THREADS=1 "$python" -m pytest --numprocesses 2 --dist loadfile "${@:2}"
        ;;
    test-slow)
        "$python" -m pytest -m slow "${@:2}"
        ;;
    -* )
        exec "$python" train.py "$@"
        ;;
esac
