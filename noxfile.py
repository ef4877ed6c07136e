"""The project's commands, such as `nox -s tests` and `nox -s demo`. `nox --list` lists them all."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests", "lint", "types", "docs", "package", "examples", "lambda_package"]
nox.options.reuse_existing_virtualenvs = True
# Where uv is there, an environment takes seconds, not a minute and more.
nox.options.default_venv_backend = "uv|virtualenv"

PROJECT = nox.project.load_toml("pyproject.toml")
CURRENT = f"{sys.version_info.major}.{sys.version_info.minor}"


def works(version: str) -> bool:
    """Whether this Python starts. Version managers install commands that may not."""
    command = shutil.which(f"python{version}")
    return command is not None and subprocess.run([command, "-c", ""], capture_output=True, check=False).returncode == 0


SUPPORTED = nox.project.python_versions(PROJECT)
SUPPORTED_RUNTIMES = ["3.11", "3.12", "3.13", "3.14"]
"""Lambda's."""
SERVERS = ["16", "18"]
# The installed ones, so that the commands also work on a machine with only one Python.
PYTHONS = [version for version in SUPPORTED if version == CURRENT or works(version)] or [CURRENT]
MAIN = PYTHONS[-1]
"""Where all tests run, and the coverage is measured: from Python 3.14 on, that costs little."""


def group(name: str) -> list[str]:
    """The pinned requirements of a dependency group."""
    return list(nox.project.dependency_groups(PROJECT, name))


COVERAGE = Path(".nox", "coverage").resolve()


# A test that fails is tried again, and named: some bound times, and several run at once.
AGAIN = ("--reruns", "2", "-raR")
# More than there are cores: tests mostly wait for timeouts, servers and processes.
AT_ONCE = ("-n", "3", "--dist", "worksteal", *AGAIN)


def covered(session: nox.Session, *arguments: str) -> None:
    """Run pytest, and measure its coverage, child processes included, together with the other sessions'."""
    COVERAGE.mkdir(parents=True, exist_ok=True)
    environment = {"COVERAGE_FILE": str(COVERAGE / "data")}
    session.run("coverage", "run", "-m", "pytest", *AT_ONCE, *arguments, *session.posargs, env=environment)


ONCE = (
    "test_benchmarks.py", "test_demo.py", "test_docs.py", "test_fleet_benchmark.py", "test_house.py",
    "test_mutation.py", "test_public_api.py", "cli", "docs", "fleet", "testing",
)  # fmt: skip
"""Tests that run on the main Python alone: no version changes what they show, or `examples` shows it on each."""


PLAIN = ("rds", "test_breaker.py", "test_failures.py", "test_judgement.py", "test_settings.py", "test_url.py")
"""Tests of code in which no version of asyncio plays a part: on a Python between two others they show nothing more."""


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests that need only Python packages, with PostgreSQL 16 or 18; all of them on the main Python."""
    session.install("-e", ".[aws,cli,redis,demo,otel,sqlalchemy]", *group("tests"))
    if session.python == MAIN:
        shutil.rmtree(COVERAGE, ignore_errors=True)
        covered(session, "-m", "not debian", "--server=18", *(["--thorough"] if os.environ.get("CI") else []))
    else:
        server = SERVERS[PYTHONS.index(str(session.python)) % len(SERVERS)]
        between = session.python not in {PYTHONS[0], PYTHONS[-1]}
        others = [f"--ignore=tests/{name}" for name in (*ONCE, *(PLAIN if between else ()))]
        these = "not debian" if session.python == PYTHONS[0] else "not debian and not slow"
        session.run("python", "-m", "pytest", *AT_ONCE, "-m", these, f"--server={server}", *others, *session.posargs)


@nox.session(python=MAIN)
def services(session: nox.Session) -> None:
    """The tests that need Debian's pgbouncer, redis-server and postgresql. After `tests`, every branch is covered."""
    session.install("-e", ".[aws,cli,redis,demo,otel,sqlalchemy]", *group("tests"))
    covered(session, "-m", "debian")
    if not session.posargs:
        environment = {"COVERAGE_FILE": str(COVERAGE / "data")}
        session.run("coverage", "combine", "--quiet", "--keep", env=environment)
        session.run("coverage", "report", env=environment)


