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
    'ZeroPad(8, 16, side="left")': "no side 'left'; one of: end, split",
    'bottleneck_branch(8, 8, 8, stride_in="2x2")': "no stride_in '2x2'; one of: 3x3, 1x1",
    'ResNetConfig(block="basik")': "no block 'basik'; one of: "
    "basic, bottleneck, split_attention, preact_basic, preact_bottleneck",
    'ResNetConfig(stem="conv5")': "no stem 'conv5'; one of: conv7, deep, conv3",
    'ResNetConfig(shortcut="E")': "no shortcut 'E'; one of: A, A_split, B, D, none",
    'cifar_resnet(20, "wide")': "no block 'wide'; one of: "
    "basic, bottleneck, split_attention, preact_basic, preact_bottleneck",
    'ResNetConfig(stride_in="2x2")': "no stride_in '2x2'; one of: 3x3, 1x1",
    'ResNetConfig(norm="layer")': "no norm 'layer'; one of: batch, group, frozen",
    'ResNetConfig(act="tanh")': "no act 'tanh'; one of: relu, silu",
    'DDPM(schedule="cosin")': "unknown schedule 'cosin'; did you mean cosine? (of: linear, scaled_linear, cosine)",
    'DDPM(prediction="noise")': "unknown prediction 'noise'; give one of: epsilon, x0, v",
    'DDPM(variance="fixed_larg")': "unknown variance 'fixed_larg'; did you mean fixed_large or fixed_small?",
    'DenseNetConfig(stem="deep")': "no stem 'deep'; one of: conv7, conv3",
}
SCRIPT = """
import sys
from residual import *
from resnet import *
from unet import *
from diffusion import *
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
