"""Model folders: saving a network with its config, reading it back, and publishing it on the Hugging Face hub."""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import nn

from residual.count import on_meta
from residual.weights.config import foreign_version, read_config, read_json
from residual.weights.keymap import check_state
from residual.weights.note import note
from residual.weights.read import read_folder_weights
from storage.show import markdown, printable
from storage.write import replace_file

FORMAT_VERSION = 2
M = TypeVar("M", bound="Pretrained")
CONFIGS = ("config.json", "unet/config.json")
"""places of the network's config: in a model folder, and in a pipeline folder of diffusers"""
DESCRIPTIONS = ("diffusion.json", "classification.json")
"""files beside the network's config that describe a whole model"""


class Pretrained(nn.Module):
    """A network that is built from one config dataclass, with saving, reading and publishing.

    A model folder holds `config.json` and `model.safetensors`, nothing that could run code.
    """

    config_class: ClassVar[type]
    later_fields: ClassVar[frozenset[str]] = frozenset()
    """fields that configs of the first versions of the format lack; their defaults describe the networks of then"""
    hub_tags: ClassVar[tuple[str, ...]] = ()
    """tags of the model on the hub"""

    def __init__(self, config: Any) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise ValueError(f"{config!r:.60} is not a {self.config_class.__name__}, of which this network is built")
        self.config: Any = config

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors` into `folder`, which is created if needed."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        document = {"format_version": FORMAT_VERSION, "model": _qualified_name(type(self))}
        document |= dataclasses.asdict(self.config)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        replace_file(folder / "model.safetensors", lambda path: save_file(state, path, metadata={"format": "pt"}))
        replace_file(folder / "config.json", lambda path: path.write_text(json.dumps(document, indent=2) + "\n"))

    @classmethod
    def from_pretrained(cls: type[M], folder_or_hub_id: str | Path) -> M:
        """Reads a model folder, or a repository of the Hugging Face hub. The network is on the CPU and in eval mode.

        Raises ValueError if the folder does not exist, if the config has unknown, missing or wrong fields, or if names
        or shapes of the weights do not match the config.
        """
        folder = local_folder(folder_or_hub_id)
        config = cls.read_config(folder)
        model = build_on_meta(cls, config, folder / "config.json")
        state = read_folder_weights(folder, "model")
        try:
            check_state(state, model.state_dict())
        except ValueError as error:
            raise ValueError(f"{folder / 'model.safetensors'}: {error}") from None
        model.load_state_dict(state, assign=True)
        return model.requires_grad_(True).eval()

    @classmethod
    def read_config(cls, folder: Path) -> Any:
        """Reads the config of a model folder. Raises ValueError as `from_pretrained` does."""
        document = read_json(folder / "config.json")
        found = document.pop("model", document.get("_class_name"))
        if found != _qualified_name(cls):
            raise ValueError(f"{folder / 'config.json'} describes a {found!r}, not a {_qualified_name(cls)}")
        if (version := document.pop("format_version", None)) != FORMAT_VERSION:
            found = f"{folder / 'config.json'} has {foreign_version(version, FORMAT_VERSION)}"
            raise ValueError(
                f"{found}. Call export_weights with the version that wrote it, import_weights with this one"
            )
        try:
            return read_config(cls.config_class, document, optional=cls.later_fields)
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from None

    def push_to_hub(self, repo_id: str, *, private: bool = False, commit_message: str = "Upload model") -> str:
        """Uploads the model folder, with a generated model card, to the Hugging Face hub. Returns the URL.

        `repo_id` is "owner/name". The repository is created if needed; an existing model card is kept. Authentication
        uses the token of `hf auth login` or of the environment (HF_TOKEN). Raises ValueError with the reason if the
        upload fails.
        """
        card = self.model_card(repo_id)
        return upload(repo_id, self.save_pretrained, card, private=private, commit_message=commit_message)

    def model_card(self, repo_id: str) -> str:
        """A README.md for the hub: description, size, config and loading. The licence is left to the author."""
        package, name = _qualified_name(type(self)).split(".")
        weights = list(self.parameters())
        return _CARD.format(
            tags="".join(f"\n- {tag}" for tag in ("residual-diffusion", *self.hub_tags)),
            title=markdown(repo_id.partition("/")[2]),
            repo_id=json.dumps(repo_id),
            package=package,
            name=name,
            about=(type(self).__doc__ or "").strip().partition("\n")[0],
            count=f"{sum(p.numel() for p in weights):,}",
            types=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in weights})),
            config=json.dumps(dataclasses.asdict(self.config), indent=2),
        )


# The hub reads the licence from the commented line; the author fills it in.
_CARD = """---
library_name: residual-diffusion
tags:{tags}
# license: name yours here, such as apache-2.0
---

# {title}

A `{package}.{name}` with {count} parameters ({types}). {about}

```python
from {package} import {name}

