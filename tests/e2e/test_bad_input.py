"""Every wrong input is answered in one go: what, where, how to mend it; and nothing was made."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.conftest import Cloud

GOOD = """\
functions:
  aws:
  - lambda:
      name: cow
      container:
        image: host
"""


@dataclass(frozen=True)
class Wrong:
    """A wrong input: files, the command typed in their folder, and the whole answer."""

    what: str
    typed: str
    answer: str
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    config: str | None = None
    code: int = 2


def lambda_lines(*lines: str) -> str:
    """An FDL of one function on image `host`; these lines of its `lambda` start with line 7."""
    return GOOD + "".join(f"      {line}\n" for line in lines)


WRONG = [
    # The command line
    Wrong(
        "no command",
        "",
        """\
error: no command given
   help: `scar --help` lists the commands
""",
    ),
    Wrong(
        "an unknown command",
        "inti -f cow.yaml",
        """\
error: unknown command `inti`
   help: did you mean `init`?
""",
    ),
    Wrong(
        "a call of nothing",
        "invoke -p {}",
        """\
error: `scar invoke` needs to know the function
   help: add `-n NAME` or `-f FILE`
""",
    ),
    Wrong(
        "an unknown flag",
        "init -f cow.yaml --memroy 512",
        """\
error: unknown flag `--memroy`
   help: did you mean `--memory`?
""",
    ),
    Wrong(
        "an argument too many",
        "ls cow",
        """\
error: unexpected argument `cow`
   help: `scar ls --help` shows the flags
""",
    ),
    Wrong(
        "a flag without its value",
        "init -f cow.yaml -m",
        """\
error: argument -m/--memory: expected one argument
   help: `scar init --help` shows the flags and an example
""",
    ),
    Wrong(
        "init of nothing",
        "init -n cow",
        """\
error: one of the arguments -f/--conf-file -i/--image -if/--image-file is required
   help: `scar init --help` shows the flags and an example
""",
    ),
    Wrong(
        "an image and an FDL file",
        "init -f cow.yaml -i host",
        """\
error: argument -i/--image: not allowed with argument -f/--conf-file
   help: `scar init --help` shows the flags and an example
""",
    ),
    Wrong(
        "run of nothing",
        "--local run",
        """\
error: `scar run` needs to know the function
   help: add `-n NAME` or `-f FILE`
""",
    ),
    Wrong(
        "rm of nothing",
        "--local rm",
        """\
error: `scar rm` needs to know the function
   help: add `-n NAME` or `-f FILE`, or `-a` for all of yours
""",
    ),
    Wrong(
        "rm of all and one",
        "--local rm -a -n cow",
        """\
error: `-a` means all functions, `-n` some
   help: keep one of them
""",
    ),
    Wrong(
        "put without a path",
        "--local put -b video/input",
        """\
error: the following arguments are required: -p/--path
   help: `scar put --help` shows the flags and an example
""",
    ),
    Wrong(
        "an output that nobody waits for",
        "--local run -n cow -a -o out.txt",
        """\
error: `-o` needs the output, `-a` does not wait for it
   help: keep one of them
""",
    ),
    Wrong(
        "an unknown action of the local cloud",
        "local strat",
        """\
error: unknown command `strat`
   help: did you mean `start`?
""",
    ),
    Wrong(
        "a reset that nobody confirmed",
        "local reset",
        """\
error: this would delete everything in the local cloud: `{home}/local`
   help: add `--yes` to do it
""",
    ),
    Wrong(
        "variables without `=` or name",
        "--local init -i host -n cow -e FOO -le =1",
        """\
error: `FOO` has no `=`
  --> --environment
   help: write it as VAR=value

error: `=1` has no name
  --> --lambda-environment
   help: write it as VAR=value
""",
    ),
    Wrong(
        "a flag out of bounds",
        "--local init -i host -n cow -m 64 -t soon",
        """\
error: memory must be 128 to 10240 MB, got `64`
  --> --memory  functions.aws[0].lambda.memory

