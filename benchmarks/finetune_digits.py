"""Fine-tuning from a checkpoint in each layout, compared with training from scratch: 200 updates each.

    python -m benchmarks.finetune_digits

A small network is trained on the handwritten digits at 16x16 px, exported in each layout that can hold it, and trained
further from that file or folder with another seed. Reported is the training loss, mean of the last 20 updates, against
that from scratch with the same seed. EDM's networks have other parts, so its layout has a network of its own.
"""

import argparse
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save_file

from exporting.diffusers_folder import save_diffusers
from pipelines.diffusion_folder import load_model
from tasks.denoising import DiffusionTask
from tasks.diffusion import DiffusionRun
from training.accelerator import make_accelerator
from training.config import TrainConfig
from training.data import DataConfig, open_images
from training.optimizer import AdamW
from training.schedule import Constant
from training.step import Step
from unet import UNetConfig

LAST = 20
ADM = UNetConfig(
    base_channels=32,
    channel_multipliers=(1, 2),
    blocks_per_level=1,
    attention_levels=(1,),
    head_channels=32,
    conditioning="scale_shift",
    resample="block",
    time_embedding="adm",
)
EDM = replace(ADM, head_channels=64, group_channels=4, label_embedding="linear")
NETWORKS = {"ADM": (ADM, ("ours", "diffusers", "adm", "adm-new-order")), "EDM": (EDM, ("edm",))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=200, help="of fine-tuning, and from scratch")
    parser.add_argument("--pretrain", type=int, default=300, help="updates of the checkpoint")
    parser.add_argument("--batch", type=int, default=64, help="images per update")
    args = parser.parse_args()
    accelerator = make_accelerator(TrainConfig(batch=args.batch, trackers=()))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, (network, layouts) in NETWORKS.items():
            run = DiffusionRun(
                data=DataConfig(source="digits", size=16),
                model=network,
                optimizer=AdamW(learning_rate=1e-3),
                schedule=Constant(warmup_images=640),
                train=TrainConfig(batch=args.batch, trackers=()),
            )
            start = time.perf_counter()
            train(run, args.pretrain, accelerator, work / name)
            seconds = time.perf_counter() - start
            print(f"{name}-like network: {args.pretrain} updates of {args.batch} in {seconds:.0f} s")
            other_seed = replace(run, train=replace(run.train, seed=1))
            scratch = train(other_seed, args.updates, accelerator)
            print(f"{'from scratch':>24}: loss {scratch:.4f} after {args.updates} updates", flush=True)
            for layout in layouts:
                init = export(work / name, layout, work / layout)
                loss = train(from_init(other_seed, init, layout), args.updates, accelerator)
                print(f"{f'through {layout}':>24}: loss {loss:.4f}, {loss / scratch:.2f} of that", flush=True)


def train(run: DiffusionRun, updates: int, accelerator: Accelerator, folder: Path | None = None) -> float:
    """Trains without a run folder; returns the mean loss of the last updates. Saves the averaged model to `folder`."""
    images = open_images(run.data)
    task: DiffusionTask = run.build(images)
    run.load_init(task)
    with closing(Step(task, images, run, accelerator)) as step:
        losses = [step.update().loss for _ in range(updates)]
        if folder is not None:
            folder.mkdir()
            task.save(step.ema.model, folder)
    accelerator.free_memory()
    return sum(loss.item() for loss in losses[-LAST:]) / LAST


def from_init(run: DiffusionRun, init: Path, layout: Any) -> DiffusionRun:
    """The run with weights to start from; a folder also gives the config of the network, a file its layout."""
    config = DiffusionRun.init_config(str(init))
    if config is None:
        return replace(run, init=str(init), init_layout=layout)
    return replace(run, init=str(init), model=config)


def export(model: Path, layout: str, target: Path) -> Path:
    """A model folder as a folder or file of this layout."""
    if layout == "ours":
        return model
    if layout == "diffusers":
        save_diffusers(load_model(model), target)
        return target
    path = target.with_suffix(".safetensors")
    save_file(load_model(model).net.export_weights(layout), path)
    return path


if __name__ == "__main__":
    main()
