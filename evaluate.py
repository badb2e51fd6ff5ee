"""Evaluate a trained model, or images that were drawn with one.

python evaluate.py RUN
python evaluate.py RUN --data.source my_images
python evaluate.py RUN --quality.judge CLASSIFIER --quality.steps 18
python evaluate.py RUN --ema 0.02 0.05 0.1
python evaluate.py RUN --ensemble.members 8 --ensemble.num 100
python evaluate.py RUN --likelihood --other IMAGES --quality.num 256 --quality.steps 50
python evaluate.py MODEL --data.source my_images --data.validation 0.5 --quality.judge CLASSIFIER
python evaluate.py DRAWN --data.source my_images --data.validation 0.5 --quality.judge CLASSIFIER
torchrun --nproc_per_node 4 -- evaluate.py RUN

RUN is a run folder of train.py; MODEL a model folder (of this project or diffusers') or its name on the hub; DRAWN a
folder of images, such as one of sample.py, or an .npz file. A model or images in a run folder are evaluated with the
settings of that run.

A run's averaged model is compared with its held-out images, or with those of another source: with all of data.split,
unless data.validation names a part of them. Of a classifier, accuracy and loss are printed; the accuracy of each class,
the confusion matrix and the worst mistakes are written into the folder evaluation of the run. Of a model that enlarges
pictures, the likeness to the originals is printed, beside that of the bicubic filter. A diffusion model draws as many
images as are held out, with the same labels; their distances from the held-out ones are printed, by the features of a
judge: a classifier of such images, trained by train.py --task classification, or a file of TorchScript. The floor is
the same figure of training images in place of drawn ones.

--ensemble.members K prints the scores of ensembles: a diffusion model draws K images for each held-out pair, with its
condition, class and numbers. CRPS, error of the mean, ratio of spread and error, and error of the spectrum are printed
over all channels, in standard deviations of the truth, and of each channel, in its units. A regression is scored as an
ensemble of one member. DRAWN is then a folder of sample.py --condition --members K, for the first held-out pairs.

--ema gives other averages of the run: a number below 1 is a width (relative standard deviation), reconstructed from the
snapshots of ema.power_widths; from 1 it is a half-life in images that the run tracked. Of several, the best is marked:
that with the lowest Fréchet distance or CRPS, or the highest accuracy.

--likelihood prints the bits per dimension that a diffusion model needs for held-out images, for those that it was
trained on, and for those of --other, by the probability-flow equation, and draws their histograms in
samples/likelihood.png of the run. Of the section quality, num, steps, seed and batch count. No judge is needed.
"""

from collections.abc import Sequence

from evaluating.options import USAGE, read
from training.script import command, show_and_exit


@command
def main(argv: Sequence[str]) -> None:
    """Reads the command line, evaluates, prints one line per figure."""
    request = read(argv, __doc__)
    from evaluating.command import run, settings_help  # imports PyTorch, for which errors need not wait

    if request.help:
        show_and_exit("\n".join([__doc__, USAGE, *settings_help(request)]))
    run(request)


if __name__ == "__main__":
    main()
