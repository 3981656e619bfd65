"""The environment of the user's script: a new map for every run. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from scar_supervisor import contract
from scar_supervisor.contract import FunctionConfig

LONGEST_STRING_BYTES = 128 * 1024
"""execve takes no longer string, its end included (Linux, MAX_ARG_STRLEN)."""

OURS = frozenset(
    (
        contract.EVENT_VARIABLE,
        contract.ARRAY_VARIABLE,
        contract.FUNCTION_DIR_VARIABLE,
        contract.MNP_SECRET_VARIABLE,
        "SCAR_STOP_GRACE_S",
        "AWS_LAMBDA_RUNTIME_API",
        "_HANDLER",
    )
)
"""Between the platform and the supervisor: not the script's."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
# What a stranger's query parameter must not set, for it would run something else or elsewhere.
_RISKY_NAMES_TEXT = """
    PATH HOME SHELL USER LOGNAME PWD OLDPWD TMPDIR IFS ENV BASH_ENV SHELLOPTS BASHOPTS PS4
    PROMPT_COMMAND CDPATH GLOBIGNORE GLIBC_TUNABLES GCONV_PATH LOCPATH NLSPATH HOSTALIASES
    NODE_OPTIONS JAVA_TOOL_OPTIONS CLASSPATH R_PROFILE R_ENVIRON EDITOR PAGER HTTP_PROXY
    HTTPS_PROXY ALL_PROXY NO_PROXY CURL_HOME WGETRC OPENSSL_CONF
"""
_RISKY_NAMES = frozenset(_RISKY_NAMES_TEXT.split())
_RISKY_PREFIXES_TEXT = """
    LD_ DYLD_ PYTHON PERL RUBY BASH_FUNC_ AWS_ SCAR_ GIT_ SSH_ JAVA_ JDK_ _JAVA NODE_ LUA_ PHP
"""
_RISKY_PREFIXES = tuple(_RISKY_PREFIXES_TEXT.split())


def for_script(
    base: Mapping[str, str],
    config: FunctionConfig,
    in_job: bool,
    given: Mapping[str, str],
    from_outside: Mapping[str, str],
) -> dict[str, str]:
    """All variables of the script.

    Weakest first: the process's own (`base`, without OURS), the image's, `batch`'s in a job, the
    container's, then `given`, which describes this run. `from_outside` only adds names.
    """
    found = {name: value for name, value in base.items() if name not in OURS}
    found |= config.image.environment
    if in_job:
        found |= config.batch_environment
    found |= config.environment
    found |= given
    for name, value in from_outside.items():
        if name not in found and may_come_from_outside(name):
            found[name] = value
    return {name: value for name, value in found.items() if _fits(name, value)}


def may_come_from_outside(name: str) -> bool:
    """Whether a query parameter may become a variable of that name."""
    upper = name.upper()
    return (
        _NAME.fullmatch(name) is not None
        and upper not in _RISKY_NAMES
        and not upper.startswith(_RISKY_PREFIXES)
    )


def fits(name: str, value: str) -> bool:
    """Whether execve takes `name=value` as one string."""
    try:
        return len(f"{name}={value}".encode(errors="surrogateescape")) < LONGEST_STRING_BYTES
    except UnicodeEncodeError:
        return False


def _fits(name: str, value: str) -> bool:
    return bool(name) and "=" not in name and "\0" not in name + value and fits(name, value)
