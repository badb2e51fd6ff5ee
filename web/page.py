"""The page itself: its tabs, and what their buttons do. The only file that imports gradio."""

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported; no version checks either

import gradio as gr
from fastapi import Request, Response
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from diffusion import SAMPLERS
from drawing.options import make_parser
from drawing.upscale import upscaling
from pictures.files import read_image
from pictures.preprocessing import Preprocessing
from pipelines.classification import load_classifier
from pipelines.folder import model_folder
from pipelines.superresolution import is_edsr
from web.draw import MAX_IMAGES, MAX_STEPS, Frame, Settings, archive, options, watch
from web.follow import CURVES, GRIDS, follow
from web.inpaint import fit, open_drawing, painted, read_picture, shown, write_inputs
from web.messages import SCRATCH, line, message, table
from web.models import describe, is_run, require_folder, require_upscaler

TITLE = "Residual Diffusion"
OF_MODEL = "default"
"""the sampler that a model has without a choice"""
FRAME_SECONDS = 0.15
"""between two pictures of a drawing that is shown while it is made"""
REFRESH_SECONDS = 5
MAX_QUEUE = 16
"""clicks that wait; further ones are refused with a message"""
MAX_UPLOAD_BYTES, MAX_UPLOAD_PIXELS = 20_000_000, 1_000_000
QUEUED: Any = {"concurrency_limit": 1, "concurrency_id": "model"}
"""one click at a time uses a model"""
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'self'; form-action 'self'"
"""content security policy: the browser loads nothing from other hosts"""
STYLE = """
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; padding: 0 !important; }
.gradio-container .main { padding: 8px 12px !important; }
.status { min-height: 1.6em; }
.status .failed { color: #b00020; font-weight: 600; }
.dark .status .failed { color: #ff8a80; }
.picture .image-container { padding: 32px 4px 4px; }
.picture img { max-height: 600px; object-fit: contain; }
.figures, .figures tr, .figures td { border: none !important; border-collapse: collapse; }
.figures td { padding: 2px 16px 2px 0 !important; }
"""
FONTS = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
Shown = dict[Any, Any]
"""new values of components"""


