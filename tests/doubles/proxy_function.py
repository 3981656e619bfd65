"""A function for tests behind API Gateway: gives back the event it got, or does what its body says.

`answer`: what to give to Lambda, `sleep`: seconds before, `raise`: error message, `write`: a file
to write the event to.
"""

import http.client
import json
import os
import time
from pathlib import Path

PREFIX = "/2018-06-01/runtime/invocation"


def main() -> None:
    api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    while True:
        api.request("GET", f"{PREFIX}/next")
        got = api.getresponse()
        event = json.loads(got.read())
        request_id = got.headers["Lambda-Runtime-Aws-Request-Id"]
        end, said = serve(event)
        api.request("POST", f"{PREFIX}/{request_id}/{end}", json.dumps(said))
        api.getresponse().read()


def serve(event: dict[str, object]) -> tuple[str, object]:
    try:
        told = json.loads(str(event["body"]))
    except ValueError:
        told = {}
    if not isinstance(told, dict):
        told = {}
    time.sleep(told.get("sleep", 0))
    if "write" in told:
        Path(told["write"]).write_text(json.dumps(event))
    if "raise" in told:
        return "error", {"errorMessage": told["raise"], "errorType": "ScriptFailed"}
    return "response", told.get("answer", {"statusCode": 200, "body": json.dumps(event)})


main()
