"""Shards by URL: what is missing is one line that names the package and the extra; what is there is read."""

import functools
import http.server
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from jdiff import cli
from jdiff.data import Data, index, open_source
from jdiff.data.filter import Recipe, make_view
from jdiff.data.stores import PACKAGES, is_url
from tests import recipe
from tests.data import hostile
from tests.data.test_view_damage import written


@pytest.fixture
def without(monkeypatch):
    """without(package): as if it were not installed."""

    def hide(package):
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
        for name in ("http", "https", "s3", "s3a", "gs", "gcs"):
            monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, name, raising=False)
        for module in ("http", "s3fs", "gcsfs"):
            monkeypatch.delitem(sys.modules, f"fsspec.implementations.{module}", raising=False)

    return hide


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("https://a.org/x.tar", "aiohttp", "data"),
        ("http://a.org/x.tar", "aiohttp", "data"),
        ("s3://bucket/x.tar", "s3fs", "s3"),
        ("gs://bucket/x.tar", "gcsfs", "gs"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(without, tmp_path, capsys, url, package, extra):
    without(package)
    with pytest.raises(SystemExit):
        cli.main(["data", "index", url, "-o", str(tmp_path / "index")])
    err = capsys.readouterr().err
    assert err == f"jdiff: shard {url} needs the package {package}: pip install 'jdiff[{extra}]'\n"


def test_a_view_of_a_store_whose_package_is_missing_is_one_line(without, tmp_path, capsys):
    view = tmp_path / "view.arrow"
    (tmp_path / "a.tar").write_bytes(hostile.shard_of({str(n): hostile.pair("jpg", hostile.JPEG) for n in range(12)}))
    index.build([str(tmp_path / "a.tar")], tmp_path / "index")
    make_view(tmp_path / "index", view, Recipe())
    written(tmp_path, {}, {"shards": [["https://a.org/x.tar", "1:2"]]})
    without("aiohttp")
    with pytest.raises(SystemExit):
        cli.main(["train", recipe.__file__, "--data.view", str(view), "--out", str(tmp_path / "out")])
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err == "jdiff: shard https://a.org/x.tar needs the package aiohttp: pip install 'jdiff[data]'"


def test_the_readme_and_the_extras_say_the_same():
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for scheme, (package, extra) in PACKAGES.items():
        assert any(line.startswith(package) for line in extras[extra]), scheme
    readme = (root / "README.md").read_text()
    for words in ('`https://` needs `".[data]"`', '`s3://` needs `".[s3]"`', '`gs://` `".[gs]"`'):
        assert words in readme


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Files with ranges, which the standard library's server lacks."""

    def send_head(self):
        wanted = self.headers.get("Range")
        if wanted is None:
            return super().send_head()
        data = Path(self.translate_path(self.path)).read_bytes()
        first, last = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        return None

    def log_message(self, format, *args):
        pass


def test_shards_are_read_by_http(tmp_path):
    pytest.importorskip("aiohttp")
    groups = {str(n): hostile.pair("png", hostile.PNG) for n in range(12)}
    (tmp_path / "a.tar").write_bytes(hostile.shard_of(groups))
    handler = functools.partial(Ranges, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.tar"
        (part,) = index.build([url], tmp_path / "index")
        assert (part.shard, part.used) == (url, 12)
        make_view(tmp_path / "index", tmp_path / "view.arrow", Recipe())
        row = open_source(Data(view=str(tmp_path / "view.arrow"), size=8), "train")[0]
        assert row["reject"] == "" and row["image"].shape == (8, 8, 3)
        with pytest.raises(ValueError, match=r"gone\.tar cannot be read"):
            index.build([url.replace("a.tar", "gone.tar")], tmp_path / "index")
        server.shutdown()


def test_what_is_a_url():
    for name in ("https://a/b", "s3://a/b", "simplecache::https://a", "file:///a", "X+y.z-1://a"):
        assert is_url(name)
    for name in ("/a/b.tar", "/a/https://b.tar", "a::b.tar", "1a://b", "./a://b", "C:/a.tar"):
        assert not is_url(name)