error: timeout must be a whole number of seconds, got `soon`
  --> --timeout  functions.aws[0].lambda.timeout
""",
    ),
    Wrong(
        "a function without a name",
        "--local init -i host",
        """\
error: `name` is required
   help: add `--name NAME`
""",
    ),
    Wrong(
        "a wrong bucket on the command line",
        "--local ls -b s3://video",
        """\
error: bucket must be `bucket/prefix` without `s3://`
  --> --bucket
""",
    ),
    Wrong(
        "a wrong input bucket",
        "--local init -i host -n cow -ib Video/in",
        """\
error: path must name a bucket of lower-case letters, digits, `-` and single `.`, first and last a \
letter or digit, got `Video`
  --> --input-bucket  functions.aws[0].lambda.input[0].path
""",
    ),
    Wrong(
        "a call with parameters that are no object",
        "invoke -n cow -p 7",
        """\
error: `--parameters` is not a JSON object
   help: write it as '{"name": "value"}'
""",
    ),
    Wrong(
        "a run over a bucket, which is to come",
        "--local run -n cow -ib video/input",
        """\
error: `scar run --input-bucket` is not in this version of SCAR yet
   help: `scar put` an object into the input bucket: that triggers the function
""",
    ),
    Wrong(
        "a script of a run that is not there",
        "--local run -n cow -s nope.sh",
        """\
error: no file `nope.sh`
   help: looked for `{work}/nope.sh`
""",
    ),
    Wrong(
        "a file to put that is not there",
        "--local put -b video/input -p nope.avi",
        """\
error: no file or folder `nope.avi`
   help: give the path of an existing one
""",
    ),
    Wrong(
        "a file as the folder to get into",
        "--local get -b video/output -p cow.yaml",
        """\
error: `cow.yaml` is a file
   help: give a folder for the objects
""",
        {"cow.yaml": GOOD},
    ),
    Wrong(
        "an unknown target",
        "ls",
        """\
error: target must be `aws` or `local`, got `lcoal`
  --> SCAR_TARGET  scar.target
   help: did you mean `local`?
""",
        environment={"SCAR_TARGET": "lcoal"},
    ),
    # The file as such
    Wrong(
        "a missing file",
        "--local init -f nope.yaml",
        """\
error: no file `nope.yaml`
   help: give the path of an existing file
""",
    ),
    Wrong(
        "a folder as the file",
        "--local init -f .",
        """\
error: `.` is a folder, not an FDL file
   help: did you mean `cow.yaml`?
""",
        {"cow.yaml": GOOD},
    ),
    Wrong(
        "an empty file",
        "--local init -f cow.yaml",
        """\
error: the file is empty
  --> cow.yaml:1:1
   help: see `scar init --help`
""",
        {"cow.yaml": "# nothing yet\n"},
    ),
    Wrong(
        "a list at the top",
        "--local init -f cow.yaml",
        """\
error: expected keys at the top, got a list
  --> cow.yaml:1:1
   1 | - lambda
     | ^
   help: start with `functions:`
""",
        {"cow.yaml": "- lambda\n"},
    ),
    Wrong(
        "a file that is not UTF-8",
        "--local init -f cow.yaml",
        """\
error: not a text file in UTF-8: it holds the byte 0xe9
  --> cow.yaml:2:4
   help: save the file as UTF-8 text
""",
        {"cow.yaml": b"# a\n# a\xe9"},
    ),
    Wrong(
        "a binary file",
        "--local init -f cow.yaml",
        """\
error: not a text file: it holds the character U+0000
  --> cow.yaml:1:4
   help: give a YAML file in UTF-8
""",
        {"cow.yaml": b"ELF\0\0"},
    ),
    Wrong(
        "YAML that is none",
        "--local init -f cow.yaml",
        """\
