"""The layout: one import name, links that resolve, imports that point one way."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("envs", "enforcer", "agents", "training", "configs")
HEAVY = ("numba", "torch", "gymnasium", "stable_baselines3", "pydantic", "matplotlib", "scipy")

# A layer may import itself and those before it.  configs is beside them: everybody but the
# contract and the enforcer may use it, and it uses the contract alone.
LAYERS = ("envs.contract", "enforcer", "envs.model", "envs.lab", "envs", "agents", "training")
WORLDS = ("envs.model", "envs.lab")  # beside each other: neither knows of the other
NO_CONFIG = ("envs.contract", "enforcer")


def layer_of(module: str) -> str | None:
    """The layer a ``memcg_gym.*`` module belongs to."""
    name = module.removeprefix("memcg_gym.")
    if name.split(".")[0] == "configs":
        return "configs"
    for layer in sorted(LAYERS, key=len, reverse=True):
        if name == layer or name.startswith(layer + "."):
            return layer
    return None


def modules() -> list[Path]:
    """Every module that ships."""
    return sorted(p for f in FOLDERS for p in (ROOT / f).rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """The ``memcg_gym`` modules a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name for name in found if name.startswith("memcg_gym.")}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_link_under_src_resolves_to_the_root_folder(folder):
    link = ROOT / "src" / "memcg_gym" / folder

    assert link.is_symlink()
    assert not os.path.isabs(os.readlink(link))
    assert link.resolve() == ROOT / folder


def test_packages_are_the_folders_that_hold_modules():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    have = {"memcg_gym"} | {
        "memcg_gym." + ".".join(p.parent.relative_to(ROOT).parts) for p in modules()
    }

    assert set(config["packages"]) == have
    assert set(config["package-dir"]) == have


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = layer_of("memcg_gym." + ".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name in imports_of(path):
        other = layer_of(name)
        if other is None or other == own:
            continue
        if own == "configs":
            assert other == "envs.contract", f"configs imports {name}"
        elif other == "configs":
            assert own not in NO_CONFIG, f"{own} imports {name}"
        else:
            assert LAYERS.index(other) < LAYERS.index(own), f"{own} imports {name}"
            assert not {own, other} <= set(WORLDS), f"{own} imports {name}"


@pytest.mark.parametrize(
    "module", ["memcg_gym", "memcg_gym.envs.contract.schema", "memcg_gym.training.cli"]
)
def test_importing_is_cheap(module):
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)

    assert out.stdout.strip() == "[]", out.stderr


def test_the_version_is_a_changelog_heading():
    sys.path.insert(0, str(ROOT / "src"))
    import memcg_gym

    assert f"## {memcg_gym.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    "code",
    [
        "import gymnasium, memcg_gym; gymnasium.spec('memcg_gym/Host-v0')",
        "import gymnasium; gymnasium.make('memcg_gym.envs.registration:memcg_gym/Host-v0')",
    ],
)
def test_the_environment_id_is_found_in_a_fresh_process(code):
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=env)