QUICK = ("test_acquire_release.py", "test_errors.py", "test_pool.py", "test_release.py", "cognito/test_load_claims.py")
DRIVEN = (
    "test_acquire_release.py", "test_aiobreaker_traps.py", "test_connector.py", "test_otel.py", "test_pool.py",
    "test_public_api.py", "test_settings.py", "test_sqlalchemy.py", "test_url.py", "cognito/test_load_claims.py",
    "cognito/test_provision_user.py", "cli/test_doctor.py", "rds/test_secrets_manager.py",
)  # fmt: skip
"""Tests of what depends on the versions of other packages."""


def lowest_allowed() -> list[str]:
    """Each dependency, those of the extras included, in the lowest version that pyproject.toml allows."""
    project = PROJECT["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    floors = []
    for requirement in map(Requirement, {*project["dependencies"], *extras}):
        (floor,) = (bound.version for bound in requirement.specifier if bound.operator == ">=")
        floors.append(f"{requirement.name}{sorted(requirement.extras) or ''}=={floor}".replace("'", ""))
    return floors


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Quick tests with the lowest version of each dependency that is allowed. All other sessions use the newest."""
    floors = lowest_allowed()
    taken = {Requirement(floor).name for floor in floors}
    # What has to be of the same age as OpenTelemetry's API.
    same_age = ["opentelemetry-sdk==1.30.0", "opentelemetry-instrumentation-asyncpg==0.51b0"]
    taken |= {Requirement(one).name for one in same_age}
    others = [one for one in group("tests") if Requirement(one).name not in taken]
    session.install("-e", ".", *floors, *same_age, *others)
    chosen = [f"tests/{name}" for name in DRIVEN]
    # It compares texts with those of the newest conventions.
    newest = "tests/test_otel.py::test_names_units_and_kinds_are_those_of_the_conventions"
    options = ("-m", "not debian and not slow", "--server=16", "--deselect", newest)
    session.run("python", "-m", "pytest", *AT_ONCE, *options, *chosen, *session.posargs)


@nox.session(python=MAIN)
def mutation(session: nox.Session) -> None:
    """Change the package in one place at a time, and see whether a test notices. All of it takes hours.

    `-- --module breaker` takes minutes; `-- --sample 20 --seed 7` draws from each module."""
    session.install("-e", ".[aws,redis,otel,sqlalchemy]", *group("tests"))
    session.run("python", "-m", "tests.mutation", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """A burst of sign-ups against a real PostgreSQL, for three fleets, with a table and a picture at the end."""
    session.install(".[demo]")
    # Ctrl-C also reaches the demo, which takes a moment to stop its servers and its fleet.
    session.run("python", "-m", "examples.burst", *session.posargs, interrupt_timeout=10, terminate_timeout=5)


@nox.session(python=MAIN)
def bench(session: nox.Session) -> None:
    """Measure the speed against the alternatives. `-- --quick` only checks that the benchmark runs."""
    session.install("-e", ".[sqlalchemy]", *group("bench"))
    session.run("python", "-m", "tests.benchmarks", *session.posargs)


@nox.session(python=MAIN)
def fleet(session: nox.Session) -> None:
    """48 real environments through an outage, beside the simulation; `-- --quick` only to see that it runs.

    With a redis-server on the machine, also with a fleet store."""
    session.install("-e", ".[redis]", *group("bench"))
    session.run("python", "-m", "tests.benchmarks.fleet", *session.posargs)


@nox.session(python=MAIN)
def soak(session: nox.Session) -> None:
    """Random faults by seed, for about 30 s; `-- --seeds 100 --seconds 20` takes its time.

    `-- --all`, as in CI, fails where Debian's pgbouncer or postgresql is missing."""
    session.install("-e", ".", *group("tests"))
    session.run("python", "-m", "tests.soak", *session.posargs)


SESSION_LOOP = ("-o", "asyncio_default_test_loop_scope=session", "-o", "asyncio_default_fixture_loop_scope=session")


SERVICES: tuple[str, ...] = ("fastapi_service", "sqlalchemy_service", "worker")


@nox.session(python=PYTHONS)
def examples(session: nox.Session) -> None:
    """The examples' own tests against the built wheel: the services, and the test suite in each way to run it."""
    ways = [(), SESSION_LOOP, ("-n", "2"), ("-c", "anyio.ini"), ("-c", "anyio.ini", "-n", "2")]
    services = SERVICES
    if session.python != MAIN:
        ways, services = [("-c", "anyio.ini", "-n", "2")], ()
    wheel = built_wheel(session)
    session.install(f"{wheel}[testing,sqlalchemy]", *group("examples"))
    copies = Path(session.create_tmp()).resolve() / "examples"
    shutil.rmtree(copies, ignore_errors=True)
    shutil.copytree("examples", copies, ignore=shutil.ignore_patterns("__pycache__"))
    for service in services:
        with session.chdir(copies / service):
            session.run("python", "-m", "pytest", *AGAIN, *session.posargs)
    with session.chdir(copies / "pytest_suite"):
        for options in ways:
            session.run("python", "-m", "pytest", *AGAIN, *options, *session.posargs)


def built_wheel(session: nox.Session) -> Path:
    """The wheel, built from this tree, in a folder of its own."""
    dist = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.install("pip")  # uv leaves it out
    session.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(dist), ".")
    (wheel,) = dist.glob("*.whl")
    return wheel