error: not valid YAML: while parsing a flow sequence, did not find expected ',' or ']'
  --> cow.yaml:2:8
   2 |   aws: [a, b
     |        ^
   help: check the indentation, the `:` after each key and the quotes around here
""",
        {"cow.yaml": "functions:\n  aws: [a, b\n"},
    ),
    Wrong(
        "a tab",
        "--local init -f cow.yaml",
        """\
error: not valid YAML: while scanning for the next token, found character that cannot start any \
token
  --> cow.yaml:2:1
   2 |  aws: []
     | ^
   help: indent with spaces: YAML allows no tabs
""",
        {"cow.yaml": "functions:\n\taws: []\n"},
    ),
    Wrong(
        "a key written twice",
        "--local init -f cow.yaml",
        """\
error: `memory` is written twice
  --> cow.yaml:8:7  functions.aws[0].lambda.memory
   8 |       memory: 1024
     |       ^
   help: the first is in line 7; keep one
""",
        {"cow.yaml": lambda_lines("memory: 512", "memory: 1024")},
    ),
    Wrong(
        "aliases of aliases",
        "--local init -f cow.yaml",
        """\
error: the file expands to more than 100,000 values
  --> cow.yaml:5:1
   5 | e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]
     | ^
   help: write fewer aliases (`*name`) of aliases
""",
        {
            "cow.yaml": "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
            + "".join(
                f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n"
                for a, b in zip("abcdef", "bcdefg", strict=True)
            )
        },
    ),
    Wrong(
        "an alias that holds itself",
        "--local init -f cow.yaml",
        """\
error: nested more than 40 deep
  --> cow.yaml:1:12
   1 | functions: &f [*f]
     |            ^
   help: an alias must not hold itself
""",
        {"cow.yaml": "functions: &f [*f]\n"},
    ),
    Wrong(
        "brackets without end",
        "--local init -f cow.yaml",
        """\
error: nested more than 40 deep
  --> cow.yaml:1:41
   1 | {brackets}
     | {pad}^
""",
        {"cow.yaml": "[" * 100_000},
    ),
    Wrong(
        "a tag that makes objects",
        "--local init -f cow.yaml",
        """\
error: the tag `tag:yaml.org,2002:python/object/apply:os.system` is not allowed
  --> cow.yaml:7:20  functions.aws[0].lambda.description
   7 |       description: !!python/object/apply:os.system ls
     |                    ^
""",
        {"cow.yaml": lambda_lines("description: !!python/object/apply:os.system ls")},
    ),
    # The language
    Wrong(
        "no functions",
        "--local init -f cow.yaml",
        """\
error: `cow.yaml` describes no functions
   help: list them under `functions: {aws: …}`
""",
        {"cow.yaml": "functions:\n  aws: []\n"},
    ),
    Wrong(
        "several faults at once",
        "--local init -f cow.yaml",
        """\
error: unknown key `memroy`
  --> cow.yaml:7:7  functions.aws[0].lambda.memroy
   7 |       memroy: 512
     |       ^
   help: did you mean `memory`?

error: timeout must be 1 to 900 seconds, got 1200
  --> cow.yaml:8:16  functions.aws[0].lambda.timeout
   8 |       timeout: 1200
     |                ^

error: memory must be a whole number of MB, got `lots`
  --> cow.yaml:9:15  functions.aws[0].lambda.memory
   9 |       memory: lots
     |               ^

error: execution_mode must be `lambda`, `lambda-batch` or `batch`, got `bacth`
  --> cow.yaml:10:23  functions.aws[0].lambda.execution_mode
   10 |       execution_mode: bacth
      |                       ^
   help: did you mean `batch`?
""",
        {
            "cow.yaml": lambda_lines(
                "memroy: 512", "timeout: 1200", "memory: lots", "execution_mode: bacth"
            )
        },
    ),
    Wrong(
        "a key in the wrong mapping",
        "--local init -f cow.yaml",
        """\
error: unknown key `image`
  --> cow.yaml:5:7  functions.aws[0].lambda.image
   5 |       image: host
     |       ^
   help: `image` goes under `lambda.container`
