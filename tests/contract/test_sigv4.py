"""Our signatures equal botocore's on any request."""

import hashlib
from datetime import UTC, datetime

import botocore.auth
import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from scar_supervisor import sigv4

NOW = datetime(2026, 1, 31, 12, 0, 5, tzinfo=UTC)
HOST = "b.s3.eu-west-1.amazonaws.com"

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
keys = st.one_of(
    text, st.lists(st.sampled_from(["..", ".", "", "a b", "+", "%41", "é", "~"])).map("/".join)
)
header_values = st.text(st.sampled_from("ab 1+/=,;:\t"), max_size=12).map(str.strip)
header_names = st.from_regex(r"[Xx]-[A-Za-z0-9]{1,8}", fullmatch=True)


def theirs(auth, request, digest):
    prepared = AWSRequest(
        request.method, f"https://{HOST}{request.path}", dict(request.headers), b""
    )
    if request.query:
        prepared.url += f"?{request.query}"
    if digest is not None:
        prepared.headers["X-Amz-Content-SHA256"] = digest
    auth.add_auth(prepared)
    return prepared.headers["Authorization"]


def ours(request, service, token):
    signed = sigv4.signed_headers(
        request,
        sigv4.Keys("AKIDEXAMPLE", "secret+/key", token),
        sigv4.Scope(service, "eu-west-1", NOW.strftime("%Y%m%dT%H%M%SZ")),
    )
    return signed["Authorization"]


@given(
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE"]),
    key=keys,
    query=st.lists(st.tuples(text, text), max_size=4),
    headers=st.dictionaries(header_names.map(str.lower), header_values, max_size=4),
    token=st.sampled_from([None, "token/+="]),
)
def test_s3_requests_are_signed_as_botocore_signs_them(method, key, query, headers, token):
    path = "/" + sigv4.encode_path(key)
    digest = hashlib.sha256(key.encode()).hexdigest()
    request = sigv4.Unsigned(
        method, path, sigv4.encode_query(query), {"Host": HOST, **headers}, digest
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.auth, "get_current_datetime", lambda: NOW.replace(tzinfo=None))

        class Auth(S3SigV4Auth):
            def payload(self, request):
                return digest

        auth = Auth(Credentials("AKIDEXAMPLE", "secret+/key", token), "s3", "eu-west-1")
        assert ours(request, "s3", token) == theirs(auth, request, digest)


@given(
    path=st.lists(st.sampled_from(["v1", "submitjob", "..", ".", "", "a%20b"])).map("/".join),
    query=st.lists(st.tuples(text, text), max_size=3),
)
def test_requests_to_other_services_are_signed_as_botocore_signs_them(path, query):
    empty = hashlib.sha256(b"").hexdigest()
    request = sigv4.Unsigned(
        "POST", f"/{path}", sigv4.encode_query(query), {"Host": HOST, "Content-Type": "a/b"}, empty
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.auth, "get_current_datetime", lambda: NOW.replace(tzinfo=None))
        auth = SigV4Auth(Credentials("AKIDEXAMPLE", "secret+/key", None), "batch", "eu-west-1")
        assert ours(request, "batch", None) == theirs(auth, request, None)


@given(keys)
def test_an_object_path_on_the_wire_is_the_one_botocore_sends(key):
    from botocore.utils import percent_encode

    assert sigv4.encode_path(key) == percent_encode(key, safe="/~")


def test_keys_do_not_show_their_secret():
    assert "secret" not in repr(sigv4.Keys("AKIDEXAMPLE", "secret", "secret"))
