"""What is shown: data on stdout, talk on stderr, text or JSON."""

from __future__ import annotations

import io
import json
import sys
from datetime import UTC, datetime

import pytest

from scar.aws.functions import FunctionInfo
from scar.aws.objects import ObjectInfo
from scar.cli import render
from scar.errors import (
    ApplyError,
    CloudError,
    Diagnostic,
    FdlError,
    FunctionFailed,
    Place,
    TransferFailed,
)
from scar.invoke import RunResult
from scar.plan.diff import Step, Verb
from scar.plan.resources import Bucket, Function
from scar.storage import Transfer

COW = FunctionInfo("cow", 512, 300, "host", "", "5.0", "lambda")
RAN = RunResult(200, b"moo\n", "id-1", "/aws/lambda/cow", "stream", None)
STEP = Step(Verb.CREATE, Bucket("video"), "does not exist")


def test_a_fault_shows_its_line_and_a_mark_below():
    fault = Diagnostic(
        "timeout must be 1 to 900 seconds, got 1200",
        "functions.aws[0].lambda.timeout",
        Place("video.yaml", 6, 16, "      timeout: 1200"),
        "less",
    )
    assert render.diagnostic(fault) == (
        "error: timeout must be 1 to 900 seconds, got 1200\n"
        "  --> video.yaml:6:16  functions.aws[0].lambda.timeout\n"
        "   6 |       timeout: 1200\n"
        "     |                ^\n"
        "   help: less"
    )


def test_a_fault_of_a_flag_names_the_flag():
    text = render.diagnostic(Diagnostic("memory is less", "a.b", Place("--memory")))
    assert text == "error: memory is less\n  --> --memory  a.b"


def test_a_very_long_line_is_cut_around_the_fault():
    place = Place("a", 1, 5001, "x" * 5000 + "!" + "y" * 5000)
    line, mark = render.diagnostic(Diagnostic("x", place=place)).splitlines()[2:]
    assert len(line) < 200
    assert line[mark.index("^")] == "!"


def test_the_mark_stands_below_wide_characters_and_tabs():
    place = Place("a", 1, 4, "\t日本x")
    line, mark = render.diagnostic(Diagnostic("x", place=place)).splitlines()[2:]
    assert line.endswith(" |  日本x")
    # Two characters of two columns each stand before it.
    assert mark.index("^") == line.index("x") + 2


def test_functions_are_a_table_or_json(capsys: pytest.CaptureFixture[str]):
    render.functions([COW], as_json=False)
    assert capsys.readouterr().out == (
        "NAME  MEMORY  TIME  IMAGE_ID  API_URL  SUPERVISOR_VERSION\n"
        "cow   512     300   host      -        5.0\n"
    )
    render.functions([COW], as_json=True)
    assert json.loads(capsys.readouterr().out)["Functions"][0] == {
        "Name": "cow",
        "Memory": 512,
        "Timeout": 300,
        "Image_id": "host",
        "Api_gateway": "-",
        "Sup_version": "5.0",
        "Execution_mode": "lambda",
    }


def test_a_run_is_told_as_the_reference_tells_it(capsys: pytest.CaptureFixture[str]):
    render.ran(RAN, as_json=False, shows_output=True)
    assert capsys.readouterr().out == (
        "Request Id: id-1\nLog Group Name: /aws/lambda/cow\nLog Stream Name: stream\nmoo\n"
    )
    render.ran(RAN, as_json=True, shows_output=True)
    assert json.loads(capsys.readouterr().out) == {
        "LambdaOutput": {
            "StatusCode": 200,
            "Payload": "moo\n",
            "LogGroupName": "/aws/lambda/cow",
            "LogStreamName": "stream",
            "RequestId": "id-1",
        }
    }


def test_output_that_is_no_text_passes_through_byte_for_byte(monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    odd = RunResult(200, b"\x00\xff", "i", "g", "s", None)
    render.ran(odd, as_json=False, shows_output=True)
    assert raw.getvalue().endswith(b"s\n\x00\xff")
    raw.truncate(0)
    raw.seek(0)
    render.ran(odd, as_json=True, shows_output=True)
    output = json.loads(raw.getvalue())["LambdaOutput"]
    assert (output["Payload"], output["IsBase64Encoded"]) == ("AP8=", True)


def test_objects_are_keys_without_folder_markers(capsys: pytest.CaptureFixture[str]):
    when = datetime(2026, 1, 2, tzinfo=UTC)
    found = [ObjectInfo("in/", 0, when, "e"), ObjectInfo("in/a b", 3, when, "e")]
    render.objects(found, as_json=False)
    render.objects(found, as_json=True)
    assert capsys.readouterr().out == (
        'in/a b\n{"Objects": [{"Key": "in/a b", "Size": 3, '
        '"LastModified": "2026-01-02T00:00:00+00:00", "ETag": "e"}]}\n'
    )


def test_transfers_are_talk_for_people_and_data_for_programs(capsys: pytest.CaptureFixture[str]):
    sent, same = Transfer("a", "b/a", 1500), Transfer("c", "b/c", 2, "unchanged")
    with render.transferring() as shown:
        shown.show([sent, same], as_json=False)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        "a -> b/a\nc -> b/c (unchanged)\n"
        "1 file copied (1.5 kB), 1 unchanged (`--force` copies all)\n"
    )
    with render.transferring() as shown:
        shown.show([sent, same], as_json=True)
        shown.show([], as_json=True)
    assert capsys.readouterr().out == (
        '{"Transfers": [{"Source": "a", "Target": "b/a", "Size": 1500, "Status": "done"}, '
        '{"Source": "c", "Target": "b/c", "Size": 2, "Status": "unchanged"}]}\n'
        '{"Transfers": []}\n'
    )


