"""A function for tests: speaks the Runtime API with http.client and does what its event says.

`print`: lines to write, `sleep`: seconds, `exit`: exit code to die with, `raise`: error message,
`size`: answer with so many bytes, `fail_until`: [file, n] fails until the file has n bytes (one is
added a time), `environment`: names of variables to answer. Argument `init-error` fails at init,
`init-exit` dies there.
"""

import http.client
import json
import os
import sys
import time


def main() -> None:
    api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    prefix = "/2018-06-01/runtime"
    if "init-error" in sys.argv:
        body = json.dumps({"errorMessage": "no config", "errorType": "ConfigFault"})
        headers = {"Lambda-Runtime-Function-Error-Type": "ConfigFault"}
        post(api, f"{prefix}/init/error", body, headers)
        sys.exit(1)
    if "init-exit" in sys.argv:
        print("cannot begin")
        sys.exit(3)
    served = 0
    while True:
        api.request("GET", f"{prefix}/invocation/next")
        answer = api.getresponse()
        event = json.loads(answer.read())
        served += 1
        request_id = answer.headers["Lambda-Runtime-Aws-Request-Id"]
        try:
            result = json.dumps({"served": served, "pid": os.getpid(), **serve(event, answer)})
        except RuntimeError as exc:
            body = json.dumps({"errorMessage": str(exc), "errorType": "ScriptFailed"})
            headers = {"Lambda-Runtime-Function-Error-Type": "ScriptFailed"}
            post(api, f"{prefix}/invocation/{request_id}/error", body, headers)
        else:
            post(api, f"{prefix}/invocation/{request_id}/response", result, {})


def serve(event: object, answer: http.client.HTTPResponse) -> dict[str, object]:
    if not isinstance(event, dict):
        return {"event": event}
    for line in event.get("print", []):
        print(line)
    sys.stdout.flush()
    time.sleep(event.get("sleep", 0))
    if "exit" in event:
        os._exit(event["exit"])
    if "raise" in event:
        raise RuntimeError(event["raise"])
    if "fail_until" in event:
        path, wanted = event["fail_until"]
        with open(path, "a+") as file:
            file.write("x")
        if os.path.getsize(path) < wanted:
            raise RuntimeError("not yet")
    return {
        "event": event,
        "padding": "x" * event.get("size", 0),
        "headers": dict(answer.headers),
        "environment": {name: os.environ.get(name) for name in event.get("environment", [])},
    }


def post(api: http.client.HTTPConnection, path: str, body: str, headers: dict[str, str]) -> None:
    api.request("POST", path, body, headers)
    api.getresponse().read()


main()
