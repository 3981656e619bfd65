"""Storages that are not the account's own: an S3 server that checks who asks, and the secrets."""

from __future__ import annotations

import json
import ssl
import threading
from pathlib import Path
from typing import Any

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from scar_local.http import Exchange, Server
from tests.doubles.local_s3 import LocalS3
from tests.doubles.supervised import Cloud


class Minio(LocalS3):
    """Buckets that open to one pair of keys: their id and their signature are checked."""

    def __init__(self, directory: Path, access_key: str, secret_key: str) -> None:
        self.access_key, self.secret_key = access_key, secret_key
        self.refused: list[str] = []
        self._tls: Server | None = None
        super().__init__(directory)
        self.client = self._own_client()

    @property
    def value(self) -> dict[str, str]:
        """What the secret of this provider holds."""
        return {"access_key": self.access_key, "secret_key": self.secret_key}

    def serve_tls(self, context: ssl.SSLContext) -> str:
        """The address of the same server by https."""
        server = Server(0, self._answer)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self._tls = server
        return f"https://127.0.0.1:{server.server_port}"

    def close(self) -> None:
        if self._tls:
            self._tls.shutdown()
            self._tls.server_close()
        super().close()

    def get(self, bucket: str, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return data

    def keys(self, bucket: str) -> list[str]:
        listed = self.client.list_objects_v2(Bucket=bucket)
        return [item["Key"] for item in listed.get("Contents", [])]

    def _own_client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )

    def _answer(self, exchange: Exchange) -> None:
        if code := self._refusal(exchange):
            self.refused.append(code)
            text = f"<Error><Code>{code}</Code><Message>who are you?</Message></Error>"
            exchange.reply(403, text.encode(), content_type="application/xml")
            return
        super()._answer(exchange)

    def _refusal(self, exchange: Exchange) -> str:
        given = exchange.headers.get("Authorization", "")
        if not given.startswith(f"AWS4-HMAC-SHA256 Credential={self.access_key}/"):
            return "InvalidAccessKeyId"
        names = given.partition("SignedHeaders=")[2].partition(",")[0].split(";")
        signed = {name: exchange.headers[name] for name in names}
        query = f"?{exchange.raw_query}" if exchange.raw_query else ""
        request = AWSRequest(exchange.method, f"{self.url}{exchange.path}{query}", signed)
        request.context["timestamp"] = exchange.headers["X-Amz-Date"]
        region = given.partition("Credential=")[2].split("/")[2]
        auth = S3SigV4Auth(Credentials(self.access_key, self.secret_key), "s3", region)
        canonical = auth.canonical_request(request)
        signature = auth.signature(auth.string_to_sign(request, canonical), request)
        return "" if given.endswith(f"Signature={signature}") else "SignatureDoesNotMatch"


class CloudWithSecrets(Cloud):
    """The cloud of the supervisor's tests, and a Secrets Manager of its own."""

    def __init__(self, directory: Path) -> None:
        self.secrets: dict[str, dict[str, str] | str] = {}
        self.asked: list[str] = []
        self.denies = False
        self.bundle = ""
        super().__init__(directory)

    @property
    def environment(self) -> dict[str, str]:
        """As its parent's; with a file of certificates to trust where there is one."""
        return super().environment | ({"AWS_CA_BUNDLE": self.bundle} if self.bundle else {})

    def _answer(self, exchange: Exchange) -> None:
        if "/secretsmanager/aws4_request" not in exchange.headers.get("Authorization", ""):
            super()._answer(exchange)
            return
        assert exchange.headers["X-Amz-Target"] == "secretsmanager.GetSecretValue"
        name = json.loads(exchange.body.read())["SecretId"]
        self.asked.append(name)
        if self.denies:
            words = f"User: x is not authorized to perform: secretsmanager:GetSecretValue on {name}"
            self._refuse(exchange, "AccessDeniedException", words)
        elif name not in self.secrets:
            words = "Secrets Manager can't find the specified secret."
            self._refuse(exchange, "ResourceNotFoundException", words)
        else:
            value = self.secrets[name]
            text = value if isinstance(value, str) else json.dumps(value)
            answer = json.dumps({"Name": name, "SecretString": text})
            exchange.reply(200, answer.encode(), content_type="application/x-amz-json-1.1")

    def _refuse(self, exchange: Exchange, code: str, message: str) -> None:
        body = json.dumps({"__type": code, "message": message}).encode()
        exchange.reply(400, body, content_type="application/x-amz-json-1.1")
