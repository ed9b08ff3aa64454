"""JSON objects from files: what is one, and what is refused by its file's name."""

import os

import pytest

from jdiff.json_files import read_object

REFUSED = {
    "a list": (b"[1]", "must hold a JSON object, got a list"),
    "null": (b"null", "must hold a JSON object, got null"),
    "a string": (b'"x"', "must hold a JSON object, got a str"),
    "nothing": (b"", "is empty"),
    "zeros": (bytes(64), "is not JSON"),
    "half": (b'{"a": 1, "b', "is not JSON"),
    "deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "bytes": (b'{"a": "\xff\xfe"}', "is not UTF-8: byte 7 is 0xff"),
    "digits": (b'{"a": ' + b"9" * 10_000 + b"}", "is not readable"),
    "long": (b'{"a": "' + b"x" * 1000 + b'"}' + b" " * 300_000, "has more than 300000 bytes"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_object_is_refused_by_name(tmp_path, kind):
    data, message = REFUSED[kind]
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(ValueError) as error:
        read_object(path, most=300_000)
    assert str(error.value).startswith(f"{path} ") and message in str(error.value)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (("pipe", "regular"), (".", "regular"), ("none", "does not exist"), ("loop", "cannot be")):
        with pytest.raises(ValueError, match=message):
            read_object(tmp_path / name)
    with pytest.raises(ValueError, match="regular"):
        read_object("/dev/zero")


def test_objects_of_other_peoples_editors(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes('\ufeff{"größe": [1, null]}\r\n'.encode())
    assert read_object(path) == read_object(str(path)) == {"größe": [1, None]}
