"""Messages for values outside their set. The suite's type checks would speak first; users have none."""

import subprocess
import sys

RESAMPLE = "no resample 'pool'; one of: conv, conv_same, block, block_project, block_fir"
CASES = {
    'unet_branch(8, 8, 4, conditioning="film")': "no conditioning 'film'; one of: add, scale_shift",
    'SinusoidalEmbedding(8, "fourier")': "no timestep convention 'fourier'; one of: ddpm, adm",
    'StridedConv(3, 5, padding="same")': "no padding 'same'; one of: both, end",
    'UNetConfig(conditioning="film")': "no conditioning 'film'; one of: add, scale_shift",
    'UNetConfig(resample="pool")': RESAMPLE,
    'UNetConfig(resample=("conv", "pool", "conv", "conv"))': RESAMPLE,
    'UNetConfig(time_embedding="sine")': "no time_embedding 'sine'; one of: ddpm, adm, fourier, log_fourier",
    'UNetConfig(label_embedding="row")': "no label_embedding 'row'; one of: table, linear, linear_first",
    'UNetConfig(decoder_attention="first")': "no decoder_attention 'first'; one of: all, last",
    'UNetConfig(init="he")': "no init 'he'; one of: torch, xavier",
}
SCRIPT = """
import sys
from residual import *
from unet import *
for line in sys.stdin.read().splitlines():
    try:
        eval(line)
        print("no error")
    except ValueError as error:
        print(error)
"""


def test_values_outside_their_set_are_named_with_the_choices() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input="\n".join(CASES), capture_output=True, text=True, check=True
    )
    assert dict(zip(CASES, done.stdout.splitlines(), strict=True)) == CASES
