"""How many files a reader opens to follow one training update."""

import os
import subprocess
import sys
from pathlib import Path


def test_one_update_passes_few_files():
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.files_passed"],
        cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"training/step.py", "training/data/order.py", "unet/model.py"} < set(done.stdout.split())