def make_page(models: Sequence[str], any_folder: bool = True) -> gr.Blocks:
    """The page for these folders, the first of which is chosen; with `any_folder` others can be typed."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {TITLE}")
        model = gr.Dropdown(
            list(models),
            value=models[0] if models else None,
            label="Model",
            info="Folder of a run of train.py, of a model, or of a pipeline of diffusers" if any_folder else None,
            allow_custom_value=any_folder,
            elem_id="model",
        )
        about = gr.HTML(elem_classes="status", elem_id="about")
        with gr.Tab("Draw", id="draw"):
            label = _draw_tab(model)
        with gr.Tab("Inpaint", id="inpaint"):
            of_inpaint = _inpaint_tab(model)
        with gr.Tab("Enlarge", id="enlarge"):
            _enlarge_tab(model)
        with gr.Tab("Classify", id="classify"):
            _classify_tab(model)
        if any_folder or any(map(is_run, models)):
            with gr.Tab("Follow a run", id="follow"):
                _follow_tab(model)

        labels = [label, of_inpaint]

        @_reporting(about)
        def open_model(folder: str) -> Iterator[Shown]:
            yield dict.fromkeys(labels, gr.Dropdown(choices=[], value=""))
            found = describe(folder)
            yield {
                about: line(f"This model {found.about}."),
                label: gr.Dropdown(choices=list(found.labels), value=next(iter(found.labels), "")),
                of_inpaint: gr.Dropdown(choices=list(found.labels[1:]), value=next(reversed(found.labels), "")),
            }

        for event in (model.change, page.load):
            event(open_model, [model], [about, *labels], show_progress="hidden", **QUEUED)
    page.queue(max_size=MAX_QUEUE, api_open=False, default_concurrency_limit=1)
    return page


def launch_options() -> dict[str, Any]:
    """How the page is launched, besides its address: in local fonts, without any address of another host."""
    sans, mono = FONTS
    return {
        "share": False,
        "quiet": True,
        "theme": gr.themes.Default(font=sans, font_mono=mono),
        "css": STYLE,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "show_error": True,
        "max_file_size": MAX_UPLOAD_BYTES,
        "app_kwargs": {"middleware": [Middleware(BaseHTTPMiddleware, dispatch=_with_policy)]},
    }


async def _with_policy(request: Request, call_next: Callable[[Request], Any]) -> Response:
    response: Response = await call_next(request)
    response.headers["Content-Security-Policy"] = POLICY
    return response


def _reporting(status: gr.HTML) -> Callable[[Callable[..., Iterator[Shown]]], Callable[..., Iterator[Shown]]]:
    """Makes the handler of a button of a generator: an error in the input becomes a line in `status`."""

    def decorate(handler: Callable[..., Iterator[Shown]]) -> Callable[..., Iterator[Shown]]:
        @functools.wraps(handler)
        def report(*values: Any) -> Iterator[Shown]:
            try:
                yield from handler(*values)
            except (ValueError, OSError) as error:
                yield {status: line(message(error), failed=True)}

        return report

    return decorate


def _scratch() -> TemporaryDirectory[str]:
    """A folder for the files of one click; what is shown of them is copied by gradio."""
    return TemporaryDirectory(prefix=SCRATCH, ignore_cleanup_errors=True)


def _setting(named: str = "") -> list[Any]:
    """Components of one setting: sampler, steps, guidance."""
    with gr.Row():
        sampler = gr.Dropdown([OF_MODEL, *SAMPLERS], value=OF_MODEL, label=f"Sampler{named}", min_width=200)
        steps = gr.Slider(1, MAX_STEPS, value=18, step=1, label=f"Steps{named}", min_width=200)
        guidance = gr.Slider(0, 10, value=1, step=0.1, label=f"Guidance{named}", min_width=200)
    return [sampler, steps, guidance]


def _picture(label: str, **given: Any) -> gr.Image:
    shown_as: Any = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"], "type": "pil"}
    shown_as |= {"elem_classes": "picture"}
    return gr.Image(label=label, **shown_as | given)


def _label_box(name: str) -> gr.Dropdown:
    return gr.Dropdown([], value="", label="Label", allow_custom_value=True, min_width=200, elem_id=name)


def _upload(label: str = "Picture") -> gr.File:
    return gr.File(label=label, file_count="single", type="filepath", height=120)


def _uploaded(file: str | None) -> Path:
    """The uploaded file. Raises ValueError if there is none."""
    if not file:
        raise ValueError("no picture is given; upload one first")
    return Path(file)


def _settings(sampler: str, steps: float, guidance: float, **given: Any) -> Settings:
    return Settings("" if sampler == OF_MODEL else sampler, int(steps), guidance, **given)


def _draw_tab(model: gr.Dropdown) -> gr.Dropdown:
    """Draws images, by one setting or two. Returns the component of the label."""
    with gr.Row():
        label = _label_box("label")
        num = gr.Slider(1, MAX_IMAGES, value=30, step=1, label="Images", min_width=200)
        seed = gr.Number(0, precision=0, minimum=0, label="Seed", min_width=200, elem_id="seed")
    first = _setting()
    with gr.Accordion("Compare with a second setting", open=False):
        compare = gr.Checkbox(False, label="Draw the same images by both", elem_id="compare")
        second = _setting(" 2")
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", scale=3, min_width=120, elem_id="draw-button")
        stop = gr.Button("Stop", min_width=80, elem_id="draw-stop")
    status = gr.HTML(elem_classes="status", elem_id="draw-status")
    with gr.Row():
        pictures = [_picture("Images", elem_id="drawn"), _picture("Second setting", visible=False, elem_id="drawn-2")]
    with gr.Row():
        files = [
            gr.DownloadButton("Download all files (ZIP)", visible=False, elem_id="zip"),
            gr.DownloadButton("Download the second setting (ZIP)", visible=False, elem_id="zip-2"),
        ]

    @_reporting(status)
    def handle(
        folder: str, chosen: str | None, num: float, seed: float, compare: bool, *values: Any
    ) -> Iterator[Shown]:
        yield {status: line("opening the model"), **dict.fromkeys(pictures), **_hide(files)}
        yield {pictures[1]: gr.Image(visible=compare)}
        given: Any = {"label": chosen or "", "num": int(num), "seed": int(seed or 0)}
        settings = [_settings(*values[k : k + 3], **given) for k in ((0, 3) if compare else (0,))]
        with _scratch() as scratch:
            folders = [Path(scratch, name) for name in ("images", "images-2")[: len(settings)]]
            drawn = [watch(options(folder, out, one)) for out, one in zip(folders, settings, strict=True)]
            yield from _watched(drawn, pictures, status)
            yield {button: _offer(archive(out)) for button, out in zip(files, folders, strict=False)}

    components = [model, label, num, seed, compare, *first, *second]
    outputs = [status, *pictures, *files]
    running = draw.click(handle, components, outputs, show_progress="hidden", **QUEUED)
    _stops(stop, running, status)
    return label


def _stops(stop: gr.Button, running: Any, status: gr.HTML) -> None:
    """Makes a button end what is running, at its next pause."""
    stop.click(None, cancels=[running]).then(lambda: line("stopped"), None, [status], show_progress="hidden")


def _watched(drawn: Sequence[Iterator[Frame]], pictures: Sequence[gr.Image], status: gr.HTML) -> Iterator[Shown]:
    """Shows drawings while they are made, all at once: not each step, but always the last one."""
    begun, shown_at = time.monotonic(), 0.0
    frames: list[Frame] = []
    for row in zip_longest(*drawn):
        frames = [new or old for new, old in zip_longest(row, frames)]
        if time.monotonic() > shown_at + FRAME_SECONDS:
            shown_at = time.monotonic()
            yield _shown(frames, pictures) | {status: line(_steps(frames))}
    yield _shown(frames, pictures) | {status: line(f"finished in {time.monotonic() - begun:.1f} s")}


def _shown(frames: Sequence[Frame], pictures: Sequence[gr.Image]) -> Shown:
    return {picture: frame.picture for picture, frame in zip(pictures, frames, strict=False)}


def _steps(frames: Sequence[Frame]) -> str:
    return ", ".join(f"step {frame.step} of {frame.steps}" for frame in frames)


def _offer(file: Path) -> Any:
    return gr.DownloadButton(value=str(file), visible=True)


def _hide(files: Sequence[gr.DownloadButton]) -> Shown:
    return {file: gr.DownloadButton(value=None, visible=False) for file in files}


def _inpaint_tab(model: gr.Dropdown) -> gr.Dropdown:
    """Draws the painted part of a picture anew. Returns the component of the label."""
    with gr.Row():
        with gr.Column(min_width=280):
            upload = _upload()
            start = gr.Button("Draw one to start from", elem_id="inpaint-start")
        with gr.Column(min_width=280):
            chosen = _label_box("inpaint-label")
            num = gr.Slider(1, 16, value=8, step=1, label="Images", min_width=200)
            seed = gr.Number(0, precision=0, minimum=0, label="Seed", min_width=200)
    setting = _setting()
    editor = gr.ImageEditor(
        label="Paint over it",
        type="pil",
        image_mode="RGBA",
        format="png",
        sources=[],
        transforms=[],
        layers=False,
        brush=gr.Brush(default_size=48, colors=["#d81b60"], color_mode="fixed"),
        buttons=[],
        elem_id="editor",
    )
    with gr.Row():
        draw = gr.Button("Inpaint", variant="primary", scale=3, min_width=120, elem_id="inpaint-button")
        stop = gr.Button("Stop", min_width=80)
    status = gr.HTML(elem_classes="status", elem_id="inpaint-status")
    picture = _picture("Images", elem_id="inpainted")
    file = gr.DownloadButton("Download all files (ZIP)", visible=False, elem_id="inpaint-zip")
    values = gr.State(None)

    @_reporting(status)
    def open_upload(folder: str, given: str | None) -> Iterator[Shown]:
        fitted, about = fit(open_drawing(folder), _uploaded(given))
        yield {values: fitted, editor: _canvas(fitted), status: line(about)}

    @_reporting(status)
    def draw_one(folder: str, label: str | None, seed: float, *one: Any) -> Iterator[Shown]:
        open_drawing(folder)
        with _scratch() as scratch:
            out = Path(scratch, "images")
            for _ in watch(options(folder, out, _settings(*one, label=label or "", num=1, seed=int(seed or 0)))):
                pass
            fitted = read_image(next((out / "images").iterdir()))
        yield {values: fitted, editor: _canvas(fitted), status: line("paint a part of it, then inpaint")}

    @_reporting(status)
    def handle(folder: str, given: Any, canvas: Any, label: str, num: float, seed: float, *one: Any) -> Iterator[Shown]:
        yield {status: line("opening the model"), picture: None, **_hide([file])}
        if given is None:
            raise ValueError("there is no picture to paint on; upload one, or draw one to start from")
        model = open_drawing(folder)
        if given.shape != model.shape:
            raise ValueError(
                f"the picture has the shape {given.shape}, but the model's are {model.shape}; open it again"
            )
        mask = painted(canvas["layers"][0], model.shape[1:]) if canvas and canvas["layers"] else None
        if mask is None or not mask.any():
            raise ValueError("nothing is painted; paint the part of the picture that is drawn anew")
        with _scratch() as scratch:
            out, named = Path(scratch, "images"), write_inputs(Path(scratch), model, given, mask)
            settings = _settings(*one, label=label or "", num=int(num), seed=int(seed or 0))
            yield from _watched([watch(options(folder, out, settings, **named))], [picture], status)
            yield {file: _offer(archive(out))}

    opened = [values, editor, status]
    upload.upload(open_upload, [model, upload], opened, show_progress="hidden", **QUEUED)
    start.click(draw_one, [model, chosen, seed, *setting], opened, show_progress="hidden", **QUEUED)
    components = [model, values, editor, chosen, num, seed, *setting]
    running = draw.click(handle, components, [status, picture, file], show_progress="hidden", **QUEUED)
    _stops(stop, running, status)
    return chosen


def _canvas(values: Any) -> dict[str, Any]:
    return {"background": shown(values), "layers": [], "composite": None}


def _enlarge_tab(model: gr.Dropdown) -> None:
    """Enlarges an upload."""
    upload = _upload()
    steps = gr.Slider(1, MAX_STEPS, value=18, step=1, label="Steps of a diffusion model", elem_id="enlarge-steps")
    with gr.Row():
        enlarge = gr.Button("Enlarge", variant="primary", scale=3, min_width=120, elem_id="enlarge-button")
        stop = gr.Button("Stop", min_width=80)
    status = gr.HTML(elem_classes="status", elem_id="enlarge-status")
    with gr.Row():
        picture = _picture("Enlarged", type="filepath", elem_id="enlarged")
        grid = _picture("Small, bicubic, enlarged", type="filepath", elem_id="enlarged-grid")

    @_reporting(status)
    def handle(folder: str, given: str | None, count: int) -> Iterator[Shown]:
        yield {status: line("enlarging"), picture: None, grid: None}
        file, begun = _uploaded(given), time.monotonic()
        _, height, width = read_picture(file, Preprocessing()).shape
        if height * width > MAX_UPLOAD_PIXELS:
            raise ValueError(
                f"{file.name} has {height}×{width} px, but the page enlarges at most {MAX_UPLOAD_PIXELS:,} pixels; use "
                "sample.py --upscale"
            )
        with _scratch() as scratch:
            out, defaults = Path(scratch, "enlarged"), make_parser("").parse_args(["model"])
            flags, chosen = [f"--upscale={file}", f"--out={out}"], require_upscaler(folder)
            if not is_edsr(model_folder(chosen)):
                flags.append(f"--steps={count}")
            for share in upscaling(make_parser("").parse_args([*flags, "--", chosen]), vars(defaults)):
                yield {status: line(f"enlarging: {share:.0%}")}
            text = f"{file.name}, {height}×{width} px, enlarged in {time.monotonic() - begun:.1f} s"
            yield {status: line(text), picture: str(out / "images" / "000000.png"), grid: str(out / "grid.png")}

    running = enlarge.click(handle, [model, upload, steps], [status, picture, grid], show_progress="hidden", **QUEUED)
    _stops(stop, running, status)


def _classify_tab(model: gr.Dropdown) -> None:
    """Names the classes of an upload."""
    upload = _upload()
    classify = gr.Button("Classify", variant="primary", elem_id="classify-button")
    status = gr.HTML(elem_classes="status", elem_id="classify-status")
    with gr.Row():
        classes = gr.Label(label="Most likely classes", num_top_classes=5, elem_id="classes")
        picture = _picture("Picture, as the network takes it", elem_id="classified")

    @_reporting(status)
    def handle(folder: str, given: str | None) -> Iterator[Shown]:
        yield {status: line("classifying"), classes: None, picture: None}
        file, classifier = _uploaded(given), load_classifier(require_folder(folder))
        (ranked,) = classifier.rank([file])
        seen = shown(read_picture(file, classifier.preprocessing))
        yield {status: line(f"{ranked[0][0]}, {ranked[0][1]:.1%}"), classes: dict(ranked), picture: seen}

    classify.click(handle, [model, upload], [status, classes, picture], show_progress="hidden", **QUEUED)


def _follow_tab(model: gr.Dropdown) -> None:
    """Shows the folder of a run, again and again while it is in training."""
    with gr.Row():
        show = gr.Button("Show", variant="primary", elem_id="follow-button")
        again = gr.Checkbox(False, label=f"every {REFRESH_SECONDS} s", elem_id="follow-again")
    timer = gr.Timer(REFRESH_SECONDS, active=False)
    status = gr.HTML(elem_classes="status", elem_id="follow-status")
    with gr.Row():
        curves = {name: _picture(figure.axis, min_width=380) for name, figure in CURVES.items()}
    metrics = _picture("Evaluations", elem_id="metrics")
    figures = gr.HTML(elem_id="figures")
    with gr.Row():
        grids = [_picture("Drawn", visible=False, min_width=300) for _ in range(GRIDS)]

    @_reporting(status)
    def handle(folder: str) -> Iterator[Shown]:
        with _scratch() as scratch:
            found = follow(folder, Path(scratch))
        yield {
            status: line(found.about),
            **{curves[name]: _if_any(found.curves.get(name)) for name in curves},
            metrics: _if_any(found.metrics),
            figures: table(found.figures),
            **dict(
                zip(
                    grids,
                    [gr.Image(value=picture, label=text, visible=True) for picture, text in found.grids],
                    strict=False,
                )
            ),
        }

    outputs = [status, *curves.values(), metrics, figures, *grids]
    again.change(lambda on: gr.Timer(active=on), [again], [timer])
    for event in (show.click, timer.tick):
        event(handle, [model], outputs, show_progress="hidden", concurrency_limit=1, concurrency_id="follow")


def _if_any(picture: Any) -> gr.Image:
    return gr.Image(value=picture, visible=picture is not None)
