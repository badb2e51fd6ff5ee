"""Peak memory of training a network of a thousand layers with recomputed activations."""

import subprocess
import sys

import pytest

STEP = """
import resource, sys
import torch
import resnet
from residual.recompute import Recomputed

torch.manual_seed(0)
net = resnet.create_model("preact_resnet1001", recompute_stages=(1, 2, 3))
assert sum(isinstance(level, Recomputed) for level in net.levels) == 3
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
images, labels = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
torch.nn.functional.cross_entropy(net(images), labels).backward()
optimizer.step()
assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)  # KiB, on Linux
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the peak is that of Linux")
def test_preact_resnet1001_trains_one_step_at_batch_128_under_8_gib() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 8, f"{done.stdout.strip()} GiB"
