"""Evaluate a trained model, or images that were drawn with one.

what people ask first:
  a run             python evaluate.py RUN: with its held-out images and its settings
  other images      --data.source IMAGES; only a part of them: --data.validation 0.5
  a model folder    python evaluate.py MODEL --data.source IMAGES --data.validation 0.5 --quality.judge CLASSIFIER
  drawn images      python evaluate.py DRAWN --data.source IMAGES --data.validation 0.5 --quality.judge CLASSIFIER
  FID and others    --quality.judge CLASSIFIER --quality.num 1000; the judge is a classifier of such images
  how it draws      --quality.steps 18 --quality.sampler heun --quality.guidance 1.5
  which average     --ema 0.02 0.05 0.1
  ensembles         --ensemble.members 8 --ensemble.num 100
  likelihood        --likelihood --other IMAGES --quality.num 256 --quality.steps 50
  memory            --quality.batch 16, --classification.validation_batch 100
  several GPUs      torchrun --nproc_per_node 4 -- evaluate.py RUN
  all settings      python evaluate.py RUN --help

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
    from evaluating.command import print_completion, run, settings_help  # import PyTorch, for which errors do not wait

    if request.completion is not None:
        print_completion(request.completion)
    if request.help:
        show_and_exit("\n".join([__doc__, USAGE, *settings_help(request)]))
    run(request)


if __name__ == "__main__":
    main()
