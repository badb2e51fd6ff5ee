"""Nothing of ours unpickles, evaluates or starts a shell: a scan of the syntax trees of all our files but the tests."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
EVALUATES = {"eval", "exec", "compile", "__import__"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn"}
FILES = [
    file
    for file in sorted(ROOT.rglob("*.py"))
    if not {"tests", "build", "runs"} & set(file.relative_to(ROOT).parts)
    and not any(part.startswith(".") for part in file.relative_to(ROOT).parts)
]


def dangers(tree: ast.AST) -> Iterator[str]:
    """Each import of a pickle, and each call that runs what it is given."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            roots = {name.name.partition(".")[0] for name in node.names} if not module else {module.partition(".")[0]}
            yield from roots & PICKLES
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in EVALUATES | SHELLS or given.get("shell", "False") != "False":
                yield name
            if given.get("allow_pickle", "False") != "False":
                yield name
            if name == "torch.load" and given.get("weights_only") != "True":
                yield name
            if name.startswith("yaml.") and name.endswith("load"):
                loader = given.get("Loader") or (ast.unparse(node.args[1]) if len(node.args) > 1 else "")
                if name != "yaml.safe_load" and loader != "_Loader":  # a SafeLoader, see test_arrows.py
                    yield name


def test_no_file_of_ours_runs_what_it_reads() -> None:
    assert len(FILES) > 200
    found = {str(file.relative_to(ROOT)): list(dangers(ast.parse(file.read_text()))) for file in FILES}
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import torch, dill",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "os.system(command)",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=flag)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
    ],
)
def test_each_way_is_found(code: str) -> None:
    assert len(list(dangers(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "torch.load(path, weights_only=True)",
        "re.compile(text)",
        "yaml.safe_load(text)",
        "np.load(path)",
    ],
)
def test_what_is_safe_is_not_found(code: str) -> None:
    assert list(dangers(ast.parse(code))) == []
