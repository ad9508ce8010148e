from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from sqlr1_jax import config
from sqlr1_jax.errors import Sqlr1Error
from sqlr1_jax.train.interrupt import Interrupted

ROOT = Path(__file__).parents[2]


@pytest.fixture
def jobset() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())
    return loaded


@pytest.fixture
def job(jobset: dict[str, Any]) -> dict[str, Any]:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    spec: dict[str, Any] = replicated["template"]["spec"]
    return spec


def test_errors_that_have_to_be_mended_end_the_jobset_and_all_others_restart_it(
    jobset: dict[str, Any], job: dict[str, Any]
) -> None:
    (rule,) = job["podFailurePolicy"]["rules"]
    statuses = rule["onExitCodes"]["values"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "In"
    assert Sqlr1Error.exit_status in statuses and 2 in statuses and Interrupted.exit_status not in statuses
    policy = jobset["spec"]["failurePolicy"]
    assert policy["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    assert policy["maxRestarts"] > 0 and job["backoffLimit"] == 0


def test_hosts_and_chips_make_the_slice(job: dict[str, Any]) -> None:
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    shape = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == math.prod(map(int, shape.split("x"))) // chips
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy needs it
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]


def test_the_commands_settings_exist(job: dict[str, Any]) -> None:
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"][:4] == ["python", "-m", "sqlr1_jax.main", "--distributed"]
    for word in container["command"][4:]:
        name, _, value = word.partition("=")
        if name.startswith("--config."):
            config.check_path(name.removeprefix("--config."))
        else:
            assert name in ("--config", "--workdir") and value, shlex.quote(word)
