# SPDX-License-Identifier: Apache-2.0
"""Which CI job a process belongs to, by the variables that the CI system itself sets."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class _System:
    """A CI system: `mark` is a variable that it always sets; `parts` are the words of the job's name, in order."""

    name: str
    mark: bytes
    parts: tuple[tuple[str, bytes], ...]


# Forgejo and Gitea set GitHub's variables too, so they come first. From each system's list of predefined variables.
_SYSTEMS = (
    _System("forgejo", b"FORGEJO_ACTIONS", (
        ("repository", b"GITHUB_REPOSITORY"), ("run", b"GITHUB_RUN_ID"), ("job", b"GITHUB_JOB"),
    )),
    _System("gitea", b"GITEA_ACTIONS", (
        ("repository", b"GITHUB_REPOSITORY"), ("run", b"GITHUB_RUN_ID"), ("job", b"GITHUB_JOB"),
    )),
    _System("github", b"GITHUB_RUN_ID", (
        ("repository", b"GITHUB_REPOSITORY"), ("run", b"GITHUB_RUN_ID"), ("attempt", b"GITHUB_RUN_ATTEMPT"),
        ("job", b"GITHUB_JOB"),
    )),
    _System("gitlab", b"GITLAB_CI", (
        ("project", b"CI_PROJECT_PATH"), ("pipeline", b"CI_PIPELINE_ID"), ("job", b"CI_JOB_ID"), ("name", b"CI_JOB_NAME"),
    )),
    _System("buildkite", b"BUILDKITE_JOB_ID", (
        ("pipeline", b"BUILDKITE_PIPELINE_SLUG"), ("build", b"BUILDKITE_BUILD_NUMBER"), ("job", b"BUILDKITE_JOB_ID"),
    )),
    _System("circleci", b"CIRCLECI", (
        ("project", b"CIRCLE_PROJECT_REPONAME"), ("build", b"CIRCLE_BUILD_NUM"), ("job", b"CIRCLE_JOB"),
    )),
    _System("azure", b"TF_BUILD", (
        ("pipeline", b"BUILD_DEFINITIONNAME"), ("build", b"BUILD_BUILDID"), ("job", b"AGENT_JOBNAME"),
    )),
    _System("bitbucket", b"BITBUCKET_BUILD_NUMBER", (
        ("repository", b"BITBUCKET_REPO_FULL_NAME"), ("build", b"BITBUCKET_BUILD_NUMBER"),
    )),
    _System("teamcity", b"TEAMCITY_VERSION", (
        ("project", b"TEAMCITY_PROJECT_NAME"), ("build", b"BUILD_NUMBER"), ("name", b"TEAMCITY_BUILDCONF_NAME"),
    )),
    _System("drone", b"DRONE_BUILD_NUMBER", (
        ("repository", b"DRONE_REPO"), ("build", b"DRONE_BUILD_NUMBER"), ("name", b"DRONE_STAGE_NAME"),
    )),
    _System("jenkins", b"BUILD_TAG", (("tag", b"BUILD_TAG"), ("node", b"NODE_NAME"))),
)
_WANTED = frozenset(variable for system in _SYSTEMS for _, variable in system.parts) | {system.mark for system in _SYSTEMS}
_VALUE_CAP = 200


def parse_ci_job(environment: bytes) -> str:
    """The CI job that an environment (as in /proc/PID/environ) names, or ''.

    For people and for grouping: "github repository=o/r run=7 job=test". Values are the job's own words: raw.
    """
    variables: dict[bytes, bytes] = {}
    for entry in environment.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals and name in _WANTED:
            variables.setdefault(name, value)  # getenv(3) takes the first as well
    for system in _SYSTEMS:
        if variables.get(system.mark):
            words = [system.name]
            words += [f"{label}={_text(variables[name])}" for label, name in system.parts if variables.get(name)]
            return " ".join(words)
    return ""


def _text(value: bytes) -> str:
    return value[:_VALUE_CAP].decode("utf-8", "surrogateescape")
