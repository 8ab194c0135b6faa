"""`audit-operator verify`: what it says, and by which exit code."""

import json
import os
import re
import stat
import sys
from pathlib import Path

import pytest
from commands import ROOT, call, spawn

sys.path.insert(0, str(ROOT / "tests/receiver"))
from integrity_cases import KEY, OTHER_KEY, Archive, numbered, public_pem

sys.path.pop(0)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Three closed files and the one being written; the public key beside them."""
    found = Archive(tmp_path / "archive", tmp_path / "state")
    found.folder.mkdir()
    found.write(*numbered(4))
    (tmp_path / "audit.pub").write_bytes(public_pem(KEY))
    return found


def key(archive: Archive) -> Path:
    return archive.folder.parent / "audit.pub"


def closed(archive: Archive) -> list[Path]:
    return sorted(archive.folder.glob("*.gz"))


def test_intact_is_said_with_what_was_verified(archive: Archive) -> None:
    result = spawn("verify", "--public-key", key(archive), archive.folder)
    assert (result.code, result.err) == (0, "")
    first, chain, last = result.out.splitlines()
    assert first == "not sealed yet: a.log: is being written; it gets its digest when it is closed"
    assert "of audit-system/archive, a, cluster prod: digests 1 to 3, signed " in chain
    assert chain.endswith(", 3 files, 3 events")
    assert re.fullmatch(r"3 files, 3 events until 20[0-9T:.-]+Z intact; 1 file NOT protected yet", last)


def test_findings_are_named_and_counted(archive: Archive) -> None:
    closed(archive)[1].unlink()
    (archive.folder / "evil\x1b[2J.log").write_text("{}\n")
    result = call("verify", "--public-key", key(archive), archive.folder)
    assert result.code == 1
    lines = result.out.splitlines()
    name = closed(archive)[0].parent / "x"
    assert name.parent.is_dir()
    assert "removed: " in lines[0]
    assert lines[2] == "added: evil\\x1b[2J.log: no digest names it"
    assert lines[-1] == "2 findings"


def test_json_is_one_document(archive: Archive) -> None:
    intact = json.loads(call("verify", "-o", "json", "--public-key", key(archive), archive.folder).out)
    assert (intact["intact"], intact["found"]) == (True, 0)
    assert (intact["files"], intact["events"], intact["unprotected"]) == (3, 3, 1)
    assert intact["until"] == intact["chains"][0]["ended"]
    assert [(entry["kind"], entry["note"]) for entry in intact["findings"]] == [("notSealed", True)]
    assert intact["chains"][0]["last"] == 3
    closed(archive)[0].write_bytes(b"")
    result = call("verify", "-o", "json", "--public-key", key(archive), archive.folder)
    document = json.loads(result.out)
    assert (result.code, document["intact"], document["found"]) == (1, False, 1)
    assert document["findings"][0]["kind"] == "changed"
    assert document["findings"][0]["file"] == closed(archive)[0].name
    assert document["chains"][0]["findings"] == 1


def test_an_earlier_report_is_held_against_it(archive: Archive, tmp_path: Path) -> None:
    earlier = tmp_path / "report.json"
    earlier.write_text(call("verify", "-o", "json", "--public-key", key(archive), archive.folder).out)
    arguments = ("verify", "--public-key", key(archive), "--known", earlier, archive.folder)
    assert call(*arguments).code == 0
    for path in archive.folder.iterdir():
        path.unlink()
    archive.write(*numbered(2), name="b.log")
    result = call(*arguments)
    assert result.code == 1
    assert "a whole chain of audit-system/archive and a is gone" in result.out


def test_an_emptied_archive_is_a_chain_removed(archive: Archive, tmp_path: Path) -> None:
    earlier = tmp_path / "report.json"
    earlier.write_text(call("verify", "-o", "json", "--public-key", key(archive), archive.folder).out)
    for path in archive.folder.iterdir():
        path.unlink()
    result = call("verify", "--public-key", key(archive), "--known", earlier, archive.folder)
    assert (result.code, result.err) == (1, "")
    assert "a whole chain of audit-system/archive and a is gone" in result.out
    assert result.out.endswith("\n1 finding\n")


def test_what_nothing_protects_is_not_called_intact(tmp_path: Path) -> None:
    """A live file has no digest yet: emptied or not, nobody could tell."""
    archive = Archive(tmp_path / "archive", tmp_path / "state")
    archive.folder.mkdir()
    archive.write(*numbered(1))
    (tmp_path / "audit.pub").write_bytes(public_pem(KEY))
    for content in (None, b""):
        if content is not None:
            (archive.folder / "a.log").write_bytes(content)
        result = call("verify", "--public-key", key(archive), archive.folder)
        assert result.code == 2
        assert "nothing is sealed yet: 1 file NOT protected; verify again after" in result.err
        assert "intact" not in result.out
        document = json.loads(call("verify", "-o", "json", "--public-key", key(archive), archive.folder).out)
        assert (document["intact"], document["unprotected"]) == (False, 1)


def test_a_wrong_key_is_one_line(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "other.pub").write_bytes(public_pem(OTHER_KEY))
    result = call("verify", "--public-key", tmp_path / "other.pub", archive.folder)
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"error: {archive.folder}: none of 4 signatures is of a public key that was given; is it the right one?\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--public-key", "KEY", "/nonexistent"], "/nonexistent: is no folder; name the folder that a sink"),
        (["--public-key", "KEY", "EMPTY"], "there is no digest here; name the folder"),
        (["--public-key", "/nonexistent", "ARCHIVE"], "/nonexistent: --public-key: does not exist"),
        (["--public-key", "STATE/key.pem", "ARCHIVE"], "is no Ed25519 public key in PEM; openssl pkey"),
        (
            ["--public-key", "KEY", "--known", "KEY", "ARCHIVE"],
            "--known: is no report; `audit-operator verify -o json`",
        ),
    ],
)
def test_what_cannot_be_checked_is_exit_code_2(
    arguments: list[str], message: str, archive: Archive, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"KEY": key(archive), "ARCHIVE": archive.folder, "EMPTY": tmp_path / "empty"}
    result = call("verify", *[str(places.get(each, each)).replace("STATE", str(archive.state)) for each in arguments])
    assert result.code == 2
    assert message in result.err
    assert "PRIVATE" not in result.err


def test_no_key_is_bad_usage(archive: Archive) -> None:
    assert call("verify", archive.folder).code == 2


def test_after_a_rotation_both_keys_are_given(archive: Archive, tmp_path: Path) -> None:
    archive.write(*numbered(6)[4:], key=OTHER_KEY)
    (tmp_path / "new.pub").write_bytes(public_pem(OTHER_KEY))
    both = ("--public-key", key(archive), "--public-key", tmp_path / "new.pub")
    assert call("verify", *both, archive.folder).code == 0
    result = call("verify", *both[2:], archive.folder)
    assert result.code == 1
    assert "signature: " in result.out


def test_links_pipes_and_names_that_are_no_text_hold_nothing_up(archive: Archive) -> None:
    os.mkfifo(archive.folder / "pipe")
    (archive.folder / "link").symlink_to("/")
    (archive.folder / "dangling").symlink_to("/nonexistent/file")
    (archive.folder / os.fsdecode(b"caf\xe9.log")).write_text("{}\n")
    (archive.folder / os.fsdecode(b"\xff")).mkdir()
    (archive.folder / os.fsdecode(b"\xff/a")).write_text("{}\n")
    result = call("verify", "--public-key", key(archive), archive.folder)
    assert result.code == 1
    added = [line.split(": ")[1] for line in result.out.splitlines() if line.startswith("added")]
    assert added == ["\\xff/a", "caf\\xe9.log", "dangling", "link", "pipe"]
    # A file that has become a pipe is not there any more.
    closed(archive)[0].unlink()
    os.mkfifo(closed(archive)[0].with_name("again"))
    assert stat.S_ISFIFO((archive.folder / "again").stat().st_mode)
    assert call("verify", "--public-key", key(archive), archive.folder).code == 1
