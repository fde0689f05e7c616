"""The workflows run what is there, on the versions that the metadata names."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = {
    file.stem: yaml.safe_load(file.read_text()) for file in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
}
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def steps(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", ())]


def matrix(name: str, job: str) -> dict:
    return WORKFLOWS[name]["jobs"][job]["strategy"]["matrix"]


def test_tests_and_the_wheel_run_on_every_python_of_the_metadata():
    versions = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert len(versions) == 3
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert matrix("tests", "versions")["python"] == matrix("wheel", "install")["python"] == versions


def test_the_oldest_transformers_is_the_lower_bound_and_the_newest_the_upper():
    (requirement,) = (line for line in PROJECT["dependencies"] if line.startswith("transformers"))
    lower, upper = re.fullmatch(r"transformers>=([\d.]+),<([\d.]+)", requirement).groups()
    rows = {row["transformers"]: row["requirement"] for row in matrix("tests", "versions")["include"]}
    assert rows == {"oldest": f"transformers=={lower}.*", "newest": f"transformers<{upper}"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_target_and_script_of_a_workflow_exists(name):
    commands = "\n".join(step["run"] for step in steps(WORKFLOWS[name]) if "run" in step)
    assert set(re.findall(r"\bmake ([\w-]+)", commands)) <= {*TARGETS}
    assert all((ROOT / script).is_file() for script in re.findall(r"\bscripts/\w+\.py", commands))


def test_the_wheel_is_checked_beside_every_script_that_the_check_imports():
    (folder,) = (step["with"]["sparse-checkout"] for step in steps(WORKFLOWS["wheel"]) if "sparse" in str(step))
    source = (ROOT / "scripts" / "check_wheel.py").read_text()
    (script,) = re.findall(r"^from (help_pages) import", source, re.MULTILINE)
    assert (ROOT / folder / f"{script}.py").is_file()


def test_a_release_is_published_without_a_token_after_the_wheel_was_checked():
    publish = WORKFLOWS["release"]["jobs"]["publish"]
    assert publish["needs"] == ["wheel", "vllm"]
    assert publish["permissions"] == {"id-token": "write"}
    assert "secrets." not in str(WORKFLOWS["release"])
