"""Show that a wheel works outside the checkout, also when it is built on a machine without symlinks.

The tree is copied to a temporary folder, where each symlink becomes what git writes with core.symlinks=false: a text file that holds the
target. From that copy come a wheel and an sdist, which must hold the same as those of a copy with links. The wheel goes into an environment
of its own, which sees the third-party packages of the environment that runs this script (so that torch is not installed again) but not its
editable noetherflow. There the package is used; then the linkless copy is installed there as editable, and used once more.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")

# Runs inside the throw-away environment, in an empty folder.
SMOKE = """
import importlib, pathlib, pkgutil, sys
import noetherflow as nf

home = pathlib.Path(nf.__file__).parent
assert home.is_relative_to(sys.prefix), f"noetherflow came from {home}, not from the wheel"
assert "torch" not in sys.modules and "sympy" not in sys.modules, "import noetherflow is not lazy"
assert (home / "py.typed").is_file()
names = [m.name for m in pkgutil.walk_packages(nf.__path__, "noetherflow.") if m.name != "noetherflow.__main__"]
for name in names:
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).is_relative_to(home), f"{name} came from {module.__file__}"
for folder in ("symbolic", "numeric", "bridge"):
    assert (home / folder).is_dir() and not (home / folder).is_symlink(), folder
for name in nf.__all__:
    getattr(nf, name)
assert len(nf.data.fashion_mnist_subset()) == 4000
inputs, _ = next(nf.data.fashion_mnist_subset(train=False).batches(size=2, seed=0, steps=1, size_px=32))
assert nf.models.build("vgg16_bn", width=0.125)(inputs).shape == (2, 10)
from noetherflow.sources import cite
assert cite("tanaka2021noether")
print(f"{len(names)} modules import from the wheel")
"""

# Here pkgutil sees nothing below noetherflow: the folders are reached through setuptools' import hook alone.
EDITABLE_SMOKE = """
import sys, pathlib
import noetherflow.bridge, noetherflow.numeric.data, noetherflow.symbolic

tree = pathlib.Path(sys.argv[1])
assert pathlib.Path(noetherflow.numeric.__file__) == tree / "numeric" / "__init__.py", noetherflow.numeric.__file__
assert (tree / "noetherflow" / "numeric").is_file(), "the copy has links after all"
assert len(noetherflow.numeric.data.fashion_mnist_subset(train=False)) == 1000
"""


def run(*command: str | Path, cwd: Path, quiet: bool = False) -> None:
    """Run a command that must succeed, without the checkout on any path."""
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=quiet, text=True, check=False)
    if done.returncode:
        shown = " ".join(str(part) for part in command if "\n" not in str(part))
        sys.exit(f"{done.stdout or ''}{done.stderr or ''}\nThis failed with exit status {done.returncode}: {shown}")


def copy_without_links(target: Path) -> None:
    """Copy the tree; a symlink becomes a text file with its target."""
    shutil.copytree(ROOT, target, symlinks=True, ignore=LEFT_OUT)
    for link in [path for path in target.rglob("*") if path.is_symlink()]:
        aim = os.readlink(link)
        link.unlink()
        link.write_text(aim)


def check_contents(wheel: Path, sdist: Path) -> None:
    """Each folder's modules are in the wheel once, under one name; the sdist also brings the tests."""
    shipped = zipfile.ZipFile(wheel).namelist()
    modules = {
        f"noetherflow/{path.relative_to(ROOT)}" for folder in ("symbolic", "numeric", "bridge") for path in (ROOT / folder).glob("*.py")
    }
    modules |= {f"noetherflow/{path.name}" for path in (ROOT / "noetherflow").glob("*.py")}
    found = {name for name in shipped if name.endswith(".py")}
    assert found == modules, f"missing from the wheel: {sorted(modules - found)}; not expected in it: {sorted(found - modules)}"
    for name in ("py.typed", "references.bib", "numeric/_data/fashion_mnist.npz", "numeric/_data/fashion_mnist.LICENSE.txt"):
        assert f"noetherflow/{name}" in shipped, f"{name} is not in the wheel"
    with tarfile.open(sdist) as archive:
        inside = [name.split("/", 1)[-1] for name in archive.getnames()]
        assert not any(member.issym() for member in archive.getmembers()), "the sdist holds links"
    for name in ("tests/test_layers.py", "numeric/_data/fashion_mnist.npz", "noetherflow/references.bib", "LICENSE"):
        assert name in inside, f"{name} is not in the sdist"


def make_environment(folder: Path, borrow: bool) -> Path:
    """Make an environment, which may borrow third-party packages from this one; return its interpreter."""
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    if borrow:
        here = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        # A folder named in a .pth file is searched, but its own .pth files are not run: the editable install there stays unseen.
        (here / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def build(tree: Path, builder: Path, target: Path) -> tuple[Path, Path]:
    """Build a wheel and an sdist with the interpreter `builder`, which has setuptools and nothing else."""
    target.mkdir()
    # The hooks overwrite sys.argv.
    hooks = "import sys, setuptools.build_meta as b; target = sys.argv[1]; b.build_sdist(target); b.build_wheel(target)"
    run(builder, "-W", "ignore", "-c", hooks, target, cwd=tree, quiet=True)
    return next(target.glob("*.whl")), next(target.glob("*.tar.gz"))


def main() -> None:
    """Build with links and without, look inside, install, use."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name).resolve()
        (work / "empty").mkdir()
        shutil.copytree(ROOT, work / "linked", symlinks=True, ignore=LEFT_OUT)
        copy_without_links(work / "linkless")
        builder = make_environment(work / "builder", borrow=False)
        run(builder, "-m", "pip", "install", "--quiet", "setuptools>=80", cwd=work)
        check_contents(*build(work / "linked", builder, work / "linked-dist"))
        wheel, sdist = build(work / "linkless", builder, work / "linkless-dist")
        check_contents(wheel, sdist)
        python = make_environment(work / "environment", borrow=True)
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=work / "empty")
        run(python, "-c", SMOKE, cwd=work / "empty")
        run(python, "-m", "noetherflow", "--help", cwd=work / "empty", quiet=True)
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", "-e", work / "linkless", cwd=work / "empty")
        run(python, "-c", EDITABLE_SMOKE, work / "linkless", cwd=work / "empty")
    print("The wheel works outside the checkout, and so does an editable install of a checkout without symlinks.")


if __name__ == "__main__":
    main()
