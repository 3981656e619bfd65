"""Write docs/fdl.schema.json and docs/fdl.md from the schema; `--check` only compares."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from scar.fdl.reference import Key, json_schema, keys
from scar.fdl.retired import IGNORED_KEYS
from scar.fdl.source import MOVED

DOCS = Path(__file__).parents[1] / "docs"

HEAD = """\
# The functions definition language

<!-- Written by tools/fdl_reference.py from src/scar/fdl/schema.py (`make schema`). -->

An FDL file is YAML. It lists functions; each is a `lambda` block and what belongs to it:

```yaml
functions:
  aws:
    - lambda:                            # the function
        name: split
        init_script: split.sh            # relative to this file
        execution_mode: batch            # lambda (default), batch or lambda-batch
        memory: 1024                     # MB
        container:
          image: registry.example.org/ffmpeg:7
          environment:
            Variables: {FRAMES: "2"}     # what the script sees
        input:
          - storage_provider: s3
            path: video/input            # bucket/prefix; a new object there triggers the function
        output:
          - storage_provider: s3
            path: video/frames
            suffix: [.png]               # only these files
      batch:                             # the job
        vcpus: 2
        memory: 4096                     # MiB
        compute_resources:
          subnets: [subnet-0a1b2c3d]     # AWS only
          security_group_ids: [sg-0a1b2c3d]
      iam:
        role: arn:aws:iam::123456789012:role/scar
```

`scar validate -f FILE` checks a file without asking anybody; it tells every fault at once, with its
line and how to mend it. [fdl.schema.json](fdl.schema.json) is the same for editors (`scar schema`
prints it): put `# yaml-language-server: $schema=PATH` in the first line.

- Flags win over the file, the file over [scar.cfg](configuration.md), that over the defaults below.
  Mappings merge, lists replace. An empty key is an absent key.
- Unknown keys are errors. Values of `Variables` and `tags` are text as written: `yes`, `007` and
  `1.10` stay what they are.
- `batch` may also be indented into `lambda`.
"""

SECTIONS = {
    "lambda": (
        "`lambda`: the function",
        """\
```yaml
- lambda:
    name: cow
    timeout: 900
    container: {image_file: cow.tar.gz, timeout_threshold: 30}
    environment: {Variables: {STAGE: test}}    # of the Lambda function itself
    vpc: {SubnetIds: [subnet-1], SecurityGroupIds: [sg-1]}
    tags: {project: moo}
```
""",
    ),
    "iam": (
        "`iam`",
        "```yaml\niam: {role: 'arn:aws:iam::{account_id}:role/scar'}\n```\n",
    ),
    "ecr": ("`ecr`", "```yaml\necr: {delete_image: false}\n```\n"),
    "cloudwatch": ("`cloudwatch`", "```yaml\ncloudwatch: {log_retention_policy_in_days: 7}\n```\n"),
    "api_gateway": (
        "`api_gateway`: an HTTP endpoint",
        "```yaml\napi_gateway: {name: cow-api}    # then: scar invoke -n cow\n```\n",
    ),
    "batch": (
        "`batch`: the job",
        """\
```yaml
batch:
  vcpus: 4
  memory: 8192
  enable_gpu: true
  compute_resources: {type: EC2, instance_types: [g5.xlarge], max_v_cpus: 64}
```
""",
    ),
    "storage_providers": (
        "`storage_providers`, at the top of the file",
        """\
```yaml
storage_providers:
  minio:
    mine: {endpoint: https://minio.example.org, access_key: …, secret_key: …}
```

An input or output names one by kind and id, `minio.mine`: [providers.md](providers.md). What is
secret here goes to AWS Secrets Manager and nowhere else; no message shows it.
""",
    ),
    "scar": (
        "`scar`, at the top of the file and of scar.cfg",
        "```yaml\nscar: {target: local}\n```\n",
    ),
}

LIMITS = """\
## AWS's limits, and what carries what

| what | limit | so |
|---|---|---|
| scripts, `container.environment`, `extra_payload` | an image's 10 GB | they are in the image |
| `lambda.environment` | 4 KB, names and values | checked; use `container.environment` |
| job definition | 24 KiB | ours holds references only |
| event of a job | 8,192 characters of overrides | longer ones go through `deployment.bucket` |
| `memory`, `timeout` of a function | 10,240 MB, 900 s | checked; use `execution_mode: batch` |
| tags of a function | 50 | checked; 40 are yours |
| compute environments in a region | 50 | checked; functions that ask for the same share one |
| triggers for one object of a bucket | 1 | checked: inputs must not overlap |
| vCPUs and memory of a Fargate job | certain pairs | checked |
| name of a job's image | 255 characters | checked for `create_image: false`; ours are short |
"""


def main() -> int:
    """Write the files, or with `--check` compare them."""
    wanted = {
        DOCS / "fdl.schema.json": json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n",
        DOCS / "fdl.md": page(),
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.name} is stale: run `make schema`")
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path])
        print(f"wrote {path.relative_to(DOCS.parent)}")
    return 0


def page() -> str:
    """docs/fdl.md."""
    return "\n".join([HEAD, *_tables(), LIMITS, *_old()]).rstrip() + "\n"


def _tables() -> Iterator[str]:
    for name, its in groupby(keys(), key=lambda key: key.path.partition(".")[0]):
        title, example = SECTIONS[name]
        yield f"## {title}\n\n{example}"
        yield "| key | value | default | |\n|---|---|---|---|"
        yield from (_row(key, name) for key in its)
        yield ""


def _row(key: Key, section: str) -> str:
    default = {"": "required", "-": ""}.get(key.default, f"`{key.default}`")
    path = key.path.removeprefix(f"{section}.")
    return f"| `{path}` | {key.values} | {default} | {key.text.replace('|', chr(92) + '|')} |"


def _old() -> Iterator[str]:
    yield "## Keys of the reference implementation\n"
    yield "Accepted where they were, with the meaning they have here:\n"
    yield "| written | means |\n|---|---|"
    for old, new in MOVED:
        yield f"| `{'.'.join(old)}` | `{'.'.join(new)}` |"
    yield "\nAccepted and ignored, with a warning unless they ask for nothing:\n"
    yield "| key | |\n|---|---|"
    for path, why in IGNORED_KEYS.items():
        yield f"| `{'.'.join(path)}` | {why.removeprefix('ignored: ')} |"


if __name__ == "__main__":
    sys.exit(main())
