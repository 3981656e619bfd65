import pytest

from scar.errors import ImageError
from scar.images.reference import Reference, parse

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("debian", Reference("registry-1.docker.io", "library/debian", "latest")),
        ("debian:12", Reference("registry-1.docker.io", "library/debian", "12")),
        ("grycap/darknet", Reference("registry-1.docker.io", "grycap/darknet", "latest")),
        ("docker.io/grycap/x:1", Reference("registry-1.docker.io", "grycap/x", "1")),
        ("ghcr.io/o/n:t", Reference("ghcr.io", "o/n", "t")),
        ("localhost:5000/n", Reference("localhost:5000", "n", "latest")),
        ("127.0.0.1:5000/a/b/c:1.0-x", Reference("127.0.0.1:5000", "a/b/c", "1.0-x")),
        (f"debian@{DIGEST}", Reference("registry-1.docker.io", "library/debian", "latest", DIGEST)),
        (f"q.io/n:1@{DIGEST}", Reference("q.io", "n", "1", DIGEST)),
    ],
)
def test_a_reference_is_read_as_docker_pull_does(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "UPPER", "a b", "debian:", "debian:-x", "debian@sha256:12", "a//b", "/x"]
)
def test_what_is_no_reference_is_refused_with_examples(text):
    with pytest.raises(ImageError) as caught:
        parse(text)
    assert "debian:12" in caught.value.hint
