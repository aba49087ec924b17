"""What the device side must never need."""

import subprocess
import sys
from pathlib import Path

import runtime

ROOT = Path(runtime.__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "runtime").rglob("*.py")
    if "example" not in path.parts  # programs of their own, which open the engine at once
)

BLOCK = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {"numpy", "runtime"}:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_with_only_numpy():
    assert "runtime.bench" in MODULES
    run(BLOCK + "".join(f"import {module}\n" for module in MODULES))


def test_help_loads_nothing_heavy():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['runtime', '--help']\n"
        "try:\n    runpy.run_module('runtime', run_name='__main__')\n"
        "except SystemExit as error:\n    assert error.code == 0\n"
        "print('LOADED', *{name.partition('.')[0] for name in sys.modules})\n"
    )
    loaded = set(run(code).split("LOADED")[1].split())
    heavy = "numpy torch pydantic onnxruntime onnx click yaml rich compress export"
    assert not loaded & set(heavy.split())


def test_the_engine_is_loaded_only_to_run_a_model():
    code = "import sys\n" + "".join(f"import {module}\n" for module in MODULES)
    assert run(code + "print('onnxruntime' in sys.modules, 'torch' in sys.modules)").split() == [
        "False",
        "False",
    ]


def test_inspect_needs_not_even_numpy(bundle_folder):
    block = BLOCK.replace('{"numpy", "runtime"}', '{"runtime"}')
    out = run(block + f"from runtime.__main__ import main\nassert main(['inspect', {str(bundle_folder)!r}]) == 0")
    assert "tiny" in out
