"""Every wrong input is answered in one go: what, where, how to mend it; and nothing was made."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scar.__main__ import main
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


def batch_lines(*lines: str) -> str:
    """The same, in mode `batch` (line 7); these lines of its `batch` start with line 9."""
    below = "".join(f"      {line}\n" for line in lines)
    return lambda_lines("execution_mode: batch") + "    batch:\n" + below


BOTH = GOOD + GOOD.partition("aws:\n")[2].replace("cow", "sheep")
"""A second function, `sheep`, from line 7 on."""

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
   help: a job may take longer: `execution_mode: batch`

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
error: unknown key `subnets`
  --> cow.yaml:7:7  functions.aws[0].lambda.subnets
   7 |       subnets: [subnet-1]
     |       ^
   help: `subnets` goes under `batch.compute_resources`
""",
        {"cow.yaml": lambda_lines("subnets: [subnet-1]")},
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
        "providers that are the account itself, and that are to come",
        "--local init -f cow.yaml",
        """\
error: storage provider `s3` is the function's own account, which needs no keys
  --> cow.yaml:7:34  functions.aws[0].lambda.input[0].storage_provider
   7 |       input: [{storage_provider: s3.default, path: data/in}]
     |                                  ^
   help: give `storage_providers.s3.default` another id than `default`, and use that here

error: this version of SCAR cannot stage with storage provider `onedata.mine` yet
  --> cow.yaml:8:35  functions.aws[0].lambda.output[0].storage_provider
   8 |       output: [{storage_provider: onedata.mine, path: data/out}]
     |                                   ^
   help: the kinds are s3, minio, webdav
""",
        {
            "cow.yaml": lambda_lines(
                "input: [{storage_provider: s3.default, path: data/in}]",
                "output: [{storage_provider: onedata.mine, path: data/out}]",
            )
            + "storage_providers:\n"
            "  s3: {default: {access_key: a, secret_key: b}}\n"
            "  onedata: {mine: {oneprovider_host: h, token: t, space: x}}\n"
        },
    ),
    Wrong(
        "a provider whose address holds a password, or is none; a name that no secret can have",
        "--local validate -f cow.yaml",
        """\
error: endpoint must be an address such as `https://minio.example.org`, without a name and password
  --> cow.yaml:9:22  storage_providers.minio.mine.endpoint

error: endpoint must be an address such as `https://minio.example.org`, without a name and password
  --> cow.yaml:10:24  storage_providers.minio.theirs.endpoint

error: our own must be named with at most 64 letters, digits and `_.@+=-`
  --> cow.yaml:11:5  storage_providers.minio.our own
""",
        {
            "cow.yaml": GOOD + "storage_providers:\n  minio:\n"
            "    mine: {endpoint: 'https://me:t0ps3cret@x', access_key: a, secret_key: t0ps3cret}\n"
            "    theirs: {endpoint: ftp://minio, access_key: a, secret_key: t0ps3cret}\n"
            "    our own: {access_key: a, secret_key: t0ps3cret}\n"
        },
    ),
    Wrong(
        "a WebDAV server as an input",
        "--local validate -f cow.yaml",
        """\
error: storage provider `webdav.mine` cannot be an input: nothing tells of its new files
  --> cow.yaml:7:34  functions.aws[0].lambda.input[0].storage_provider
   7 |       input: [{storage_provider: webdav.mine, path: My Files}]
     |                                  ^
   help: use `s3`, or `minio` with events
""",
        {
            "cow.yaml": lambda_lines(
                "input: [{storage_provider: webdav.mine, path: My Files}]",
                "output: [{storage_provider: webdav.mine, path: Other Files}]",
            )
            + "storage_providers:\n"
            "  webdav: {mine: {hostname: dav.example.org/me, login: a, password: t0ps3cret}}\n"
        },
    ),
    Wrong(
        "a WebDAV server in the clear, a login that is none, and a folder that is none",
        "--local validate -f cow.yaml",
        """\
error: path must be a folder such as `results/today`, got `a/../b`
  --> cow.yaml:7:54  functions.aws[0].lambda.output[0].path
   7 |       output: [{storage_provider: webdav.mine, path: a/../b}]
     |                                                      ^

error: hostname must be https: the password would travel for anybody to read
  --> cow.yaml:9:29  storage_providers.webdav.mine.hostname

error: login must be not empty, and without `:`
  --> cow.yaml:9:62  storage_providers.webdav.mine.login
""",
        {
            "cow.yaml": lambda_lines(
                "output: [{storage_provider: webdav.mine, path: a/../b}]",
            )
            + "storage_providers:\n"
            "  webdav: {mine: {hostname: 'http://dav.example.org', login: 'a:b', password: p}}\n"
        },
    ),
    Wrong(
        "a provider's key that stands there twice is not shown",
        "--local validate -f cow.yaml",
        """\
error: `secret_key` is written twice
  --> cow.yaml:9:50  storage_providers.minio.mine.secret_key
   help: the first is in line 9; keep one
""",
        {
            "cow.yaml": GOOD + "storage_providers:\n  minio:\n"
            "    mine: {access_key: a, secret_key: t0ps3cret, secret_key: t0ps3cret}\n"
        },
    ),
    Wrong(
        "a function that would trigger itself through MinIO",
        "--local validate -f cow.yaml",
        """\
error: function `cow` writes to `data/out`, which is under its own input: it would trigger \
itself without end
  --> cow.yaml:8:53  functions.aws[0].lambda.output[0].path
   8 |       output: [{storage_provider: minio.mine, path: data/out}]
     |                                                     ^
   help: write to a path that is not under the input
""",
        {
            "cow.yaml": lambda_lines(
                "input: [{storage_provider: minio.mine, path: data}]",
                "output: [{storage_provider: minio.mine, path: data/out}]",
            )
            + "storage_providers: {minio: {mine: {access_key: a, secret_key: b}}}\n"
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
        "init -f cow.yaml -em batch",
        """\
error: execution mode `batch` needs `batch.compute_resources.subnets` on AWS
  --> {home}/scar.cfg:30:20  functions.aws[0].batch.compute_resources.subnets
   30 |         "subnets": [],
      |                    ^
   help: add `subnets: [subnet-…]`, or use the local cloud: `scar --local …`

error: execution mode `batch` needs `batch.compute_resources.security_group_ids` on AWS
  --> {home}/scar.cfg:31:31  functions.aws[0].batch.compute_resources.security_group_ids
   31 |         "security_group_ids": [],
      |                               ^
   help: add `security_group_ids: [sg-…]`, or use the local cloud: `scar --local …`

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
        "a device as the script",
        "--local init -i host -n cow -s /dev/zero",
        """\
error: `/dev/zero` is not a regular file
  --> --init-script  functions.aws[0].lambda.init_script
""",
    ),
    Wrong(
        "a device as the script of a run",
        "--local run -n cow -s /dev/zero",
        """\
error: `/dev/zero` is not a regular file
""",
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
    # What single keys take, and what they take together
    Wrong(
        "a run over two things",
        "--local run -n cow --all -ib video/in",
        """\
error: `--all` and `--input-bucket` exclude each other
   help: keep one of them
""",
    ),
    Wrong(
        "a call with two bodies",
        "invoke -n cow -db a -jd '{}'",
        """\
error: `-db` and `-jd` both say what to send
   help: keep one of them
""",
    ),
    Wrong(
        "parameters that are no object",
        "invoke -n cow -p '[1]'",
        """\
error: `--parameters` is not a JSON object
   help: write it as '{"name": "value"}'
""",
    ),
    Wrong(
        "a shell nobody knows",
        "completion bsh",
        """\
error: unknown shell `bsh`
   help: did you mean `bash`?
""",
    ),
    Wrong(
        "a flag of another command",
        "ls --plan",
        """\
error: unknown flag `--plan`
   help: did you mean `--local`?
""",
    ),
    Wrong(
        "validate of nothing",
        "validate",
        """\
error: one of the arguments -f/--conf-file -i/--image -if/--image-file is required
   help: `scar validate --help` shows the flags and an example
""",
    ),
    Wrong(
        "an execution mode nobody knows",
        "--local validate -i host -n cow -em fargate",
        """\
error: execution_mode must be `lambda`, `lambda-batch` or `batch`, got `fargate`
  --> --execution-mode  functions.aws[0].lambda.execution_mode
""",
    ),
    Wrong(
        "a log level nobody knows",
        "--local validate -i host -n cow -ll loud",
        """\
error: log_level must be `CRITICAL`, `ERROR`, `WARNING`, `INFO` or `DEBUG`, got `LOUD`
  --> --log-level  functions.aws[0].lambda.log_level
""",
    ),
    Wrong(
        "a GPU without a number",
        "--local validate -i host -n cow -em batch -bm lots -bc none",
        """\
error: memory must be a whole number of MiB, got `lots`
  --> --batch-memory  functions.aws[0].batch.memory

error: vcpus must be a number, got `none`
  --> --batch-vcpus  functions.aws[0].batch.vcpus
""",
    ),
    Wrong(
        "a role that is no ARN",
        "validate -i img -n cow -r admin",
        """\
error: role must be an ARN such as `arn:aws:iam::123456789012:role/x`, got `admin`
  --> --iam-role  functions.aws[0].iam.role
""",
    ),
    Wrong(
        "an image that cannot be",
        "--local validate -i 'my image' -n cow",
        """\
error: image must be an image such as `alpine:3.20` or `ghcr.io/owner/name@sha256:…`
  --> --image  functions.aws[0].lambda.container.image
""",
    ),
    Wrong(
        "an image in capital letters",
        "--local validate -i Debian -n cow",
        """\
error: image must have a lower-case repository, got `Debian`
  --> --image  functions.aws[0].lambda.container.image
""",
    ),
    Wrong(
        "a deployment bucket that cannot be",
        "--local validate -i host -n cow -db My_Bucket",
        """\
error: bucket must name a bucket of lower-case letters, digits, `-` and single `.`, first and \
last a letter or digit, got `My_Bucket`
  --> --deployment-bucket  functions.aws[0].lambda.deployment.bucket
""",
    ),
    Wrong(
        "an output without a bucket",
        "--local validate -i host -n cow -ob /out",
        """\
error: path must start with a bucket, as in `bucket/prefix`
  --> --output-bucket  functions.aws[0].lambda.output[0].path
""",
    ),
    Wrong(
        "a name that is too long",
        "--local validate -i host -n " + "n" * 65,
        """\
error: name must be 1 to 64 letters, digits, `-` or `_`, got \
`nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn…`
  --> --name  functions.aws[0].lambda.name
""",
    ),
    Wrong(
        "an archive that is not there",
        "--local validate -if nope.tar -n cow",
        """\
error: no file `{work}/nope.tar`
  --> --image-file  functions.aws[0].lambda.container.image_file
   help: looked for `{work}/nope.tar`
""",
    ),
    Wrong(
        "a payload that is not there",
        "--local validate -i host -n cow -ep nope",
        """\
error: no file or folder `{work}/nope`
  --> --extra-payload  functions.aws[0].lambda.extra_payload
   help: looked in `{work}`
""",
    ),
    Wrong(
        "a threshold below zero",
        "--local validate -f cow.yaml -tt -1",
        """\
error: timeout_threshold must be 0 to 900 seconds, got `-1`
  --> --timeout-threshold  functions.aws[0].lambda.container.timeout_threshold
""",
        {"cow.yaml": GOOD},
    ),
    Wrong(
        "unclosed quotes",
        "--local validate -f cow.yaml",
        """\
error: not valid YAML: while scanning a quoted scalar, found unexpected end of stream
  --> cow.yaml:2:8
   2 |   aws: "x
     |        ^
   help: check the indentation, the `:` after each key and the quotes around here
""",
        {"cow.yaml": 'functions:\n  aws: "x\n'},
    ),
    Wrong(
        "a key that is no text",
        "--local validate -f cow.yaml",
        """\
error: a key must be text
  --> cow.yaml:1:3
   1 | ? [a]
     |   ^
""",
        {"cow.yaml": "? [a]\n: b\nfunctions: {}\n"},
    ),
    Wrong(
        "a merge of what is no mapping",
        "--local validate -f cow.yaml",
        """\
error: `<<` needs a mapping
  --> cow.yaml:8:13  functions.aws[0].lambda.tags
   8 |         <<: x
     |             ^
   help: write `<<: *name`
""",
        {"cow.yaml": lambda_lines("tags:", "  <<: x")},
    ),
    Wrong(
        "a list instead of a function",
        "--local validate -f cow.yaml",
        """\
error: aws[0] must be a mapping of keys, got a list
  --> cow.yaml:3:5  functions.aws[0]
   3 |   - [lambda]
     |     ^
""",
        {"cow.yaml": "functions:\n  aws:\n  - [lambda]\n"},
    ),
    Wrong(
        "an item without lambda",
        "--local validate -f cow.yaml",
        """\
error: `name` is required
  --> cow.yaml:3:5  functions.aws[0].lambda.name
   3 |   - batch: {vcpus: 1}
     |     ^
   help: add `name:` here
""",
        {"cow.yaml": "functions:\n  aws:\n  - batch: {vcpus: 1}\n"},
    ),
    Wrong(
        "functions that are no list",
        "--local validate -f cow.yaml",
        """\
error: aws must be a list, got a mapping
  --> cow.yaml:3:5  functions.aws
   3 |     lambda: {name: cow}
     |     ^
   help: write `- ` before each item, or `[a, b]`
""",
        {"cow.yaml": "functions:\n  aws:\n    lambda: {name: cow}\n"},
    ),
    Wrong(
        "an unknown key at the top",
        "--local validate -f cow.yaml",
        """\
error: unknown key `storage_provider`
  --> cow.yaml:7:1  storage_provider
   7 | storage_provider: {}
     | ^
   help: `storage_provider` goes under `lambda.input[]`
""",
        {"cow.yaml": GOOD + "storage_provider: {}\n"},
    ),
    Wrong(
        "a region that is none",
        "--local validate -f cow.yaml",
        """\
error: region must be a region such as `us-east-1`, got `Virginia`
  --> cow.yaml:7:15  functions.aws[0].lambda.region
   7 |       region: Virginia
     |               ^
""",
        {"cow.yaml": lambda_lines("region: Virginia")},
    ),
    Wrong(
        "a bucket that is an address",
        "--local validate -f cow.yaml",
        """\
error: path must name a bucket, got the IP address `10.0.0.1`
  --> cow.yaml:7:22  functions.aws[0].lambda.input[0].path
   7 |       input: [{path: 10.0.0.1/in}]
     |                      ^
""",
        {"cow.yaml": lambda_lines("input: [{path: 10.0.0.1/in}]")},
    ),
    Wrong(
        "a path with an empty part",
        "--local validate -f cow.yaml",
        """\
error: path must not hold an empty part (`//`), got `video//in`
  --> cow.yaml:7:22  functions.aws[0].lambda.input[0].path
   7 |       input: [{path: video//in}]
     |                      ^
""",
        {"cow.yaml": lambda_lines("input: [{path: video//in}]")},
    ),
    Wrong(
        "a path with a scheme",
        "--local validate -f cow.yaml",
        """\
error: path must be `bucket/prefix` without `s3://`
  --> cow.yaml:7:23  functions.aws[0].lambda.output[0].path
   7 |       output: [{path: 's3://video/out'}]
     |                       ^
""",
        {"cow.yaml": lambda_lines("output: [{path: 's3://video/out'}]")},
    ),
    Wrong(
        "a path that leaves no room",
        "--local validate -f cow.yaml",
        """\
error: path must leave room for file names: a key has at most 1,024 bytes
  --> cow.yaml:7:23  functions.aws[0].lambda.output[0].path
   7 |       output: [{path: \
video/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\
xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
     |                       ^
""",
        {"cow.yaml": lambda_lines("output: [{path: video/" + "x" * 901 + "}]")},
    ),
    Wrong(
        "an input without a path",
        "--local validate -f cow.yaml",
        """\
error: `path` is required
  --> cow.yaml:7:15  functions.aws[0].lambda.input[0].path
   7 |       input: [{storage_provider: s3}]
     |               ^
   help: add `path:` here
""",
        {"cow.yaml": lambda_lines("input: [{storage_provider: s3}]")},
    ),
    Wrong(
        "a suffix that is no list",
        "--local validate -f cow.yaml",
        """\
error: suffix must be a list, got `.png`
  --> cow.yaml:7:42  functions.aws[0].lambda.output[0].suffix
   7 |       output: [{path: video/out, suffix: .png}]
     |                                          ^
   help: write `- ` before each item, or `[a, b]`
""",
        {"cow.yaml": lambda_lines("output: [{path: video/out, suffix: .png}]")},
    ),
    Wrong(
        "two architectures",
        "--local validate -f cow.yaml",
        """\
error: architectures must have one item, got 2
  --> cow.yaml:7:22  functions.aws[0].lambda.architectures
   7 |       architectures: [x86_64, arm64]
     |                      ^
""",
        {"cow.yaml": lambda_lines("architectures: [x86_64, arm64]")},
    ),
    Wrong(
        "a disk that is too large",
        "--local validate -f cow.yaml",
        """\
error: ephemeral_storage must be 512 to 10240 MB, got 20480
  --> cow.yaml:7:26  functions.aws[0].lambda.ephemeral_storage
   7 |       ephemeral_storage: 20480
     |                          ^
   help: a job has its machine's disk: `execution_mode: batch`
""",
        {"cow.yaml": lambda_lines("ephemeral_storage: 20480")},
    ),
    Wrong(
        "a description that is too long",
        "--local validate -f cow.yaml",
        """\
error: description must be shorter: at most 256 characters, got \
`dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd…`
  --> cow.yaml:7:20  functions.aws[0].lambda.description
   7 |       description: \
ddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd\
dddddddddddddddddddddddddddddddddddddddddddd
     |                    ^
""",
        {"cow.yaml": lambda_lines("description: " + "d" * 257)},
    ),
    Wrong(
        "more memory than Lambda has",
        "--local validate -f cow.yaml -m 20000",
        """\
error: memory must be 128 to 10240 MB, got `20000`
  --> --memory  functions.aws[0].lambda.memory
   help: a job may have more: `execution_mode: batch` and `batch.memory`
""",
        {"cow.yaml": GOOD},
    ),
    Wrong(
        "logs kept for a number of days that is none",
        "--local validate -f cow.yaml",
        """\
error: log_retention_policy_in_days must be one of 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, \
365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653 days, got 31
  --> cow.yaml:7:48  functions.aws[0].cloudwatch.log_retention_policy_in_days
   7 |     cloudwatch: {log_retention_policy_in_days: 31}
     |                                                ^
""",
        {"cow.yaml": GOOD + "    cloudwatch: {log_retention_policy_in_days: 31}\n"},
    ),
    Wrong(
        "a variable that Lambda cannot name",
        "--local validate -f cow.yaml",
        """\
error: A-B must be named with letters, digits and `_`, a letter first and at least two, got `A-B`
  --> cow.yaml:7:33  functions.aws[0].lambda.environment.Variables.A-B
   7 |       environment: {Variables: {A-B: x}}
     |                                 ^
""",
        {"cow.yaml": lambda_lines("environment: {Variables: {A-B: x}}")},
    ),
    Wrong(
        "a variable that Lambda sets itself",
        "--local validate -f cow.yaml",
        """\
error: variable `AWS_REGION` is reserved: Lambda sets it itself
  --> cow.yaml:7:33  functions.aws[0].lambda.environment.Variables.AWS_REGION
   7 |       environment: {Variables: {AWS_REGION: x}}
     |                                 ^
   help: choose another name
""",
        {"cow.yaml": lambda_lines("environment: {Variables: {AWS_REGION: x}}")},
    ),
    Wrong(
        "a variable that Batch sets itself",
        "--local validate -f cow.yaml",
        """\
error: variable `AWS_BATCH_JOB_ID` is reserved: Batch sets it itself
  --> cow.yaml:9:33  functions.aws[0].batch.environment.Variables.AWS_BATCH_JOB_ID
   9 |       environment: {Variables: {AWS_BATCH_JOB_ID: x}}
     |                                 ^
   help: choose another name
""",
        {"cow.yaml": batch_lines("environment: {Variables: {AWS_BATCH_JOB_ID: x}}")},
    ),
    Wrong(
        "more variables than Lambda takes",
        "--local validate -f cow.yaml",
        """\
error: the function's variables take 4097 bytes, Lambda allows 4096
  --> cow.yaml:7:21  functions.aws[0].lambda.environment.Variables
   7 |       environment: {Variables: {BIG: \
xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\
xxxxxxxxxxxxxxxxxxxxxxxxxx
     |                     ^
   help: put them in `lambda.container.environment`: those travel in the image
""",
        {"cow.yaml": lambda_lines("environment: {Variables: {BIG: " + "x" * 4094 + "}}")},
    ),
    Wrong(
        "tags that are AWS's, SCAR's and too many",
        "--local validate -f cow.yaml",
        """\
error: at most 40 tags, got 41
  --> cow.yaml:7:7  functions.aws[0].lambda.tags
   7 |       tags:
     |       ^
   help: remove some

error: tag `aws:x` is reserved: names that start with `aws:` are AWS's own
  --> cow.yaml:8:9  functions.aws[0].lambda.tags.aws:x
   8 |         aws:x: a
     |         ^
   help: choose another name

error: tag `owner` is reserved: SCAR finds its functions by it
  --> cow.yaml:9:9  functions.aws[0].lambda.tags.owner
   9 |         owner: me
     |         ^
   help: choose another name
""",
        {
            "cow.yaml": lambda_lines(
                "tags:", "  aws:x: a", "  owner: me", *(f"  t{i}: x" for i in range(39))
            )
        },
    ),
    Wrong(
        "a prepared image that is not in ECR",
        "--local validate -f cow.yaml",
        """\
error: with `create_image: false` the image must be in ECR, Lambda takes it from there
  --> cow.yaml:6:16  functions.aws[0].lambda.container.image
   6 |         image: debian
     |                ^
   help: name it <account>.dkr.ecr.<region>.amazonaws.com/<repository>:<tag>, or remove \
`create_image`
""",
        {"cow.yaml": GOOD.replace("image: host", "image: debian\n        create_image: false")},
    ),
    Wrong(
        "two images",
        "--local validate -f cow.yaml",
        """\
error: `image` and `image_file` exclude each other
  --> cow.yaml:7:9  functions.aws[0].lambda.container.image_file
   7 |         image_file: cow.tar
     |         ^
   help: keep the one to deploy
""",
        {
            "cow.yaml": GOOD.replace("image: host", "image: host\n        image_file: cow.tar"),
            "cow.tar": "x",
        },
    ),
    Wrong(
        "a subnet without a security group",
        "--local validate -f cow.yaml",
        """\
error: vpc has `SubnetIds` but no `SecurityGroupIds`
  --> cow.yaml:7:7  functions.aws[0].lambda.vpc
   7 |       vpc: {SubnetIds: [subnet-1]}
     |       ^
   help: add `SecurityGroupIds: [sg-…]`
""",
        {"cow.yaml": lambda_lines("vpc: {SubnetIds: [subnet-1]}")},
    ),
    Wrong(
        "ids that are none",
        "--local validate -f cow.yaml",
        """\
error: SubnetIds[0] must be an id such as `subnet-0a1b2c3d`, got `vpc-1`
  --> cow.yaml:7:25  functions.aws[0].lambda.vpc.SubnetIds[0]
   7 |       vpc: {SubnetIds: [vpc-1], SecurityGroupIds: [sg 1]}
     |                         ^

error: SecurityGroupIds[0] must be an id such as `sg-0a1b2c3d`, got `sg 1`
  --> cow.yaml:7:52  functions.aws[0].lambda.vpc.SecurityGroupIds[0]
   7 |       vpc: {SubnetIds: [vpc-1], SecurityGroupIds: [sg 1]}
     |                                                    ^
""",
        {"cow.yaml": lambda_lines("vpc: {SubnetIds: [vpc-1], SecurityGroupIds: [sg 1]}")},
    ),
    Wrong(
        "a file system outside a network",
        "--local validate -f cow.yaml",
        """\
error: file_system needs `lambda.vpc`: a function reaches it from inside its network
  --> cow.yaml:7:7  functions.aws[0].lambda.file_system
   7 |       file_system:
     |       ^
   help: add `vpc: {SubnetIds: [subnet-…], SecurityGroupIds: [sg-…]}`

error: file_system is of AWS only: the local cloud has no EFS
  --> cow.yaml:7:7  functions.aws[0].lambda.file_system
   7 |       file_system:
     |       ^
   help: remove it to run here
""",
        {
            "cow.yaml": lambda_lines(
                "file_system:",
                "- Arn: arn:aws:elasticfilesystem:us-east-1:000000000000:access-point/fsap-1",
                "  LocalMountPath: /mnt/data",
            )
        },
    ),
    Wrong(
        "a file system that is none, at a place that cannot be",
        "--local validate -f cow.yaml",
        """\
error: Arn must be the ARN of an access point of EFS, got `fs-1`
  --> cow.yaml:8:27  functions.aws[0].lambda.file_system[0].Arn
   8 |       file_system: [{Arn: fs-1, LocalMountPath: /data}]
     |                           ^

error: LocalMountPath must be a folder right below `/mnt/`, such as `/mnt/data`, got `/data`
  --> cow.yaml:8:49  functions.aws[0].lambda.file_system[0].LocalMountPath
   8 |       file_system: [{Arn: fs-1, LocalMountPath: /data}]
     |                                                 ^
""",
        {
            "cow.yaml": lambda_lines(
                "vpc: {SubnetIds: [subnet-1], SecurityGroupIds: [sg-1]}",
                "file_system: [{Arn: fs-1, LocalMountPath: /data}]",
            )
        },
    ),
    Wrong(
        "more file systems than one",
        "--local validate -f cow.yaml",
        """\
error: file_system must have at most one item, got 2
  --> cow.yaml:8:7  functions.aws[0].lambda.file_system
   8 |       - {Arn: &a "arn:aws:s3files:x:000000000000:file-system/y", LocalMountPath: /mnt/a}
     |       ^
""",
        {
            "cow.yaml": lambda_lines(
                "file_system:",
                '- {Arn: &a "arn:aws:s3files:x:000000000000:file-system/y", '
                "LocalMountPath: /mnt/a}",
                "- {Arn: *a, LocalMountPath: /mnt/b}",
            )
        },
    ),
    Wrong(
        "what Batch needs on AWS",
        "validate -f cow.yaml -r arn:aws:iam::123456789012:role/x",
        """\
error: execution mode `lambda-batch` needs `batch.compute_resources.subnets` on AWS
  --> {home}/scar.cfg:30:20  functions.aws[0].batch.compute_resources.subnets
   30 |         "subnets": [],
      |                    ^
   help: add `subnets: [subnet-…]`, or use the local cloud: `scar --local …`

error: execution mode `lambda-batch` needs `batch.compute_resources.security_group_ids` on AWS
  --> {home}/scar.cfg:31:31  functions.aws[0].batch.compute_resources.security_group_ids
   31 |         "security_group_ids": [],
      |                               ^
   help: add `security_group_ids: [sg-…]`, or use the local cloud: `scar --local …`
""",
        {
            "cow.yaml": lambda_lines("execution_mode: lambda-batch").replace(
                "image: host", "image: debian"
            )
        },
    ),
    Wrong(
        "vCPU counts that cannot be met",
        "--local validate -f cow.yaml",
        """\
error: vcpus must be at most max_v_cpus (4), got 8
  --> cow.yaml:9:14  functions.aws[0].batch.vcpus
   9 |       vcpus: 8
     |              ^
   help: no instance would ever be started for the job: raise \
`batch.compute_resources.max_v_cpus`

error: min_v_cpus must be at most max_v_cpus (4), got 6
  --> cow.yaml:10:39  functions.aws[0].batch.compute_resources.min_v_cpus
   10 |       compute_resources: {min_v_cpus: 6, desired_v_cpus: 5, max_v_cpus: 4}
      |                                       ^

error: desired_v_cpus must be at most max_v_cpus (4), got 5
  --> cow.yaml:10:58  functions.aws[0].batch.compute_resources.desired_v_cpus
   10 |       compute_resources: {min_v_cpus: 6, desired_v_cpus: 5, max_v_cpus: 4}
      |                                                          ^
""",
        {
            "cow.yaml": batch_lines(
                "vcpus: 8", "compute_resources: {min_v_cpus: 6, desired_v_cpus: 5, max_v_cpus: 4}"
            )
        },
    ),
    Wrong(
        "a part of a vCPU on an instance",
        "--local validate -f cow.yaml",
        """\
error: vcpus must be a whole number on instances, got 0.5
  --> cow.yaml:9:14  functions.aws[0].batch.vcpus
   9 |       vcpus: 0.5
     |              ^
   help: parts of a vCPU are for `compute_resources.type: FARGATE`
""",
        {"cow.yaml": batch_lines("vcpus: 0.5")},
    ),
    Wrong(
        "memory that Fargate has not",
        "--local validate -f cow.yaml",
        """\
error: memory must be 2048 to 8192 in steps of 1024 MiB with 1 vCPUs on `FARGATE`, got 1024
  --> cow.yaml:10:15  functions.aws[0].batch.memory
   10 |       memory: 1024
      |               ^
""",
        {"cow.yaml": batch_lines("vcpus: 1", "memory: 1024", "compute_resources: {type: FARGATE}")},
    ),
    Wrong(
        "a GPU on Fargate",
        "--local validate -f cow.yaml",
        """\
error: there are no GPUs on `FARGATE_SPOT`
  --> cow.yaml:10:19  functions.aws[0].batch.enable_gpu
   10 |       enable_gpu: true
      |                   ^
   help: set `compute_resources.type: EC2`
""",
        {
            "cow.yaml": batch_lines(
                "memory: 2048", "enable_gpu: true", "compute_resources: {type: FARGATE_SPOT}"
            )
        },
    ),
    Wrong(
        "arm64 on instances of x86_64",
        "validate -f cow.yaml -r arn:aws:iam::123456789012:role/x",
        """\
error: instances of `optimal` are x86_64, the function is arm64
  --> {home}/scar.cfg:28:11  functions.aws[0].batch.compute_resources.instance_types[0]
   28 |           "optimal"
      |           ^
   help: use `instance_types: [default_arm64]`
""",
        {
            "cow.yaml": (
                batch_lines("compute_resources: {subnets: [subnet-1], security_group_ids: [sg-1]}")
                .replace("image: host", "image: debian")
                .replace("execution_mode", "architectures: [arm64]\n      execution_mode")
            )
        },
    ),
    Wrong(
        "an instance type that is none",
        "--local validate -f cow.yaml",
        """\
error: instance_types[0] must be a type such as `c7i.large`, a family such as `c7i`, `optimal`, \
got `Big Ones`
  --> cow.yaml:9:44  functions.aws[0].batch.compute_resources.instance_types[0]
   9 |       compute_resources: {instance_types: [Big Ones]}
     |                                            ^
""",
        {"cow.yaml": batch_lines("compute_resources: {instance_types: [Big Ones]}")},
    ),
    Wrong(
        "no instance type at all",
        "--local validate -f cow.yaml",
        """\
error: instance_types must have one item or more, got 0
  --> cow.yaml:9:43  functions.aws[0].batch.compute_resources.instance_types
   9 |       compute_resources: {instance_types: []}
     |                                           ^
""",
        {"cow.yaml": batch_lines("compute_resources: {instance_types: []}")},
    ),
    Wrong(
        "a kind of environment nobody knows",
        "--local validate -f cow.yaml",
        """\
error: type must be `EC2`, `SPOT`, `FARGATE` or `FARGATE_SPOT`, got `SPOTT`
  --> cow.yaml:9:33  functions.aws[0].batch.compute_resources.type
   9 |       compute_resources: {type: SPOTT}
     |                                 ^
   help: did you mean `SPOT`?
""",
        {"cow.yaml": batch_lines("compute_resources: {type: SPOTT}")},
    ),
    Wrong(
        "a provider that nobody defined",
        "--local validate -f cow.yaml",
        """\
error: storage provider `minio.mine` is not defined
  --> cow.yaml:7:35  functions.aws[0].lambda.output[0].storage_provider
   7 |       output: [{storage_provider: minio.mine, path: a1b/out}]
     |                                   ^
   help: did you mean `minio.mien`?
""",
        {
            "cow.yaml": lambda_lines("output: [{storage_provider: minio.mine, path: a1b/out}]")
            + "storage_providers: {minio: {mien: {access_key: a, secret_key: b}}}\n"
        },
    ),
    Wrong(
        "a provider without a definition of any",
        "--local validate -f cow.yaml",
        """\
error: storage provider `webdav.home` is not defined
  --> cow.yaml:7:35  functions.aws[0].lambda.output[0].storage_provider
   7 |       output: [{storage_provider: webdav.home, path: a1b/out}]
     |                                   ^
   help: define it: `storage_providers: {webdav: {home: {…}}}`
""",
        {"cow.yaml": lambda_lines("output: [{storage_provider: webdav.home, path: a1b/out}]")},
    ),
    Wrong(
        "a kind of provider nobody knows",
        "--local validate -f cow.yaml",
        """\
error: unknown storage provider `mini.mine`
  --> cow.yaml:7:35  functions.aws[0].lambda.output[0].storage_provider
   7 |       output: [{storage_provider: mini.mine, path: a1b/out}]
     |                                   ^
   help: did you mean `minio`?
""",
        {"cow.yaml": lambda_lines("output: [{storage_provider: mini.mine, path: a1b/out}]")},
    ),
    Wrong(
        "providers without what they need, and no secret is told",
        "--local validate -f cow.yaml",
        """\
error: `secret_key` is required
  --> cow.yaml:8:8  storage_providers.s3.mine.secret_key
   help: add `secret_key:` here

error: access_key must be text
  --> cow.yaml:8:27  storage_providers.s3.mine.access_key
   help: put it in quotes

error: `oneprovider_host` is required
  --> cow.yaml:9:13  storage_providers.onedata.mine.oneprovider_host
   help: add `oneprovider_host:` here

error: `hostname` is required
  --> cow.yaml:10:12  storage_providers.webdav.mine.hostname
   help: add `hostname:` here

error: `login` is required
  --> cow.yaml:10:12  storage_providers.webdav.mine.login
   help: add `login:` here

error: `password` is required
  --> cow.yaml:10:12  storage_providers.webdav.mine.password
   help: add `password:` here
""",
        {
            "cow.yaml": GOOD + "storage_providers:\n  s3: {mine: {access_key: 12345}}\n"
            "  onedata: {mine: {token: t0ps3cret, space: x}}\n  webdav: {mine: {}}\n"
        },
    ),
    Wrong(
        "inputs that overlap",
        "--local validate -f cow.yaml",
        """\
error: inputs of `cow` and `sheep` overlap: S3 allows one trigger for an object
  --> cow.yaml:12:22  functions.aws[1].lambda.input[0].path
   12 |       input: [{path: video/in}]
      |                      ^
   help: give them different paths, or different suffixes
""",
        {"cow.yaml": BOTH.replace("image: host", "image: host\n      input: [{path: video/in}]")},
    ),
    Wrong(
        "a circle through three functions",
        "--local validate -f cow.yaml",
        """\
error: the functions trigger each other without end: a → b → c → a
  --> cow.yaml:5:77  functions.aws[2].lambda.output[0].path
   5 |   - lambda: {name: c, image: host, input: [{path: data/c}], output: [{path: data/a}]}
     |                                                                             ^
   help: break the circle: one of them must write elsewhere
""",
        {
            "cow.yaml": "functions:\n  aws:\n"
            + "".join(
                f"  - lambda: {{name: {n}, image: host, input: [{{path: data/{n}}}], "
                f"output: [{{path: data/{a}}}]}}\n"
                for n, a in ("ab", "bc", "ca")
            )
        },
    ),
    Wrong(
        "functions of two regions",
        "--local validate -f cow.yaml",
        """\
error: region differs from the first function's, `not set`
  --> cow.yaml:9:15  functions.aws[1].lambda.region
   9 |       region: eu-west-1
     |               ^
   help: put the functions of each region and profile into a file of their own
""",
        {"cow.yaml": BOTH.replace("name: sheep", "name: sheep\n      region: eu-west-1")},
    ),
    Wrong(
        "a fault in an old spelling",
        "--local validate -f cow.yaml",
        """\
error: timeout must be 1 to 900 seconds, got 901
  --> cow.yaml:7:13  functions.aws[0].lambda.timeout
   7 |       time: 901
     |             ^
   help: a job may take longer: `execution_mode: batch`

error: timeout_threshold must be a whole number of seconds, got `x`
  --> cow.yaml:8:26  functions.aws[0].lambda.container.timeout_threshold
   8 |       timeout_threshold: x
     |                          ^
""",
        {"cow.yaml": lambda_lines("time: 901", "timeout_threshold: x")},
    ),
    Wrong(
        "a key in its old place and its new one",
        "--local validate -f cow.yaml",
        """\
error: unknown key `image`
  --> cow.yaml:7:7  functions.aws[0].lambda.image
   7 |       image: other
     |       ^
   help: `image` goes under `lambda.container`
""",
        {"cow.yaml": lambda_lines("image: other")},
    ),
    Wrong(
        "an API with a stage that cannot be",
        "--local validate -f cow.yaml",
        """\
error: stage_name must be at most 128 letters, digits, `_` and `-`, got `a/b`
  --> cow.yaml:7:42  functions.aws[0].api_gateway.stage_name
   7 |     api_gateway: {name: web, stage_name: a/b, http_method: FETCH}
     |                                          ^

error: http_method must be `ANY`, `DELETE`, `GET`, `HEAD`, `OPTIONS`, `PATCH`, `POST` or `PUT`, \
got `FETCH`
  --> cow.yaml:7:60  functions.aws[0].api_gateway.http_method
   7 |     api_gateway: {name: web, stage_name: a/b, http_method: FETCH}
     |                                                            ^
   help: did you mean `PATCH`?
""",
        {"cow.yaml": GOOD + "    api_gateway: {name: web, stage_name: a/b, http_method: FETCH}\n"},
    ),
    Wrong(
        "a fault in each function, and across them",
        "--local validate -f cow.yaml",
        """\
error: memory must be 128 to 10240 MB, got 1
  --> cow.yaml:5:15  functions.aws[0].lambda.memory
   5 |       memory: 1
     |               ^

error: no file `nope.sh`
  --> cow.yaml:10:20  functions.aws[1].lambda.init_script
   10 |       init_script: nope.sh
      |                    ^
   help: looked for `{work}/nope.sh`

error: storage provider `minio` is not defined
  --> cow.yaml:11:35  functions.aws[1].lambda.output[0].storage_provider
   11 |       output: [{storage_provider: minio, path: a1b}]
      |                                   ^
   help: define it: `storage_providers: {minio: {default: {…}}}`
""",
        {
            "cow.yaml": BOTH.replace("name: cow", "name: cow\n      memory: 1").replace(
                "name: sheep",
                "name: sheep\n      init_script: nope.sh\n"
                "      output: [{storage_provider: minio, path: a1b}]",
            )
        },
    ),
    Wrong(
        "a list at the top of scar.cfg",
        "--local validate -i host -n cow",
        """\
error: expected an object at the top
  --> {home}/scar.cfg:1:1
   help: mend the file, or remove it: a new one with the defaults is written (scar.cfg)
""",
        config="[1]",
    ),
    Wrong(
        "a fault in an old spelling of scar.cfg",
        "--local validate -i host -n cow",
        """\
error: timeout must be 1 to 900 seconds, got 0
  --> {home}/scar.cfg:1:29  functions.aws[0].lambda.timeout
   1 | {"aws": {"lambda": {"time": 0}}}
     |                             ^
""",
        config='{"aws": {"lambda": {"time": 0}}}',
    ),
    Wrong(
        "a target that is none in scar.cfg",
        "validate -i host -n cow",
        """\
error: target must be `aws` or `local`, got `azure`
  --> {home}/scar.cfg:1:21  scar.target
   1 | {"scar": {"target": "azure"}}
     |                     ^
""",
        config='{"scar": {"target": "azure"}}',
    ),
    Wrong(
        "a key of OSCAR's in the FDL beside a fault",
        "--local validate -f cow.yaml",
        """\
error: memory must be 128 to 10240 MB, got 1
  --> cow.yaml:7:15  functions.aws[0].lambda.memory
   7 |       memory: 1
     |               ^
""",
        {"cow.yaml": lambda_lines("memory: 1") + "  oscar:\n  - my_oscar: {name: x}\n"},
    ),
]


# Through a process of their own too: what differs there is the start, the streams, the exit code.
REAL = [
    wrong
    for wrong in WRONG
    if wrong.what
    in (
        "no command",
        "an unknown command",
        "a flag out of bounds",
        "an unknown target",
        "a missing file",
        "a file that is not UTF-8",
        "aliases of aliases",
        "brackets without end",
        "several faults at once",
        "what AWS needs",
        "scar.cfg that is no JSON",
    )
]


@dataclass(frozen=True)
class Ended:
    """How the command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.what)
def test_a_wrong_input_is_told_exactly_and_makes_nothing(
    wrong: Wrong,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def run(typed: list[str], home: Path, work: Path) -> Ended:
        for name in [name for name in os.environ if name.startswith(("SCAR_", "AWS_"))]:
            monkeypatch.delenv(name)
        for name, value in {"SCAR_CONFIG_FOLDER": str(home), **wrong.environment}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(work)
        code = main(typed)
        return Ended(code, *capsys.readouterr())

    check(wrong, tmp_path, run)


@pytest.mark.parametrize("wrong", REAL, ids=lambda wrong: wrong.what)
def test_the_real_command_says_the_same(wrong: Wrong, tmp_path: Path):
    def run(typed: list[str], home: Path, work: Path) -> Ended:
        done = scar(typed, home, work, wrong.environment)
        return Ended(done.returncode, done.stdout, done.stderr)

    check(wrong, tmp_path, run)


def check(wrong: Wrong, folder: Path, run: Callable[[list[str], Path, Path], Ended]) -> None:
    home, work = folder / "home", folder / "work"
    for made in (home, work):
        made.mkdir()
    if wrong.config is not None:
        (home / "scar.cfg").write_text(wrong.config)
    for name, content in wrong.files.items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = everything(work)

    done = run(shlex.split(wrong.typed), home, work)

    answer = wrong.answer
    for word, text in {"home": str(home), "work": str(work)}.items():
        answer = answer.replace(f"{{{word}}}", text)
    answer = answer.replace("{brackets}", "[" * 160).replace("{pad}", " " * 40)
    assert done.stderr == answer
    assert done.returncode == wrong.code
    assert done.stdout == ""
    assert everything(work) == before
    assert everything(home) <= {"scar.cfg"}


def test_a_right_input_is_said_to_be_right_and_nobody_is_asked(tmp_path: Path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "cow.yaml").write_text(BOTH)
    done = scar(["--local", "validate", "-f", "cow.yaml"], tmp_path / "home", work)
    assert (done.returncode, done.stdout, done.stderr) == (0, "valid: cow, sheep\n", "")
    done = scar(
        ["--local", "validate", "-f", "cow.yaml", "-n", "cow", "-l", "x", "--json"],
        tmp_path / "home",
        work,
    )
    told = json.loads(done.stdout)
    assert (told["Valid"], told["Functions"]) == (True, ["cow"])
    assert [(w["summary"], w["origin"]) for w in told["Warnings"]] == [
        ("`lambda.layers` is ignored: functions are images, which have no layers", "--layers")
    ]
    # No local cloud was started, and nothing loaded that could ask AWS.
    assert everything(tmp_path / "home") == {"scar.cfg"}
    code = (
        "import sys\nfrom scar.__main__ import main\n"
        "main(['--local', 'validate', '-f', 'cow.yaml'])\n"
        "heavy = {'boto3', 'botocore', 'urllib3', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        env={**os.environ, "SCAR_CONFIG_FOLDER": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


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
                    "hint": "a job may take longer: `execution_mode: batch`",
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


@pytest.mark.parametrize(
    ("where", "code", "says"),
    [(">&-", 0, ""), (">/dev/full", 2, "error: cannot write: no space left on device\n")],
)
def test_an_output_that_takes_nothing(tmp_path: Path, where: str, code: int, says: str):
    command = f"{shlex.quote(sys.executable)} -m scar schema {where}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, says)


def test_a_cloud_that_does_not_answer_is_not_said_to_be_stopped(cloud: Cloud):
    cloud.ok("local", "start")
    os.kill(cloud.status["pid"], signal.SIGSTOP)
    try:
        done = cloud.run("local", "stop")
    finally:
        os.kill(cloud.status["pid"], signal.SIGCONT)
    assert done.code == 3
    assert "does not answer" in done.err


def test_a_folder_of_somebody_elses_is_neither_used_nor_deleted(tmp_path: Path):
    """A folder that was named once by mistake does not become ours."""
    mine = tmp_path / "project"
    (mine / "src").mkdir(parents=True)
    (mine / "src" / "thesis.tex").write_text("years of work")
    for command in (["ls"], ["local", "start"], ["local", "reset", "--yes"]):
        done = scar(["--local", *command], tmp_path, tmp_path, {"SCAR_LOCAL_DIR": str(mine)})
        assert done.returncode == 2
        assert f"`{mine}` is not the data folder of a local cloud" in done.stderr
    assert [entry.name for entry in mine.iterdir()] == ["src"]
