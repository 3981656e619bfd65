"""API Gateway and its APIs over a real socket, with functions as real processes."""

import base64
import http.client
import json
import threading
import time

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from scar_local.door import Control, Door
from scar_local.functions import Functions, Settings
from scar_local.gateway import Gateway
from scar_local.gateway_endpoint import BODY_LIMIT, PREFIX, Endpoint
from scar_local.http import Server
from scar_local.identity import Tagging
from scar_local.logs import Logs
from scar_local.s3.service import S3
from scar_local.store import Store
from tests.doubles.local_lambda import IMAGE, PROGRAM, ROLE, Nothing
from tests.doubles.process_engine import ProcessEngine

REGION = "eu-west-1"
FUNCTION = f"arn:aws:lambda:{REGION}:000000000000:function:f"
URI = f"arn:aws:apigateway:{REGION}:lambda:path/2015-03-31/functions/{FUNCTION}/invocations"
BY_HEADER = {
    "integration.request.header.X-Amz-Invocation-Type": (
        "method.request.header.X-Amz-Invocation-Type"
    )
}


class House:
    """The services on one data directory; `restart` makes new ones, as a new daemon would."""

    def __init__(self, directory, limit_s=29.0):
        self._directory, self._limit_s = directory, limit_s
        self._server = Server(0, lambda exchange: self._door.answer(exchange))
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self._open()
        self.lambdas, self.apis = self.client("lambda"), self.client("apigateway")

    def _open(self):
        store = Store(self._directory)
        engine = ProcessEngine({IMAGE: PROGRAM.with_name("proxy_function.py")})
        self.functions = Functions(
            store, engine, Logs(store), lambda: "", settings=Settings(8, 300.0, (0.1, 0.1))
        )
        gateway, nothing = Gateway(store), Nothing()
        self.functions.start(S3(store, lambda db, created: None))
        services = {
            "lambda": self.functions,
            "apigateway": gateway,
            "tagging": Tagging([self.functions, gateway]),
        }
        endpoint = Endpoint(gateway, self.functions, self._limit_s)
        control = Control(dict, lambda: None)
        self._door = Door(services, nothing, nothing, nothing, control, endpoint)

    def restart(self):
        self.functions.stop()
        self._open()

    def close(self):
        self.functions.stop()
        self._server.shutdown()
        self._server.server_close()

    def client(self, name):
        return boto3.client(
            name,
            region_name=REGION,
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id="local",
            aws_secret_access_key="local",
            config=Config(retries={"total_max_attempts": 1}),
        )

    def create_function(self):
        self.lambdas.create_function(
            FunctionName="f", Role=ROLE, PackageType="Image", Code={"ImageUri": IMAGE}, Timeout=20
        )

    def create_api(self, part="{proxy+}", method="ANY", integration=None, **options):
        api = self.apis.create_rest_api(name="cow-api", **options)
        resource = self.apis.create_resource(
            restApiId=api["id"], parentId=api["rootResourceId"], pathPart=part
        )
        at = {"restApiId": api["id"], "resourceId": resource["id"], "httpMethod": method}
        self.apis.put_method(**at, authorizationType="NONE")
        self.integrate(at, **(integration or {}))
        self.apis.create_deployment(restApiId=api["id"], stageName="scar")
        return api["id"], at

    def integrate(self, at, **options):
        options = {"uri": URI, "requestParameters": BY_HEADER, **options}
        self.apis.put_integration(**at, type="AWS_PROXY", integrationHttpMethod="POST", **options)

    def ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        answer.content = answer.read()
        connection.close()
        return answer

    def call(self, api_id, told=None, path="/launch", stage="scar", headers=None):
        body = None if told is None else json.dumps(told)
        method = "GET" if body is None else "POST"
        return self.ask(method, f"{PREFIX}{api_id}/{stage}{path}", body, headers)


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path)
    made.create_function()
    yield made
    made.close()


def says(answer):
    return answer.status, json.loads(answer.content)


def test_a_get_becomes_an_event_and_its_answer_an_http_answer(house):
    api_id, at = house.create_api()
    answer = house.call(api_id, path="/launch/x?a=1&a=2")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["x-amzn-RequestId"]
    event = json.loads(answer.content)
    assert event["resource"] == "/{proxy+}"
    assert event["pathParameters"] == {"proxy": "launch/x"}
    assert event["queryStringParameters"] == {"a": "2"}
    assert event["requestContext"]["resourceId"] == at["resourceId"]
    assert event["requestContext"]["path"] == "/scar/launch/x"
    assert event["requestContext"]["requestId"] == answer.headers["x-amzn-RequestId"]


def test_an_api_also_answers_to_its_host_name(house):
    api_id, _ = house.create_api()
    host = {"Host": f"{api_id}.execute-api.{REGION}.amazonaws.com"}
    assert json.loads(house.ask("GET", "/scar/launch", headers=host).content)["path"] == "/launch"