net = {name}.from_pretrained({repo_id})
```

Its config:

```json
{config}
```
"""


def upload(
    repo_id: str, save: Callable[[Path], object], card: str, *, private: bool, commit_message: str = "Upload model"
) -> str:
    """Uploads the folder that `save` fills, with the model card `card`, to the Hugging Face hub. Returns the URL.

    An existing model card is kept; `repo_id` and the authentication are as in `Pretrained.push_to_hub`. Raises
    ValueError with the reason if the upload fails, and if the repository holds files of another kind of model, which
    would be taken for parts of the new one.
    """
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise ValueError(f"repo_id={repo_id!r} should be of the form 'owner/name'")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    api = HfApi()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder)
        try:
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            for path in (*CONFIGS, *DESCRIPTIONS):
                if not (folder / path).exists() and api.file_exists(repo_id, path):
                    raise ValueError(
                        f"{repo_id!r} holds a model of another kind, with {path}; remove it, or give a new name"
                    )
            if api.file_exists(repo_id, "README.md"):
                note(f"{printable(repo_id)} keeps its README.md, which may describe an earlier model")
            else:
                (folder / "README.md").write_text(card, encoding="utf-8")
            api.upload_folder(repo_id=repo_id, folder_path=name, commit_message=commit_message)
        except (HTTPError, OSError, HFValidationError) as error:  # HTTPError is from the hub's HTTP library
            reason = f"{_first_line(error)} (log in with: hf auth login)"
            raise ValueError(f"the hub refused {repo_id!r}: {reason}") from None
    return str(address)


def build_on_meta(model_class: type[M], config: Any, path: Path) -> M:
    """Builds the model of a config on the meta device, without memory. Raises ValueError with the config's path."""
    try:
        return on_meta(lambda: model_class(config))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def local_folder(folder_or_hub_id: str | Path) -> Path:
    """Returns the folder, or downloads the JSON and safetensors files of a hub repository, OWNER/NAME or, pinned to a
    commit, tag or branch, OWNER/NAME@REVISION.

    Raises ValueError if there is no such folder and the repository cannot be downloaded.
    """
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        return folder
    text = str(folder_or_hub_id)
    name, at, revision = text.partition("@")
    is_name = name.count("/") == 1 and not name.startswith((".", "/", "~")) and bool(at) == bool(revision)
    if isinstance(folder_or_hub_id, Path) or not is_name:
        way_out = "give a model folder or a hub id of the form 'owner/name' or 'owner/name@revision'"
        raise ValueError(f"no folder {text!r}; {way_out}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors"]
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        message = f"{text!r} is neither a local folder nor a repository on the hub: {_first_line(error)}"
        raise ValueError(message) from None


def model_class(folder: Path, classes: Iterable[type[M]]) -> type[M]:
    """The one of `classes` that the config.json of a model folder names. Raises ValueError for any other class."""
    path = folder / "config.json"
    found, named = read_json(path).get("model"), {_qualified_name(each): each for each in classes}
    if not isinstance(found, str) or found not in named:
        raise ValueError(f"{path} describes model={found!r}, which is none of: {', '.join(named)}")
    return named[found]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _qualified_name(model_class: type) -> str:
    return f"{model_class.__module__.partition('.')[0]}.{model_class.__name__}"