""",
        {"cow.yaml": GOOD.replace("container:\n        image", "image")},
    ),
    Wrong(
        "the functions of an old version",
        "--local init -f cow.yaml",
        """\
error: unknown key `cow`
  --> cow.yaml:2:3  functions.cow
   2 |   cow: {image: x}
     |   ^
   help: functions stand in a list: `functions: {aws: [{lambda: {name: …}}]}`
""",
        {"cow.yaml": "functions:\n  cow: {image: x}\n"},
    ),
    Wrong(
        "a name that cannot be",
        "--local init -f cow.yaml",
        """\
error: name must be 1 to 64 letters, digits, `-` or `_`, got `my cow`
  --> cow.yaml:4:13  functions.aws[0].lambda.name
   4 |       name: my cow
     |             ^
""",
        {"cow.yaml": GOOD.replace("cow", "my cow")},
    ),
    Wrong(
        "a number for a text",
        "--local init -f cow.yaml",
        """\
error: name must be text, got 42
  --> cow.yaml:4:13  functions.aws[0].lambda.name
   4 |       name: 42
     |             ^
   help: put it in quotes: "42"
""",
        {"cow.yaml": GOOD.replace("cow", "42")},
    ),
    Wrong(
        "a text for a list",
        "--local init -f cow.yaml",
        """\
error: input must be a list, got `video/in`
  --> cow.yaml:7:14  functions.aws[0].lambda.input
   7 |       input: video/in
     |              ^
   help: write `- ` before each item, or `[a, b]`
""",
        {"cow.yaml": lambda_lines("input: video/in")},
    ),
    Wrong(
        "a bool for a number",
        "--local init -f cow.yaml",
        """\
error: timeout must be a whole number, got a yes-or-no value
  --> cow.yaml:7:16  functions.aws[0].lambda.timeout
   7 |       timeout: yes
     |                ^
""",
        {"cow.yaml": lambda_lines("timeout: yes")},
    ),
    Wrong(
        "keys that are to come",
        "--local init -f cow.yaml",
        """\
error: `vpc` is not in this version of SCAR yet
  --> cow.yaml:7:7  functions.aws[0].lambda.vpc
   7 |       vpc: {SubnetIds: [subnet-1]}
     |       ^
   help: remove it to deploy without

error: `multi_node_parallel` is not in this version of SCAR yet
  --> cow.yaml:9:7  functions.aws[0].batch.multi_node_parallel
   9 |       multi_node_parallel: {enabled: true, number_nodes: 2}
     |       ^
   help: remove it to deploy without
""",
        {
            "cow.yaml": lambda_lines("vpc: {SubnetIds: [subnet-1]}")
            + "    batch:\n      multi_node_parallel: {enabled: true, number_nodes: 2}\n"
        },
    ),
    Wrong(
        "no image",
        "--local init -f cow.yaml",
        """\
error: function `cow` has no image
  --> cow.yaml:3:5  functions.aws[0].lambda.container.image
   3 |   - lambda:
     |     ^
   help: add `container: {image: …}` to its `lambda`
""",
        {"cow.yaml": GOOD.split("      container")[0]},
    ),
    Wrong(
        "what AWS needs",
        "init -f cow.yaml",
        """\
error: function `cow` needs `iam.role` on AWS
  --> {home}/scar.cfg:15:15  functions.aws[0].iam.role
   15 |       "role": ""
      |               ^
   help: give the ARN of an execution role, or use the local cloud: `scar --local …`

error: image `host` is this machine's own file system, which AWS does not have
  --> cow.yaml:6:16  functions.aws[0].lambda.container.image
   6 |         image: host
     |                ^
   help: name an image of a registry, or use the local cloud: `scar --local …`
""",
        {"cow.yaml": GOOD},
    ),
    Wrong(
        "missing scripts, each in its place",
        "--local init -f sub/cow.yaml",
        """\
