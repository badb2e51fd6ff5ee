"""Saving a network as a folder that is enough to rebuild it, and reading such folders strictly."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from residual.weights.config import read_config, read_json
from residual.weights.keymap import check_state

FORMAT_VERSION = 2
_LAST_OF_VERSION_1 = "9782c87"
"""the last commit that wrote config.json with format_version 1, where some fields have other names"""
M = TypeVar("M", bound="Pretrained")


class Pretrained(nn.Module):
    """A network that is built from one config dataclass, with saving, reading and publishing.

    A model folder holds `config.json` and `model.safetensors`, nothing that could run code.
    """

    config_class: ClassVar[type]
    hub_tags: ClassVar[tuple[str, ...]] = ()
    """tags of the model on the hub"""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`, which is made if need be."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        document = {"format_version": FORMAT_VERSION, "model": qualified_name(type(self))}
        document |= dataclasses.asdict(self.config)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        _replace(folder / "model.safetensors", lambda path: save_file(state, path, metadata={"format": "pt"}))
        _replace(folder / "config.json", lambda path: path.write_text(json.dumps(document, indent=2) + "\n"))

    @classmethod
    def from_pretrained(cls: type[M], folder_or_hub_id: str | Path) -> M:
        """The network of a model folder, or of a repository on the Hugging Face hub, on the CPU and in eval mode.

        Raises ValueError if there is no such folder, if the config has unknown or wrong fields, or if names or shapes
        of the weights differ from what the config describes.
        """
        folder = local_folder(folder_or_hub_id)
        config = cls.read_config(folder)
        model = laid_out(cls, config, folder / "config.json")
        state = read_weights(folder / "model.safetensors")
        try:
            check_state(state, model.state_dict())
        except ValueError as error:
            raise ValueError(f"{folder / 'model.safetensors'}: {error}") from None
        model.load_state_dict(state, assign=True)
        return model.requires_grad_(True).eval()

    @classmethod
    def read_config(cls, folder: Path) -> Any:
        """The config of a model folder. Raises ValueError as `from_pretrained` does."""
        document = read_json(folder / "config.json")
        found = document.pop("model", document.get("_class_name"))
        if found != qualified_name(cls):
            raise ValueError(f"{folder / 'config.json'} describes a {found!r}, not a {qualified_name(cls)}")
        version = document.pop("format_version", None)
        if version != FORMAT_VERSION:
            way_out = (
                f"commits up to {_LAST_OF_VERSION_1} wrote it: export_weights there, and import_weights here"
                if version == 1
                else "use the version of this project that wrote it"
            )
            found = f"{folder / 'config.json'} has format_version {version!r}"
            raise ValueError(f"{found}; this version reads {FORMAT_VERSION}; {way_out}")
        try:
            return read_config(cls.config_class, document)
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from None

    def push_to_hub(self, repo_id: str, *, private: bool = False, commit_message: str = "Upload model") -> str:
        """Upload the model folder, with a generated model card, to the Hugging Face hub; returns its address there.

        `repo_id` is "owner/name"; the repository is made if need be, and a card that it has already is kept. The hub
        knows you by the token of `hf auth login` or of the environment (HF_TOKEN). Raises ValueError, with the reason,
        if the hub does not take it.
        """
        if repo_id.count("/") != 1 or not all(repo_id.split("/")):
            raise ValueError(f"repo_id={repo_id!r} should be of the form 'owner/name'")
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError, HTTPError

        api = HfApi()
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            try:
                address = api.create_repo(repo_id, private=private, exist_ok=True)
                if not api.file_exists(repo_id, "README.md"):
                    (Path(folder) / "README.md").write_text(self.model_card(repo_id), encoding="utf-8")
                api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
            except (HTTPError, OSError, HFValidationError) as error:  # HTTPError is that of the hub's HTTP library
                raise ValueError(
                    f"the hub did not take {repo_id!r}: {_first_line(error)} (hf auth login tells it who you are)"
                ) from None
        return str(address)

    def model_card(self, repo_id: str) -> str:
        """A README.md for the hub: what it is, its size and shape, and how to load it. The licence is yours to add."""
        package, name = qualified_name(type(self)).split(".")
        weights = list(self.parameters())
        return _CARD.format(
            tags="".join(f"\n- {tag}" for tag in ("residual-diffusion", *self.hub_tags)),
            title=repo_id.partition("/")[2],
            repo_id=repo_id,
            package=package,
            name=name,
            about=(type(self).__doc__ or "").strip().partition("\n")[0],
            count=f"{sum(p.numel() for p in weights):,}",
            types=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in weights})),
            config=json.dumps(dataclasses.asdict(self.config), indent=2),
        )


# The licence is the author's to choose: the hub reads it from the line that is left out here.
_CARD = """---
library_name: residual-diffusion
tags:{tags}
# license: name yours here, such as apache-2.0
---

# {title}

A `{package}.{name}` with {count} parameters ({types}). {about}

```python
from {package} import {name}

net = {name}.from_pretrained("{repo_id}")
```

Its config:

```json
{config}
```
"""


def laid_out(model_class: type[M], config: Any, path: Path) -> M:
    """The model of a config on the meta device, without memory. Raises ValueError, with the config's path, if none."""
    try:
        with torch.device("meta"):
            return model_class(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except RuntimeError:  # the size of a tensor does not fit into 64 bits
        raise ValueError(f"{path} describes a network that no memory can hold") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ValueError if it is missing, damaged, or a pickle."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"no weights at {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        # Looked at only now: a safetensors file may begin with the same bytes, which are its header's length there.
        with path.open("rb") as file:
            head = file.read(2)
        if head in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise pickle_error(path) from None
        raise ValueError(f"{path} is not a whole safetensors file ({error}): copy or save it again") from None


def pickle_error(path: Path) -> ValueError:
    """The error for weights that are a pickle, with the way out."""
    return ValueError(
        f"{path} is a pickle, which could run code, and is not opened here; save a plain state dict first: "
        "safetensors.torch.save_file(torch.load(PATH, weights_only=True), 'weights.safetensors')"
    )


def local_folder(folder_or_hub_id: str | Path) -> Path:
    """The folder itself, or a copy of a hub repository's JSON and safetensors files. Raises ValueError for neither."""
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        return folder
    text = str(folder_or_hub_id)
    if isinstance(folder_or_hub_id, Path) or text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise ValueError(f"no folder {text!r}; give a model folder or a hub id of the form 'owner/name'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = _first_line(error)
        raise ValueError(f"{text!r} is neither a folder here nor a repository that the hub gave: {reason}") from None


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def qualified_name(model_class: type) -> str:
    return f"{model_class.__module__.partition('.')[0]}.{model_class.__name__}"
