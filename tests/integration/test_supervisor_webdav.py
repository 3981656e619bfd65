"""Outputs on a WebDAV server: the real supervisor against WsgiDAV."""

import json

import pytest

from scar_supervisor import contract
from scar_supervisor.contract import ObjectPath, StorageProvider
from tests.doubles.providers import CloudWithSecrets
from tests.doubles.supervised import Supervised, a_config
from tests.doubles.webdav import WebDavServer

SECRET, PASSWORD = "scar/f/webdav.home", "pässword: t0ps3cret"


@pytest.fixture
def cloud(tmp_path):
    cloud = CloudWithSecrets(tmp_path / "cloud")
    cloud.secrets[SECRET] = {"login": "me", "password": PASSWORD}
    yield cloud
    cloud.close()


@pytest.fixture
def server(tmp_path):
    server = WebDavServer(tmp_path / "dav", "me", PASSWORD)
    yield server
    server.close()


@pytest.fixture
def run(tmp_path, cloud, server):
    started = []

    def run(script, path=("results", "today"), **config):
        platform = {"AWS_BATCH_JOB_ID": "job-1", **cloud.environment, contract.EVENT_VARIABLE: "{}"}
        config = {
            "outputs": (ObjectPath("webdav.home", *path),),
            "providers": {"webdav.home": StorageProvider(SECRET, server.url)},
            **config,
        }
        started.append(Supervised(tmp_path / "job", a_config(**config), script, platform))
        return started[-1].wait(), started[-1].log

    yield run
    for supervised in started:
        supervised.close()


def once(method, status):
    """One fault for the next request of a method."""
    left = [status]
    return lambda asked: left.pop() if asked == method and left else None


def test_files_and_folders_appear_whole_and_nothing_else_does(run, server):
    code, log = run(
        'cd "$TMP_OUTPUT_DIR"; mkdir -p "a b/ü"; echo 1 > "a b/ü/x+y%20&.txt"; echo 2 > top; : > no'
    )
    assert code == 0, log
    assert server.files() == {
        "results/today/a b/ü/x+y%20&.txt": b"1\n",
        "results/today/top": b"2\n",
        "results/today/no": b"",
    }
    assert all("/.scar-" in path for method, path in server.asked if method == "PUT")


def test_a_file_that_is_there_is_replaced_and_large_ones_are_streamed(run, server):
    (server.folder / "My Results").mkdir()
    (server.folder / "My Results" / "x").write_bytes(b"old")
    script = 'head -c 40000000 /dev/zero > "$TMP_OUTPUT_DIR/x"'
    code, log = run(script, path=("My Results",))
    assert code == 0, log
    assert server.files() == {"My Results/x": bytes(40_000_000)}
    assert "MKCOL" not in [method for method, _ in server.asked]


def test_a_server_in_trouble_is_asked_again(run, server):
    faults = [once("PUT", "503 Busy"), once("MKCOL", "429 Slow"), once("MOVE", "500 Oh")]
    server.before = lambda method: next((s for fault in faults if (s := fault(method))), None)
    code, log = run('echo > "$TMP_OUTPUT_DIR/x"')
    assert code == 0, log
    assert server.files() == {"results/today/x": b"\n"}


def test_a_move_whose_answer_is_lost_is_known_to_be_done(run, server):
    server.after = once("MOVE", "502 Lost")
    code, log = run('echo > "$TMP_OUTPUT_DIR/x"')
    assert code == 0, log
    assert server.files() == {"results/today/x": b"\n"}
    assert [method for method, _ in server.asked].count("MOVE") == 2


@pytest.mark.parametrize(
    ("method", "status", "told"),
    [
        ("MOVE", "403 Forbidden", "MOVE answers 403 Forbidden"),
        ("PUT", "507 Full", "PUT answers 507 Insufficient Storage"),
        ("PUT", "302 Found", "PUT answers 302 Found to ``: name that address"),
    ],
)
def test_a_refusal_leaves_what_was_there_and_no_part(run, server, method, status, told):
    (server.folder / "results").mkdir()
    (server.folder / "results" / "x").write_bytes(b"old")
    server.before = lambda asked: status if asked == method else None
    code, log = run('echo new > "$TMP_OUTPUT_DIR/x"', path=("results",))
    assert code == contract.EXIT_STAGING
    assert f"failed: webdav.home://results/x: {told}" in log
    assert server.files() == {"results/x": b"old"}


def test_a_login_that_is_refused_is_told_and_the_password_is_not(run, server, cloud):
    cloud.secrets[SECRET] = {"login": "me", "password": "wr0ng"}
    code, log = run('echo new > "$TMP_OUTPUT_DIR/x"; env')
    assert code == contract.EXIT_STAGING
    assert "webdav.home://results/today/x: the login is refused" in log
    assert "wr0ng" not in log
    assert server.files() == {}
    assert cloud.asked == [SECRET] * 2  # once more: it might have been replaced


def test_a_server_that_is_not_there_is_told_with_the_file(run, server):
    server.close()
    code, log = run('echo new > "$TMP_OUTPUT_DIR/x"')
    assert code == contract.EXIT_STAGING
    assert "webdav.home://results/today/x: " in log
    assert json.dumps(PASSWORD)[1:-1] not in log