def test_what_was_copied_before_a_failure_is_still_a_whole_json_value(
    capsys: pytest.CaptureFixture[str],
):
    def done():
        yield Transfer("a", "b/a", 1)
        raise TransferFailed("1 of 2 files were not sent", ["`c` is bad"])

    with pytest.raises(TransferFailed) as caught, render.transferring() as shown:
        shown.show(done(), as_json=True)
    render.error(caught.value, as_json=True)
    told = capsys.readouterr()
    first, second = map(json.loads, told.out.splitlines())
    assert first["Transfers"][0]["Target"] == "b/a"
    assert second["error"]["faults"] == ["`c` is bad"]
    assert told.err.endswith("error: 1 of 2 files were not sent\n   `c` is bad\n")


def test_a_plan_tells_reasons_and_counts(capsys: pytest.CaptureFixture[str]):
    function = Function("cow", "uri", "role", 1024, 300)
    update = Step(Verb.UPDATE, function, "memory_mb 512 -> 1024", function)
    render.plan([STEP, update], "", as_json=False)
    render.plan([], "scripts travel in the image", as_json=False)
    render.plan([STEP], "not said", as_json=True)
    assert capsys.readouterr().out == (
        "create bucket 'video'\n"
        "update function 'cow'  (memory_mb 512 -> 1024)\n"
        "1 to create, 1 to update\n"
        "nothing to do\nscripts travel in the image\n"
        '{"Plan": [{"Verb": "create", "Kind": "bucket", "Name": "video", '
        '"Why": "does not exist"}]}\n'
    )


def test_steps_are_talk(capsys: pytest.CaptureFixture[str]):
    with render.stepping(1) as on_step:
        on_step(STEP, "start")
        on_step(STEP, "done")
    assert capsys.readouterr() == ("", "created bucket 'video'\n")


@pytest.mark.parametrize(
    ("error", "text", "more"),
    [
        (
            ApplyError("create queue 'q'", "batch.X: no (E)", ["log group 'l'"], ["job 'j'"]),
            "error: could not create queue 'q'\n   batch.X: no (E)\n"
            "   done: log group 'l'    left: job 'j'\n",
            {"why": "batch.X: no (E)", "done": ["log group 'l'"], "left": ["job 'j'"]},
        ),
        (
            FunctionFailed("exit code 7", "id-1", "line 1\nline 2", "scar log"),
            "error: exit code 7\n   request id: id-1\n   | line 1\n   | line 2\n"
            "   help: scar log\n",
            {"requestId": "id-1", "logTail": "line 1\nline 2"},
        ),
        (
            CloudError("s3", "PutObject", "Denied", "no"),
            "error: s3.PutObject: no (Denied)\n",
            {"exitCode": 3, "type": "CloudError"},
        ),
        (
            FdlError([Diagnostic("a"), Diagnostic("b", hint="h")]),
            "error: a\n\nerror: b\n   help: h\n",
            {"exitCode": 2},
        ),
    ],
)
def test_errors_are_text_on_stderr_and_with_json_an_object_too(
    error: ApplyError, text: str, more: dict[str, object], capsys: pytest.CaptureFixture[str]
):
    render.error(error, as_json=False)
    assert capsys.readouterr() == ("", text)
    render.error(error, as_json=True)
    told = capsys.readouterr()
    assert told.err == text
    assert more.items() <= json.loads(told.out)["error"].items()


def test_a_bug_is_one_line_and_its_trace_on_demand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    render.bug(ZeroDivisionError("x"), as_json=False)
    assert capsys.readouterr().err == (
        "bug: ZeroDivisionError: x; please report it with what SCAR_DEBUG=1 shows\n"
    )
    monkeypatch.setenv("SCAR_DEBUG", "1")
    render.bug(ZeroDivisionError("x"), as_json=False)
    assert "ZeroDivisionError: x" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("environment", "is_bold"),
    [({"TERM": "xterm"}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_a_terminal_gets_a_bold_head_unless_it_wants_none(
    environment: dict[str, str], is_bold: bool, monkeypatch: pytest.MonkeyPatch
):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for stream, expected in ((Terminal(), is_bold), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stdout", stream)
        render.functions([], as_json=False)
        assert stream.getvalue().startswith("\x1b[1mNAME") is expected