error: no file `cow.sh`
  --> sub/cow.yaml:7:20  functions.aws[0].lambda.init_script
   7 |       init_script: cow.sh
     |                    ^
   help: looked for `{work}/sub/cow.sh`

error: no file or folder `data`
  --> sub/cow.yaml:8:22  functions.aws[0].lambda.extra_payload
   8 |       extra_payload: data
     |                      ^
   help: looked in `{work}/sub`
""",
        {"sub/cow.yaml": lambda_lines("init_script: cow.sh", "extra_payload: data"), "cow.sh": ""},
    ),
    Wrong(
        "a folder as the script",
        "--local init -i host -n cow -s sub",
        """\
error: `{work}/sub` is a folder, not a file
  --> --init-script  functions.aws[0].lambda.init_script
""",
        {"sub/cow.yaml": GOOD},
    ),
    Wrong(
        "a function that triggers itself",
        "--local init -f cow.yaml",
        """\
error: function `cow` writes to `video/in/done`, which is under its own input: it would trigger \
itself without end
  --> cow.yaml:8:23  functions.aws[0].lambda.output[0].path
   8 |       output: [{path: video/in/done}]
     |                       ^
   help: write to a path that is not under the input
""",
        {"cow.yaml": lambda_lines("input: [{path: video/in}]", "output: [{path: video/in/done}]")},
    ),
    Wrong(
        "two functions of one name",
        "--local init -f cow.yaml",
        """\
error: two functions are named `cow`
  --> cow.yaml:8:13  functions.aws[1].lambda.name
   8 |       name: cow
     |             ^
   help: give each its own name
""",
        {"cow.yaml": GOOD + GOOD.partition("aws:\n")[2]},
    ),
    Wrong(
        "a provider that is to come, and one that cannot be",
        "--local init -f cow.yaml",
        """\
error: storage provider `minio.mine` cannot be an input: only buckets of S3 can trigger a function
  --> cow.yaml:7:34  functions.aws[0].lambda.input[0].storage_provider
   7 |       input: [{storage_provider: minio.mine, path: data/in}]
     |                                  ^
   help: use `s3`

error: storage provider `onedata` is not in this version of SCAR yet
  --> cow.yaml:8:35  functions.aws[0].lambda.output[0].storage_provider
   8 |       output: [{storage_provider: onedata, path: data/out}]
     |                                   ^
   help: use `s3`: the buckets of the account itself
""",
        {
            "cow.yaml": lambda_lines(
                "input: [{storage_provider: minio.mine, path: data/in}]",
                "output: [{storage_provider: onedata, path: data/out}]",
            )
        },
    ),
    Wrong(
        "a threshold as long as the timeout",
        "--local init -f cow.yaml -t 10",
        """\
error: timeout_threshold must be less than the timeout of 10 seconds, got 10
  --> cow.yaml:5:7  functions.aws[0].lambda.container.timeout_threshold
   5 |       container:
     |       ^
   help: it is the part of the timeout kept back for staging out
""",
        {"cow.yaml": GOOD},
    ),
    Wrong(
        "a function that the file does not have",
        "--local run -f cow.yaml -n sheep",
        """\
error: no function `sheep` in `cow.yaml`
   help: it has: cow
""",
        {"cow.yaml": GOOD},
    ),
    Wrong(
        "one of several functions, which?",
        "--local run -f cow.yaml",
        """\
error: `cow.yaml` describes 2 functions
   help: add `-n NAME`: cow, sheep
""",
        {"cow.yaml": GOOD + GOOD.partition("aws:\n")[2].replace("cow", "sheep")},
    ),
    # scar.cfg
    Wrong(
        "scar.cfg that is no JSON",
        "--local ls",
        """\
error: not valid JSON: expecting ',' delimiter
  --> {home}/scar.cfg:2:18
   2 | "aws": {"iam": 1 "x": 2}}
     |                  ^
   help: mend the file, or remove it: a new one with the defaults is written (scar.cfg)
