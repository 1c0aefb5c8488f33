"""``python benchmarks/parity.py DIR`` replays every fixture of the reference in DIR with our code and compares the numbers.

How, and what is not compared, is told in tests/parity.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python looks beside the script only
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # on a busy machine two threads that wait actively starve each other
    from tests.parity.replay import main

    sys.exit(main(sys.argv[1:]))