LAMBDA = Path("examples/lambda_cognito")


@nox.session(python=PYTHONS)
def lambda_package(session: nox.Session) -> None:
    """Lambda packages from the built wheel, for both architectures; this machine's is served under awslambdaric."""
    wheel = built_wheel(session)
    session.install(f"{wheel}[testing]")
    build = Path(session.create_tmp()).resolve() / "packages"
    here = {"aarch64": "arm64"}.get(platform.machine(), "x86_64")
    # Each Python compiles its own packages; what is not installed is built once, without that.
    others = [version for version in SUPPORTED_RUNTIMES if version not in PYTHONS]
    for version in [str(session.python), *(others if session.python == MAIN else [])]:
        for architecture in ("x86_64", "arm64") if session.python == MAIN else (here,):
            output = build / f"{version}-{architecture}"
            session.run(
                "python", str(LAMBDA / "package.py"), "--python", version, "--architecture", architecture,
                "--requirement", str(wheel), "--output", str(output), str(LAMBDA / "app.py"),
            )  # fmt: skip
            if version == session.python and architecture == here:
                session.run("python", "-m", "tests.support.packaged", f"{output}.zip")


@nox.session
def lint(session: nox.Session) -> None:
    """ruff's rules and format, the CloudFormation template, and whether pre-commit's file has the same pins."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("cfn-lint", str(LAMBDA / "template.yaml"))
    session.run("pre-commit", "validate-config", ".pre-commit-config.yaml")
    pins = set(re.findall(r"[\w-]+==[\w.]+", Path(".pre-commit-config.yaml").read_text(encoding="utf-8")))
    if strangers := pins - set(group("lint")):
        session.error(f".pre-commit-config.yaml pins what the group lint does not: {', '.join(sorted(strangers))}")


@nox.session(python=MAIN)
def cdk(session: nox.Session) -> None:
    """The example's CDK app: it is synthesised and linted, and is the same stack as template.yaml. Needs Node.js."""
    if shutil.which("node") is None:
        session.error("The AWS CDK runs in Node.js, and there is no `node` on the PATH: install Node.js 22 or later")
    session.install(*group("cdk"))
    folder = Path(session.create_tmp()).resolve()
    package = shutil.make_archive(str(folder / "build"), "zip", LAMBDA)
    # CloudFormation's rules, as the CDK has them, take several seconds: once is enough.
    strict = {"CDK_CONTEXT_JSON": json.dumps({"@aws-cdk/core:validateAgainstDefaultRules": True})}
    with_package = {"CDK_CONTEXT_JSON": json.dumps({"package": package}), "CDK_VALIDATION": "false"}
    templates: list[str] = []
    for name, environment in ("by_parameters", strict), ("with_package", with_package):
        output = folder / name
        shutil.rmtree(output, ignore_errors=True)
        session.run("python", str(LAMBDA / "cdk_app.py"), env=environment | {"CDK_OUTDIR": str(output)})
        templates.append(str(output / "SignIn.template.json"))
        session.run("python", "-m", "tests.support.cdk", templates[-1])
    session.run("cfn-lint", *templates)


