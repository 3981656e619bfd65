"""Flags become options and settings."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scar.cli.arguments import Options, parse
from scar.errors import FdlError, UserError


def typed(line: str) -> Options:
    return parse(shlex.split(line))


def test_every_flag_of_init_is_a_setting_that_names_its_flag():
    options = typed(
        "init -i img -n cow -s a.sh -d text -e A=b=c -e D= -le E=f -m 1 -t 2 -tt 0 -ll debug -l x "
        "-ib b/in -ob b/out -em batch -r arn -sv 1 -rt image -bm 3 -bc 4 -g -ph -ep dir -db bkt "
        "-api web -pf me --local"
    )
    assert options.command == "init"
    assert options.settings == {
        "scar": {"target": "local"},
        "aws": {
            "lambda": {
                "name": "cow",
                "boto_profile": "me",
                "init_script": str(Path.cwd() / "a.sh"),
                "description": "text",
                "container": {
                    "image": "img",
                    "timeout_threshold": "0",
                    "environment": {"Variables": {"A": "b=c", "D": ""}},
                },
                "environment": {"Variables": {"E": "f"}},
                "memory": "1",
                "timeout": "2",
                "log_level": "debug",
                "layers": ["x"],
                "input": [{"storage_provider": "s3", "path": "b/in"}],
                "output": [{"storage_provider": "s3", "path": "b/out"}],
                "execution_mode": "batch",
                "supervisor": {"version": "1"},
                "runtime": "image",
                "preheat": True,
                "extra_payload": str(Path.cwd() / "dir"),
                "deployment": {"bucket": "bkt"},
            },
            "iam": {"role": "arn"},
            "batch": {"memory": "3", "vcpus": "4", "enable_gpu": True},
            "api_gateway": {"name": "web"},
        },
    }
    assert options.flags["aws", "lambda", "memory"] == "--memory"
    assert options.flags["aws", "lambda", "input", 0, "path"] == "--input-bucket"
    assert options.flags["scar", "target"] == "--local"


def test_long_names_mean_the_same_and_may_be_cut_short():
    assert typed("init --image x --mem 5").settings == typed("init -i x -m 5").settings


@pytest.mark.parametrize("line", ["--local ls", "ls --local", "--local ls --local"])
def test_the_target_and_the_profile_may_stand_before_and_after_the_command(line: str):
    assert typed(line).settings == {"scar": {"target": "local"}}
    assert typed("-pf me ls").settings == typed("ls --profile me").settings


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("run -n cow", []),
        ("run -n cow df -h", ["df", "-h"]),
        ("run -n cow ls -n x --json", ["ls", "-n", "x", "--json"]),
        ("run -n cow -- --version", ["--version"]),
        ("run -n cow -- -- x", ["--", "x"]),
        ("run -n cow echo 'a b' ''", ["echo", "a b", ""]),
    ],
)
def test_the_rest_of_a_run_is_the_containers_command(line: str, arguments: list[str]):
    options = typed(line)
    assert options.values.arguments == arguments
    assert options.values.json is False


def test_every_variable_without_equals_is_told():
    with pytest.raises(FdlError) as caught:
        typed("init -i x -e FOO -e A=b -le BAR")
    assert [(d.summary, str(d.place)) for d in caught.value.diagnostics] == [
        ("`FOO` has no `=`", "--environment"),
        ("`BAR` has no `=`", "--lambda-environment"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("int", "unknown command `int`"),
        ("init -i a -if b", "not allowed with"),
        ("log", "`scar log` needs to know the function"),
        ("local", "required: action"),
        ("invoke", "`scar invoke` needs to know the function"),
        ("invoke -n a -db f -jd {}", "both say what to send"),
        ("invoke -n a -a -o f", "`-a` does not wait"),
        ("invoke -n a -p 7", "`--parameters` is not a JSON object"),
        ("invoke -n a -jd {", "`--json-data` is not JSON: expecting"),
        ("completion bish", "unknown shell `bish`"),
        ("validate", "one of the arguments -f/--conf-file -i/--image"),
        ("get -b x", "required: -p/--path"),
    ],
)
def test_what_makes_no_command_is_a_user_error(line: str, message: str):
    with pytest.raises(UserError, match=message.replace("`", ".")):
        typed(line)


COMMANDS = [
    *("init", "validate", "run", "invoke", "put", "get", "ls", "log", "ps", "wait", "stop"),
    *("explain", "rm", "schema", "completion", "local"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        typed(f"{command} --help")
    assert caught.value.code == 0
    told = capsys.readouterr().out
    example = told.partition("example:\n")[2]
    assert f"scar {command}" in example.replace("--local ", "")


def test_verbose_is_json_and_more():
    values = typed("run -n cow -v").values
    assert (values.verbose, values.json) == (True, True)


def test_a_shell_completes_commands_and_flags():
    def completed(line: str) -> list[str]:
        read, write = os.pipe()
        environ = {
            **os.environ,
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_IFS": "\n",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
        }
        code = f"import os; os.dup2({write}, 8); from scar.__main__ import main; main()"
        subprocess.run(
            [sys.executable, "-c", code],
            env=environ,
            pass_fds=(write,),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        os.close(write)
        with os.fdopen(read) as told:
            return told.read().split()

    assert completed("scar va") == ["validate"]
    assert "--execution-mode" in completed("scar init --exec")
    assert completed("scar init -i x -em lambda-") == ["lambda-batch"]


def test_help_and_version_load_nothing_heavy():
    code = (
        "import sys\nfrom scar.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'pydantic', 'boto3', 'botocore', 'rich', 'yaml', 'urllib3'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "invoke a function" in done.stdout
