"""A folder for a Hugging Face Space: the page of one model, with everything that it needs."""

import shutil
import tomllib
from importlib.metadata import version
from pathlib import Path

from pipelines.kinds import Model
from storage.extra import require_extra
from storage.show import markdown
from web.models import describe_model, save_model

ROOT = Path(__file__).parent.parent
PACKAGES = (
    *("storage", "residual", "pictures", "resnet", "unet", "metrics", "diffusion", "training", "pipelines"),
    *("drawing", "web"),
)
"""what the page imports of this project"""
MODEL = "model"
NAMES = ("README.md", "app.py", "requirements.txt", MODEL, *PACKAGES)
EXTRAS = ("sample", "train")
"""of pyproject.toml; gradio itself is that of the Space"""
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def require_gradio() -> str:
    """The version of gradio. Raises ValueError if it is not installed."""
    require_extra("gradio", "demo", "the page")
    return version("gradio")


def write_space(model: Model, folder: Path) -> None:
    """Writes the files of a Space for a model. Raises ValueError outside a checkout of the project."""
    if not (ROOT / "pyproject.toml").is_file():
        raise ValueError(f"there is no pyproject.toml in {ROOT}; export a Space from a checkout of the project")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    save_model(model, folder / MODEL)
    (folder / "app.py").write_text(APP.format(model=MODEL), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join([f"--extra-index-url {CPU_WHEELS}", *requirements(), ""]))
    about = f"This model {markdown(describe_model(model).about)}."
    (folder / "README.md").write_text(README.format(gradio=require_gradio(), about=about), encoding="utf-8")


def requirements() -> list[str]:
    """The packages that the page needs, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in EXTRAS)]
    return [line for lines in lists for line in lines if not line.startswith(project["name"])]


APP = '''"""The page of the model in this folder."""

from web.page import launch_options, make_page

make_page(["{model}"], any_folder=False).launch(**launch_options())
'''

README = """---
title: Residual Diffusion
sdk: gradio
sdk_version: {gradio}
app_file: app.py
python_version: "3.12"
pinned: false
# license: name yours here, such as apache-2.0
---

# Residual Diffusion

{about}

Start the page here with `pip install gradio -r requirements.txt` and `python app.py`. Upload this folder with
`hf upload OWNER/NAME . --repo-type space`.
"""
