import base64
import json
import os

import pytest

from scar.errors import ImageError
from scar.images.login import IDENTITY_TOKEN, Login, docker_login

HUB = "registry-1.docker.io"


def auth(text):
    return {"auth": base64.b64encode(text.encode()).decode()}


@pytest.fixture
def logins(tmp_path):
    """Ask with a config.json, and a helper that answers with its own name and the server's."""

    def ask(host, config, *, helper="", says='{"Username":"u","Secret":"%s"}', code=0):
        (tmp_path / "config.json").write_text(json.dumps(config))
        if helper:
            program = tmp_path / f"docker-credential-{helper}"
            said = says.replace("%s", "$0-$1-$server") if "%s" in says else says
            program.write_text(
                f"#!/bin/sh\nread -r server\ncat <<E\n{said}\nE\nexit {code}\n".replace(
                    "$0", "${0##*/}"
                )
            )
            program.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        return docker_login(host, {"DOCKER_CONFIG": str(tmp_path), "PATH": path})

    return ask


def test_logins_in_the_file_are_found_under_every_name_docker_writes(logins):
    auths = {
        "https://index.docker.io/v1/": auth("me:secret:x"),
        "ghcr.io": auth("you:t"),
        "https://quay.io/v2/": auth("q:p"),
        "127.0.0.1:5000": auth("local:p"),
        "token.io": {"identitytoken": "refresh"},
        "broken.io": {"auth": "%%"},
        "empty.io": {},
    }
    config = {"auths": auths}
    assert logins(HUB, config) == Login("me", "secret:x")
    assert logins("ghcr.io", config) == Login("you", "t")
    assert logins("quay.io", config) == Login("q", "p")
    assert logins("127.0.0.1:5000", config) == Login("local", "p")
    assert logins("token.io", config) == Login(IDENTITY_TOKEN, "refresh")
    for host in ("127.0.0.1", "broken.io", "empty.io", "evil-ghcr.io"):
        assert logins(host, config) is None


def test_without_a_file_there_is_no_login(tmp_path):
    assert docker_login("ghcr.io", {"DOCKER_CONFIG": str(tmp_path)}) is None
    assert docker_login("ghcr.io", {"HOME": str(tmp_path)}) is None


def test_the_file_is_looked_for_in_the_home_folder(tmp_path):
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text(json.dumps({"auths": {"q.io": auth("a:b")}}))
    assert docker_login("q.io", {"HOME": str(tmp_path)}) == Login("a", "b")


def test_helpers_are_asked_for_the_server_and_the_hosts_own_comes_first(logins):
    config = {"credHelpers": {"ecr.example": "one"}, "credsStore": "all", "auths": {}}
    assert logins("ecr.example", config, helper="one") == Login(
        "u", "docker-credential-one-get-ecr.example"
    )
    assert logins(HUB, config, helper="all") == Login(
        "u", "docker-credential-all-get-https://index.docker.io/v1/"
    )


def test_where_the_helper_knows_nothing_the_file_is_asked(logins):
    config = {"credsStore": "none", "auths": {"q.io": auth("a:b"), "r.io": {}}}
    said = "credentials not found in native keychain"
    assert logins("q.io", config, helper="none", says=said, code=1) == Login("a", "b")
    assert logins("r.io", config, helper="none", says=said, code=1) is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "`docker-credential-x` that Docker's config names is not installed"),
        ({"helper": "x", "says": "cannot unlock", "code": 1}, "does not work: cannot unlock"),
        ({"helper": "x", "says": "no json"}, "gives no user and secret"),
    ],
)
def test_a_helper_that_does_not_work_is_told(logins, given, why):
    with pytest.raises(ImageError, match=why):
        logins("q.io", {"credsStore": "x"}, **given)


def test_a_helper_is_a_name_never_a_path(logins):
    with pytest.raises(ImageError, match="not installed"):
        logins("q.io", {"credsStore": "../../bin/sh"})


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_file_that_cannot_be_read_is_told(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ImageError, match="cannot read"):
        docker_login("q.io", {"DOCKER_CONFIG": str(tmp_path)})


def test_a_login_does_not_show_its_password():
    assert "hunter2" not in repr(Login("me", "hunter2"))
