from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from memcg_gym import __version__
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.training import cli

ROOT = Path(__file__).parents[2]
HEAVY = (
    "gymnasium",
    "matplotlib",
    "numba",
    "numpy",
    "pydantic",
    "scipy",
    "stable_baselines3",
    "torch",
)


def verb_module(run: object) -> ModuleType:
    module = ModuleType("verb")
    module.add_arguments = lambda parser: parser.add_argument("--n", type=int, default=1)  # type: ignore[attr-defined]
    module.run = run  # type: ignore[attr-defined]
    return module


@pytest.fixture
def with_verb(monkeypatch: pytest.MonkeyPatch) -> object:
    def install(run: object) -> None:
        monkeypatch.setattr(cli, "load_verb", lambda verb: verb_module(run))

    return install


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for verb, text in cli.VERBS.items():
        assert verb in out and text in out


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom memcg_gym.training.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(str(loaded) if loaded else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT / "src", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"memcg-gym {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["tarin"], ["--nosuch"], ["show", "--nosuch"]])
def test_wrong_usage_exits_2(argv: list[str], with_verb, capsys) -> None:  # type: ignore[no-untyped-def]
    with_verb(lambda args: 0)
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage: memcg-gym" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 1])
def test_a_verb_s_status_is_the_program_s(status: int, with_verb) -> None:  # type: ignore[no-untyped-def]
    with_verb(lambda args: status + 10 * args.n)
    assert cli.main(["show", "--n", "3"]) == status + 30


def test_our_errors_are_one_line_on_stderr(with_verb, capsys) -> None:  # type: ignore[no-untyped-def]
    def run(args: object) -> int:
        raise ConfigError("x.toml: n must be int, got 4.5")

    with_verb(run)
    assert cli.main(["train"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "memcg-gym: error: x.toml: n must be int, got 4.5\n"
    assert captured.out == ""


@pytest.mark.parametrize(("module", "extra"), [("torch", "train"), ("cryptography.hazmat", "host")])
def test_a_missing_extra_is_named(module: str, extra: str, with_verb, capsys) -> None:  # type: ignore[no-untyped-def]
    def run(args: object) -> int:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    with_verb(run)
    assert cli.main(["train"]) == 2
    assert f"pip install 'memcg-gym[{extra}]'" in capsys.readouterr().err


def test_an_import_error_of_our_own_is_not_hidden(with_verb) -> None:  # type: ignore[no-untyped-def]
    def run(args: object) -> int:
        raise ModuleNotFoundError("No module named 'memcg_gym.nosuch'", name="memcg_gym.nosuch")

    with_verb(run)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["train"])


def test_an_interrupt_exits_130(with_verb) -> None:  # type: ignore[no-untyped-def]
    def run(args: object) -> int:
        raise KeyboardInterrupt

    with_verb(run)
    assert cli.main(["train"]) == 130


def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    script = (
        "import sys\nfrom memcg_gym.training import cli\n"
        "from types import SimpleNamespace\n"
        "def run(args):\n"
        "    for _ in range(100000):\n        print('line')\n    return 0\n"
        "cli.load_verb = lambda verb: SimpleNamespace(add_arguments=lambda p: None, run=run)\n"
        "sys.exit(cli.main(['list']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT / "src",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 1


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_a_verb_s_help_stands_once(verb: str) -> None:
    if importlib.util.find_spec(f"memcg_gym.training.{verb}") is None:
        pytest.fail(f"the verb {verb} has no module memcg_gym.training.{verb}")
    assert cli.VERBS[verb] == cli.load_verb(verb).HELP


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "memcg_gym.training", "--version"],
        cwd=ROOT / "src",
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"memcg-gym {__version__}\n"
