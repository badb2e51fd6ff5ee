"""Messages for values outside their set. The suite's type checks would speak first; users have none."""

from tests import forks

IMAGES = "images are floats in about [-1, 1] with four axes (batch, channels, height, width), not torch."
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
    'preset("ddpm-cifar10", in_channels="1")': "in_channels='1' should be int",
    'preset("ddpm-cifar10", size=32)': "size=32 should be tuple[int, int]",
    'preset("ddpm-cifar10", dropout=None)': "dropout=None should be float",
    'resnet.create_model("resnet20", num_classes=2.5)': "num_classes=2.5 should be int",
    'UNet("ddpm-cifar10")': "'ddpm-cifar10' is not a UNetConfig, of which this network is built",
    "net.import_weights(net)": "a UNet is no state dict: give net.state_dict(), or a file",
    "net.import_weights(None)": "a NoneType is no state dict: give net.state_dict(), or a file",
    "net.import_weights({1: X})": "1 is a Tensor, not a named tensor: give the state dict itself",
    "net(X[0], 3)": f"{IMAGES}float32 of shape (1, 8, 8)",
    "net((X * 9).byte(), 3)": f"{IMAGES}uint8 of shape (2, 1, 8, 8)",
    "net(X, torch.ones(3))": "times or labels of shape (3,) for 2 images; give one, or one for each",
    "net(X, torch.ones(2, 1))": "times or labels of shape (2, 1) for 2 images; give one, or one for each",
    "net(X, 3, torch.ones(2, 3).long())": "times or labels of shape (2, 3) for 2 images; give one, or one for each",
    "net(X, 3, torch.ones(2))": "labels are the numbers of classes, not torch.float32; give whole numbers",
    'resnet.create_model("resnet20")(torch.zeros(2, 3, 32, 32).byte())': "images should be floats, not torch.uint8: "
    "divide by 255, subtract the mean, divide by the std",
}
SCRIPT = """
import sys
from residual import *
from resnet import *
from unet import *
from diffusion import *
from unet import UNet
import sys, torch, resnet
X = torch.zeros(2, 1, 8, 8)
config = dict(size=(8, 8), in_channels=1, base_channels=16, channel_multipliers=(1,), groups=8, classes=3)
net = UNet(UNetConfig(**config, attention_levels=()))
for line in sys.argv[1:]:
    try:
        eval(line)
        print("no error")
    except ValueError as error:
        print(error)
"""


def test_values_outside_their_set_are_named_with_the_choices() -> None:
    done = forks.run(SCRIPT, *CASES)
    assert done.returncode == 0, done.stderr
    assert dict(zip(CASES, done.stdout.splitlines(), strict=True)) == CASES