def test_the_function_decides_status_headers_and_body(house):
    api_id, _ = house.create_api()
    said = {
        "statusCode": 418,
        "headers": {"Content-Type": "text/plain"},
        "multiValueHeaders": {"Set-Cookie": ["a=1", "b=2"]},
        "body": "short and stout",
    }
    answer = house.call(api_id, {"answer": said})
    assert (answer.status, answer.content) == (418, b"short and stout")
    assert answer.headers["Content-Type"] == "text/plain"
    assert answer.headers.get_all("Set-Cookie") == ["a=1", "b=2"]


def test_binary_travels_whole_where_the_api_has_its_media_type(house):
    api_id, _ = house.create_api(binaryMediaTypes=["*/*"])
    path = f"{PREFIX}{api_id}/scar/launch"
    event = json.loads(house.ask("POST", path, b"\x00\xff").content)
    assert (event["body"], event["isBase64Encoded"]) == ("AP8=", True)


def test_a_base64_answer_stays_text_without_binary_media_types(house):
    api_id, _ = house.create_api()
    said = {"body": base64.b64encode(b"moo").decode(), "isBase64Encoded": True}
    assert house.call(api_id, {"answer": said}).content == b"bW9v"


@pytest.mark.parametrize(
    ("path", "stage", "message"),
    [
        ("", "scar", "Missing Authentication Token"),
        ("/", "scar", "Missing Authentication Token"),
        ("/launch", "other", "Forbidden"),
    ],
)
def test_unknown_paths_and_stages_are_forbidden(house, path, stage, message):
    api_id, _ = house.create_api()
    assert says(house.call(api_id, path=path, stage=stage)) == (403, {"message": message})
    assert says(house.call("nothing", path=path)) == (403, {"message": "Forbidden"})


def test_a_method_that_is_not_there_is_forbidden(house):
    api_id, _ = house.create_api("cow", "GET")
    assert house.call(api_id, path="/cow").status == 200
    answer = house.call(api_id, {}, path="/cow")
    assert says(answer) == (403, {"message": "Missing Authentication Token"})
    assert answer.headers["x-amzn-ErrorType"] == "MissingAuthenticationTokenException"


def test_failures_are_not_told_to_strangers(house):
    api_id, _ = house.create_api()
    wrong = (502, {"message": "Internal server error"})
    assert says(house.call(api_id, {"raise": "a secret"})) == wrong
    assert says(house.call(api_id, {"answer": {"not": "an answer"}})) == wrong
    assert says(house.call(api_id, {"answer": None})) == wrong
    house.lambdas.delete_function(FunctionName="f")
    assert says(house.call(api_id)) == (500, {"message": "Internal server error"})


def test_a_function_that_takes_too_long_goes_on_after_the_timeout(house, tmp_path):
    api_id, _ = house.create_api(integration={"timeoutInMillis": 300})
    file = tmp_path / "done"
    started = time.monotonic()
    answer = house.call(api_id, {"sleep": 1, "write": str(file)})
    assert time.monotonic() - started < 1
    assert says(answer) == (504, {"message": "Endpoint request timed out"})
    assert not file.exists()
    wait_for(file)


def test_no_call_takes_longer_than_the_limit(tmp_path):
    house = House(tmp_path, limit_s=0.3)
    try:
        house.create_function()
        api_id, _ = house.create_api()
        assert house.call(api_id, {"sleep": 1}).status == 504
    finally:
        house.close()


def test_an_asynchronous_call_runs_the_function_and_answers_502_as_on_aws(house, tmp_path):
    api_id, _ = house.create_api()
    file = tmp_path / "event"
    headers = {"X-Amz-Invocation-Type": "Event"}
    answer = house.call(api_id, {"sleep": 0.5, "write": str(file)}, headers=headers)
    assert says(answer) == (502, {"message": "Internal server error"})
    assert not file.exists()
    assert json.loads(wait_for(file))["headers"]["X-Amz-Invocation-Type"] == "Event"


def test_bodies_end_where_api_gateway_and_lambda_say(house):
    api_id, _ = house.create_api()
    path = f"{PREFIX}{api_id}/scar/launch"
    refused = (413, {"message": "HTTP content length exceeded 10485760 bytes."})
    assert says(house.ask("POST", path, b"x" * (BODY_LIMIT + 1))) == refused
    assert house.ask("POST", path, b"x" * (6 << 20)).status == 413
    assert house.ask("POST", path, b"x" * (2 << 20)).status == 200


def test_a_change_shows_after_the_next_deployment(house):
    api_id, at = house.create_api()
    house.apis.delete_resource(restApiId=api_id, resourceId=at["resourceId"])
    assert house.call(api_id).status == 200
    root = house.apis.get_rest_api(restApiId=api_id)["rootResourceId"]
    at = {"restApiId": api_id, "resourceId": root, "httpMethod": "GET"}
    house.apis.put_method(**at, authorizationType="NONE")
    house.integrate(at)
    house.apis.create_deployment(restApiId=api_id, stageName="scar", variables={"v": "1"})
    assert house.call(api_id).status == 403
    assert json.loads(house.call(api_id, path="/").content)["stageVariables"] == {"v": "1"}


def test_apis_survive_a_restart(house):
    api_id, _ = house.create_api()
    house.restart()
    assert house.call(api_id).status == 200


