"""Files are whole or not there, under the umask; what cannot be written is one message."""

import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxgen import files
from jaxgen.errors import UsageError
from jaxgen.training.weights import dump, fingerprint, read


def listed(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture(params=["no space", "read-only"])
def disk(request, tmp_path):
    """A folder of a file system that is full, or cannot be written to."""
    place = tmp_path / "disk"
    place.mkdir()
    size = "size=64k" if request.param == "no space" else "ro"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)],
                      capture_output=True).returncode:  # fmt: skip
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_says_who_may_read(tmp_path, mask):
    old = os.umask(mask)
    try:
        files.write(tmp_path / "a.json", "{}")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o666 & ~mask


def test_a_file_that_fails_half_way_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "a.npz"
    files.write_arrays(path, {"x": np.arange(3)})
    with pytest.raises(ZeroDivisionError), files.whole(path) as stream:
        stream.write(b"half of it")
        raise ZeroDivisionError
    assert listed(tmp_path) == ["a.npz"]
    np.testing.assert_array_equal(np.load(path)["x"], np.arange(3))


def test_on_a_full_or_read_only_disk_there_is_one_message_and_no_half_file(disk):
    message = str(error_of(lambda: files.write(disk / "a.bin", b"0" * 10**6)))
    assert str(disk / "a.bin") in message and "cannot be written" in message
    assert listed(disk) == []


def error_of(call) -> UsageError:
    with pytest.raises(UsageError) as caught:
        call()
    return caught.value


def test_a_file_size_limit_is_such_a_message(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        error = error_of(lambda: files.write(tmp_path / "a.bin", b"0" * 5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written: File too large" in str(error) and listed(tmp_path) == []


def test_names_that_no_file_can_have(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "deep")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("x" * 300, "file/below", "loop", "dangling"):
        with pytest.raises(UsageError, match="cannot be written"):
            files.write(tmp_path / name, "")
        with pytest.raises(UsageError, match="--out|cannot be written"):
            files.check("--out", tmp_path / name)
    # A link to a file that is not there yet is followed, as a shell's > does.
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.write(tmp_path / "link", "there")
    assert (tmp_path / "target").read_text() == "there" and (tmp_path / "link").is_symlink()


def test_a_long_name_that_the_system_takes_is_taken(tmp_path):
    files.write(tmp_path / ("x" * 255), "whole")
    assert (tmp_path / ("x" * 255)).read_text() == "whole"


def test_the_check_before_the_work(tmp_path, disk):
    files.check("--out", tmp_path / "new" / "deep" / "a.json")
    assert listed(tmp_path) == ["disk"]  # it leaves nothing behind
    for place, directory in ((tmp_path, False), (Path(__file__), True)):
        with pytest.raises(UsageError, match="--out"):
            files.check("--out", place, directory=directory)
    if os.statvfs(disk).f_flag & os.ST_RDONLY:
        with pytest.raises(UsageError, match="Read-only file system"):
            files.check("--workdir", disk / "run", directory=True)


def test_addresses_are_no_folders_and_a_tilde_is_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.local("--out", "~/x") == tmp_path / "x"
    for address in ("gs://bucket/x", "s3://bucket", "http://host/x"):
        with pytest.raises(UsageError, match="--out"):
            files.local("--out", address)


def test_json_has_no_nan():
    text = files.json_text({"b": [float("nan"), np.float32("inf")], "a": np.arange(2), "c": True})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": [0, 1],
        "b": ["nan", "inf"],
        "c": True,
    }


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"a": ', "\x00\xff", "3"])
def test_what_is_no_json_object_is_said_so(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match="config.json"):
        files.read_json(tmp_path / "config.json")


def test_a_flipped_bit_in_parameters_is_noticed(tmp_path):
    params = {"net": {"kernel": np.arange(600, dtype=np.float32), "bias": np.ones(3, np.float16)}}
    path = tmp_path / "a.safetensors"
    data = bytearray(dump(params, {"images": "640"}))
    path.write_bytes(data)
    again, about = read(path)
    np.testing.assert_array_equal(again["net"]["kernel"], params["net"]["kernel"])
    assert about["images"] == "640"
    for place in (-1, -700, -2400):
        spoilt = bytearray(data)
        spoilt[place] ^= 4
        path.write_bytes(spoilt)
        with pytest.raises(UsageError, match="damaged"):
            read(path)


def test_the_fingerprint_of_parameters_is_of_their_values_alone():
    params = {"net": {"kernel": np.arange(6, dtype=np.float32)}}
    # As runs and codes have recorded it since before files had digests.
    assert fingerprint(params).startswith("e8fc1f2ae570b272")
    assert fingerprint({"net": {"kernel": np.arange(6, dtype=np.float32) + 1}}) != fingerprint(
        params
    )


def test_a_reader_that_leaves_ends_a_command_quietly():
    code = (
        "from jaxgen.files import piped\nwith piped():\n  [print('x' * 99) for _ in range(10**5)]"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 141 and process.stderr.read() == b""


def test_a_number_in_parameters_keeps_its_shape(tmp_path):
    """Gains have no axis (EDM2's), and a file with one more would be another network's."""
    from jaxgen.training.weights import dump, read

    (tmp_path / "x.safetensors").write_bytes(dump({"net": {"gain": np.float32(2)}}))
    assert read(tmp_path / "x.safetensors")[0]["net"]["gain"].shape == ()
