"""The parts of the site that are not in docs/: pages of the repository, files that pages link to, and the reference.

mkdocs.yml names this file as a hook. A link out of docs/ leads to a copy under repository/. The reference has a page
for each package, with the names of its `__all__` in order; mkdocstrings reads their docstrings.
"""

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LINK = re.compile(r'(?:(?<=\]\()|(?<= src="))(?!\w+:|#)([^)#"\s]+)')
PAGES = "README.md", "CONTRIBUTING.md", "CHANGELOG.md"
REFERENCE = {
    "residual": "blocks and their parts",
    "residual.ode": "blocks as steps of an ODE",
    "residual.probes.features": "measurements: features along the depth",
    "residual.probes.gradients": "measurements: gradients of the blocks",
    "residual.probes.jacobians": "measurements: Jacobians of the blocks",
    "residual.probes.lesions": "measurements: models without some of their blocks",
    "residual.probes.robustness": "measurements: attacks, and the loss around weights",
    "unet": "diffusion U-Nets",
    "resnet": "the classification zoo",
    "diffusion": "noise levels, losses, denoisers, samplers",
    "metrics": "distances between sets of images",
    "pipelines.diffusion": "trained diffusion models",
    "pipelines.diffusion_folder": "opening a diffusion model",
    "pipelines.classification": "trained classifiers",
    "pipelines.superresolution": "trained networks that enlarge pictures",
}
"""modules, and what they hold"""


def site_path(path: str) -> str:
    """Where a file of the repository is on the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def repository_path(path: str) -> str:
    """The inverse of `site_path`."""
    return path.removeprefix("repository/") if path.startswith("repository/") else f"docs/{path}"


def targets(page: str) -> set[str]:
    """The files of the repository that a page links to."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return {posixpath.normpath(posixpath.join(posixpath.dirname(page), link)) for link in LINK.findall(text)}


def public_names(module: str) -> list[str]:
    """The names in a module's `__all__`; without it, its own public classes and functions."""
    path = ROOT / module.replace(".", "/")
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return [name for name in defined if not name.startswith("_")]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Completes the navigation by the pages of the reference."""
    (reference,) = [part["Reference"] for part in config.nav or [] if "Reference" in part]
    reference += [{module: f"reference/{module}.md"} for module in REFERENCE]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the repository, the files that pages link to, and the reference."""
    pages = [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    linked = set().union(*map(targets, pages)) | set(PAGES)
    for path in sorted(linked):
        if not path.startswith("docs/") and (ROOT / path).is_file():
            files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
    lines = [f"- [{module}]({module}.md): {about}" for module, about in REFERENCE.items()]
    text = "# Reference\n\nThe public names, from their docstrings.\n\n" + "\n".join(lines)
    files.append(File.generated(config, "reference/index.md", content=text))
    for module in REFERENCE:
        names = "\n\n".join(f"::: {module}.{name}" for name in public_names(module))
        text = f"# {module}\n\n::: {module}\n    options: {{members: false, show_root_heading: false}}\n\n{names}\n"
        files.append(File.generated(config, f"reference/{module}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads the links of a page to where their files are on the site."""
    path = repository_path(page.file.src_uri)
    folder, here = posixpath.dirname(path), posixpath.dirname(page.file.src_uri)
    if not (ROOT / path).is_file():
        return markdown

    def moved(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        return posixpath.relpath(site_path(target), here or ".")

    return LINK.sub(moved, markdown)