@nox.session
def types(session: nox.Session) -> None:
    """mypy and pyright in strict mode, over the package and over the code in README.md and docs/."""
    session.install("-e", ".[aws,cli,redis,demo,otel,sqlalchemy]", *group("types"))
    session.run("mypy")
    session.run("pyright", "--pythonpath", str(Path(session.bin) / "python"))
    session.run("python", "tests/typing/docs.py")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, in build/site. A dead link, or a public name that is not documented, is an error."""
    session.install(*group("docs"))
    # --quiet would hide the warnings from strict mode. The variable turns off an announcement of the theme's.
    environment = {"NO_MKDOCS_2_WARNING": "1"}
    session.run("mkdocs", "build", "--config-file", "docs/site/mkdocs.yml", env=environment)
    session.log("Look at it: python3 -m http.server --directory build/site")


@nox.session
def package(session: nox.Session) -> None:
    """The built wheel, with the source gone: it can be imported, is typed, contains nothing else, and passes tests."""
    wheel = built_wheel(session)
    session.install(str(wheel), *group("tests"))
    session.install("--force-reinstall", "--no-deps", str(wheel))
    with session.chdir(wheel.parent):
        session.run(
            "python", "-c",
            "import asyncdb_guard, importlib.metadata as m, importlib.resources as r\n"
            "assert r.files(asyncdb_guard).joinpath('py.typed').is_file()\n"
            "files = [p for p in m.files('asyncdb-guard') if not p.parts[0].endswith('.dist-info')]\n"
            "assert [p.name for p in files if p.parts[0] == '..'] == ['asyncdb-guard'], files\n"  # the command
            "files = [p for p in files if p.parts[0] != '..']\n"
            "names = {p.parts[0] for p in files} - {'__pycache__'}\n"
            "assert names == {'asyncdb_guard', 'asyncdb_guard_pytest.py'}, files\n"
            "assert '](docs/' not in str(m.metadata('asyncdb-guard')), 'its description has links to files'\n"
            "assert all(p.suffix in ('.py', '.pyc') or p.name == 'py.typed' for p in files), files\n",
        )  # fmt: skip
    folder = Path(session.create_tmp()).resolve() / "tests_alone"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree("tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy("pyproject.toml", folder)
    with session.chdir(folder):
        quick = [f"tests/{name}" for name in QUICK]
        session.run("python", "-m", "pytest", *AT_ONCE, "-m", "not debian and not slow", "--server=16", *quick)


@nox.session
def release(session: nox.Session) -> None:
    """Build what a release consists of, in dist/, and check it. It publishes nothing: it prints what to do next."""
    session.install(*group("release"))
    dist = Path("dist")
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist))
    files = sorted(dist.iterdir())
    session.run("twine", "check", "--strict", *map(str, files))
    version = files[0].name.split("-")[1]
    if f"## [{version}]" not in Path("CHANGELOG.md").read_text(encoding="utf-8"):
        session.error(f"CHANGELOG.md has no section for {version}. Add it, with its date and its upgrade notes.")
    session.log(
        f"dist/ holds {version}. Next: run .ci/run on a clean clone; tag the commit v{version}; twine upload dist/*;"
        " then begin a new section Unreleased in CHANGELOG.md."
    )