def test_what_was_put_is_what_is_got(house):
    api_id, at = house.create_api()
    apis = house.apis
    assert apis.get_rest_api(restApiId=api_id)["name"] == "cow-api"
    plain = apis.get_resources(restApiId=api_id)["items"]
    assert [one["path"] for one in plain] == ["/", "/{proxy+}"]
    assert plain[1]["resourceMethods"] == {"ANY": {}}
    whole = apis.get_resources(restApiId=api_id, embed=["methods"])["items"][1]
    method = apis.get_method(**at)
    assert method["methodIntegration"]["uri"] == URI
    assert method["methodIntegration"]["timeoutInMillis"] == 29000
    assert whole["resourceMethods"]["ANY"]["methodIntegration"] == method["methodIntegration"]
    integration = apis.get_integration(**at)
    assert integration["requestParameters"] == BY_HEADER
    stage = apis.get_stage(restApiId=api_id, stageName="scar")
    deployments = apis.get_deployments(restApiId=api_id)["items"]
    assert [one["id"] for one in deployments] == [stage["deploymentId"]]
    stages = apis.get_stages(restApiId=api_id)["item"]
    assert [one["stageName"] for one in stages] == ["scar"]
    apis.create_stage(restApiId=api_id, stageName="two", deploymentId=stage["deploymentId"])
    assert house.call(api_id, stage="two").status == 200
    apis.delete_stage(restApiId=api_id, stageName="two")
    assert house.call(api_id, stage="two").status == 403
    patches = [
        {"op": "replace", "path": "/name", "value": "dog-api"},
        {"op": "add", "path": "/binaryMediaTypes/image~1png"},
    ]
    changed = apis.update_rest_api(restApiId=api_id, patchOperations=patches)
    assert (changed["name"], changed["binaryMediaTypes"]) == ("dog-api", ["image/png"])
    apis.delete_rest_api(restApiId=api_id)
    with pytest.raises(apis.exceptions.NotFoundException, match="Invalid API identifier"):
        apis.get_rest_api(restApiId=api_id)


def test_apis_come_in_pages_and_are_found_by_their_tags(house):
    ids = [house.apis.create_rest_api(name="same", tags={"n": str(n)})["id"] for n in range(3)]
    pages = house.apis.get_paginator("get_rest_apis").paginate(PaginationConfig={"PageSize": 2})
    assert [api["id"] for page in pages for api in page["items"]] == ids
    arn = f"arn:aws:apigateway:{REGION}::/restapis/{ids[1]}"
    house.apis.tag_resource(resourceArn=arn, tags={"m": "2"})
    house.apis.untag_resource(resourceArn=arn, tagKeys=["n", "absent"])
    assert house.apis.get_tags(resourceArn=arn)["tags"] == {"m": "2"}
    found = house.client("resourcegroupstaggingapi").get_resources(
        ResourceTypeFilters=["apigateway:restapis"], TagFilters=[{"Key": "m"}]
    )
    assert [one["ResourceARN"] for one in found["ResourceTagMappingList"]] == [arn]


def test_what_cannot_be_is_refused_with_the_reason(house):
    api_id, at = house.create_api()
    apis = house.apis
    root = apis.get_rest_api(restApiId=api_id)["rootResourceId"]
    child = {"restApiId": api_id, "parentId": root}
    empty = apis.create_rest_api(name="empty")["id"]
    cases = [
        ("BadRequest", "AWS_PROXY is", lambda: apis.put_integration(**at, type="MOCK")),
        ("BadRequest", "Invalid ARN", lambda: house.integrate(at, uri="http://example.org")),
        ("BadRequest", "Timeout should be", lambda: house.integrate(at, timeoutInMillis=30000)),
        ("BadRequest", "NONE", lambda: apis.put_method(**at, authorizationType="AWS_IAM")),
        ("Conflict", "already exists", lambda: apis.put_method(**at, authorizationType="NONE")),
        ("Conflict", "same parent", lambda: apis.create_resource(**child, pathPart="{proxy+}")),
        ("BadRequest", "a sibling", lambda: apis.create_resource(**child, pathPart="{all+}")),
        ("BadRequest", "path part", lambda: apis.create_resource(**child, pathPart="a/b")),
        ("BadRequest", "any methods", lambda: apis.create_deployment(restApiId=empty)),
        ("NotFound", "Resource", lambda: apis.delete_resource(restApiId=api_id, resourceId="x")),
        ("NotFound", "stage", lambda: apis.get_stage(restApiId=api_id, stageName="x")),
        ("BadRequest", "policy", lambda: apis.create_rest_api(name="a", policy="{}")),
        ("NotImplemented", "GetAuthorizers", lambda: apis.get_authorizers(restApiId=api_id)),
    ]
    for code, words, call in cases:
        with pytest.raises(ClientError, match=f"(?i){words}") as caught:
            call()
        assert caught.value.response["Error"]["Code"].startswith(code), words
    assert house.call(api_id).status == 200


def wait_for(file, limit_s=10):
    end = time.monotonic() + limit_s
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < end, f"{file} did not come"
        time.sleep(0.05)
    return file.read_text()