""",
        config='{"scar": {},\n"aws": {"iam": 1 "x": 2}}',
    ),
    Wrong(
        "unknown keys in scar.cfg",
        "--local init -i host -n cow",
        """\
error: unknown key `asw`
  --> {home}/scar.cfg:1:2  asw
   1 | {"asw": {}, "aws": {"lambda": {"memroy": 1}}}
     |  ^
   help: did you mean `aws`?

error: unknown key `memroy`
  --> {home}/scar.cfg:1:32  functions.aws[0].lambda.memroy
   1 | {"asw": {}, "aws": {"lambda": {"memroy": 1}}}
     |                                ^
   help: did you mean `memory`?
""",
        config='{"asw": {}, "aws": {"lambda": {"memroy": 1}}}',
    ),
    Wrong(
        "a value out of bounds in scar.cfg, which the file does not repeat",
        "--local init -f cow.yaml",
        """\
error: memory must be 128 to 10240 MB, got 1
  --> {home}/scar.cfg:1:31  functions.aws[0].lambda.memory
   1 | {"aws": {"lambda": {"memory": 1}}}
     |                               ^
""",
        {"cow.yaml": GOOD},
        config='{"aws": {"lambda": {"memory": 1}}}',
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.what)
def test_a_wrong_input_is_told_exactly_and_makes_nothing(wrong: Wrong, tmp_path: Path):
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work):
        folder.mkdir()
    if wrong.config is not None:
        (home / "scar.cfg").write_text(wrong.config)
    for name, content in wrong.files.items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = everything(work)

    done = scar(wrong.typed.split(), home, work, wrong.environment)

    answer = wrong.answer
    for word, text in {"home": str(home), "work": str(work)}.items():
        answer = answer.replace(f"{{{word}}}", text)
    answer = answer.replace("{brackets}", "[" * 160).replace("{pad}", " " * 40)
    assert done.stderr == answer
    assert done.returncode == wrong.code
    assert done.stdout == ""
    assert everything(work) == before
    assert everything(home) <= {"scar.cfg"}


def test_with_json_the_error_is_an_object_too(tmp_path: Path):
    (tmp_path / "cow.yaml").write_text(lambda_lines("timeout: 1200"))
    done = scar(["--local", "init", "-f", "cow.yaml", "--json"], tmp_path / "home", tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout) == {
        "error": {
            "type": "FdlError",
            "message": "timeout must be 1 to 900 seconds, got 1200",
            "hint": "",
            "exitCode": 2,
            "diagnostics": [
                {
                    "summary": "timeout must be 1 to 900 seconds, got 1200",
                    "path": "functions.aws[0].lambda.timeout",
                    "origin": "cow.yaml",
                    "line": 7,
                    "column": 16,
                    "hint": "",
                }
            ],
        }
    }
    assert "cow.yaml:7:16" in done.stderr


def test_a_home_that_cannot_be_written_is_a_warning_where_nothing_is_missing(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "cow.yaml").write_text(lambda_lines("timeout: 1200"))
    # A file where a folder must be cannot be written below by root either.
    home = tmp_path / "file" / "home"
    done = scar(["--local", "init", "-f", "cow.yaml"], home, tmp_path)
    assert done.returncode == 2
    assert f"cannot read `{home}/scar.cfg`: not a directory" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_home_is_a_warning_and_the_defaults_go_on(tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    (tmp_path / "cow.yaml").write_text(lambda_lines("timeout: 1200"))
    done = scar(["--local", "init", "-f", "cow.yaml"], home, tmp_path)
    assert done.stderr.startswith(
        f"warning: cannot write `{home}/scar.cfg`: permission denied; going on with the defaults\n"
        "   help: set SCAR_CONFIG_FOLDER to a folder that can be written\n"
    )
    assert "timeout must be 1 to 900 seconds" in done.stderr


def test_a_home_that_can_not_be_made_is_a_warning_and_the_defaults_go_on(tmp_path: Path):
    (tmp_path / "cow.yaml").write_text(lambda_lines("timeout: 1200"))
    done = scar(["--local", "init", "-f", "cow.yaml"], Path("/proc/nowhere"), tmp_path)
    assert done.stderr.startswith(
        "warning: cannot write `/proc/nowhere/scar.cfg`: no such file or directory; "
        "going on with the defaults\n"
    )
    assert "timeout must be 1 to 900 seconds" in done.stderr


def test_a_folder_that_the_local_cloud_cannot_write_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    done = scar(["--local", "ls"], tmp_path / "home", tmp_path, {"SCAR_LOCAL_DIR": "/proc/nowhere"})
    assert done.stderr == (
        "error: cannot write to the local cloud's folder `/proc/nowhere`: no such file or "
        "directory\n   help: set SCAR_LOCAL_DIR to a folder that can be written\n"
    )
    assert done.returncode == 2


def test_an_occupied_port_is_told_with_the_reason(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = scar(["--local", "ls"], tmp_path / "home", tmp_path, {"SCAR_LOCAL_PORT": str(port)})
    assert done.returncode == 3
    assert done.stderr.startswith("error: the local cloud ended with exit code 2\n")
    assert str(port) in done.stderr
    assert not (tmp_path / "home" / "local" / "cloud.json").exists()


def test_what_is_not_in_the_cloud_is_told_and_makes_nothing(cloud: Cloud, tmp_path: Path):
    absent = "error: function `nope` does not exist in us-east-1\n"
    help_ls = "   help: `scar --local ls` shows what is deployed\n"
    for command in ("run", "log", "rm"):
        done = cloud.run(command, "-n", "nope")
        assert (done.code, done.out, done.err) == (2, "", absent + help_ls)
    done = cloud.run("get", "-b", "no-such-bucket/x", "-p", tmp_path / "new")
    assert done.code == 2
    assert "bucket `no-such-bucket` does not exist" in done.err
    assert not (tmp_path / "new").exists()
    assert cloud.ok("ls", "--json") == '{"Functions": []}\n'
    assert cloud.client("s3").list_buckets()["Buckets"] == []


def test_a_cloud_of_another_folder_is_not_taken_for_ours(cloud: Cloud, tmp_path: Path):
    cloud.ok("local", "start")
    other = tmp_path / "other"
    (other / "local").mkdir(parents=True)
    told = (cloud.home / "local" / "cloud.json").read_text()
    (other / "local" / "cloud.json").write_text(told)
    done = scar(["local", "status"], other, tmp_path)
    assert done.stdout == f"the local cloud is not running (data: {other}/local)\n"


def test_two_commands_at_once_start_one_cloud(cloud: Cloud):
    commands = [cloud.start("ls", "--json") for _ in range(3)]
    for command in commands:
        out, err = command.communicate(timeout=60)
        assert (command.returncode, out, err) == (0, '{"Functions": []}\n', "")


def test_reset_forgets_the_data_and_keeps_what_is_not_ours(cloud: Cloud, tmp_path: Path):
    (tmp_path / "x").write_text("x")
    cloud.ok("put", "-b", "data-1", "-p", tmp_path / "x")
    cloud.ok("local", "reset", "--yes")
    assert everything(cloud.home) <= {"scar.cfg", "local/lock"}
    assert cloud.run("ls", "-b", "data-1").code == 2

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    done = scar(["local", "reset", "--yes"], tmp_path, tmp_path, {"SCAR_LOCAL_DIR": str(mine)})
    assert done.returncode == 2
    assert "is not the data folder of a local cloud" in done.stderr
    assert (mine / "thesis.txt").exists()


def scar(
    typed: list[str], home: Path, work: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command in folder `work`, apart from the caller's own settings."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("SCAR_", "AWS_"))}
    return subprocess.run(
        [sys.executable, "-m", "scar", *typed],
        cwd=work,
        env={**plain, "SCAR_CONFIG_FOLDER": str(home), **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
