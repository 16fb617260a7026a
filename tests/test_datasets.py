"""Fetching data sets, against a real HTTP server on the loopback interface."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from dipct.errors import ConfigurationError, DownloadError
from dipct.measurement.datasets import (
    fetch_data_set,
    find_data_set,
    list_data_sets,
    remote_files,
)

RECORD = "/api/records/1254204"
NAME = "LotusData128.mat"
CONTENT = np.random.default_rng(0).bytes(700_000)


class Repository(ThreadingHTTPServer):
    """A small Zenodo: one record, files with byte ranges, faults on request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files = {NAME: CONTENT, "readme.txt": b"measured in 2016\n"}
        self.checksums = {}
        self.record = None
        self.cut_after = []
        self.supports_ranges = True
        self.sent = []

    def entries(self):
        return [
            {
                "key": name,
                "size": len(content),
                "checksum": self.checksums.get(name, "md5:" + hashlib.md5(content).hexdigest()),
                "links": {"self": f"{self.url}{RECORD}/files/{name}/content"},
            }
            for name, content in self.files.items()
        ]


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        """Keep the test output clean."""

    def do_GET(self):
        if self.path == RECORD:
            record = self.server.record or json.dumps({"files": self.server.entries()})
            return self._answer(200, record.encode())
        name = self.path.removeprefix(f"{RECORD}/files/").removesuffix("/content")
        if name not in self.server.files:
            return self._answer(404, b"no such file")
        content = self.server.files[name]
        wanted = self.headers.get("Range")
        if not wanted or not self.server.supports_ranges:
            return self._answer(200, content, name=name)
        first = int(wanted.removeprefix("bytes=").removesuffix("-"))
        span = f"bytes {first}-{len(content) - 1}/{len(content)}"
        return self._answer(206, content[first:], name=name, span=span)

    def _answer(self, status, body, name=None, span=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if span:
            self.send_header("Content-Range", span)
        self.end_headers()
        if name and self.server.cut_after:
            body = body[: self.server.cut_after.pop(0)]
        if name:
            self.server.sent.append((name, status, len(body)))
        self.wfile.write(body)


@pytest.fixture
def repository():
    with Repository() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _fetch(repository, folder, **options):
    options = {"progress": False, "attempts": 1, "base_url": repository.url} | options
    return fetch_data_set("fips-lotus", folder, **options)


def test_a_fetched_file_is_whole(repository, tmp_path):
    paths = _fetch(repository, tmp_path / "new" / "folder")
    assert paths == [tmp_path / "new" / "folder" / NAME]
    assert paths[0].read_bytes() == CONTENT
    assert sorted(p.name for p in paths[0].parent.iterdir()) == [NAME]
    assert repository.sent == [(NAME, 200, len(CONTENT))]


def test_what_is_there_is_not_fetched_again(repository, tmp_path):
    _fetch(repository, tmp_path)
    _fetch(repository, tmp_path)
    assert len(repository.sent) == 1


def test_a_changed_file_is_fetched_again(repository, tmp_path):
    (tmp_path / NAME).write_bytes(b"x" + CONTENT[1:])
    _fetch(repository, tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_an_interrupted_download_goes_on_where_it_stopped(repository, tmp_path):
    repository.cut_after = [300_000]
    with pytest.raises(DownloadError, match="stopped after") as caught:
        _fetch(repository, tmp_path)
    assert not (tmp_path / NAME).exists()
    kept = (tmp_path / f"{NAME}.part").stat().st_size
    assert 200_000 < kept <= 300_000
    assert f"after {kept} of 700000 bytes" in str(caught.value)
    _fetch(repository, tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert not (tmp_path / f"{NAME}.part").exists()
    assert repository.sent == [(NAME, 200, 300_000), (NAME, 206, 700_000 - kept)]


def test_a_broken_connection_is_tried_again_in_the_same_call(repository, tmp_path):
    repository.cut_after = [500_000]
    _fetch(repository, tmp_path, attempts=2)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    (_, _, first), (_, status, second) = repository.sent
    assert first == 500_000 and status == 206
    assert 200_000 <= second < 300_000


def test_a_server_without_ranges_sends_everything_again(repository, tmp_path):
    repository.supports_ranges = False
    repository.cut_after = [300_000]
    with pytest.raises(DownloadError):
        _fetch(repository, tmp_path)
    _fetch(repository, tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert repository.sent[-1] == (NAME, 200, len(CONTENT))


def test_a_whole_part_is_only_checked(repository, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    _fetch(repository, tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert repository.sent == []


def test_a_wrong_checksum_leaves_nothing(repository, tmp_path):
    expected = "md5:" + "0" * 32
    repository.checksums[NAME] = expected
    with pytest.raises(DownloadError) as caught:
        _fetch(repository, tmp_path)
    assert expected in str(caught.value)
    assert hashlib.md5(CONTENT).hexdigest() in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_is_too_long_is_thrown_away(repository, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT + b"more")
    _fetch(repository, tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_foreign_part_is_found_out_and_removed(repository, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(bytes(1000))
    with pytest.raises(DownloadError, match="damaged"):
        _fetch(repository, tmp_path)
    assert list(tmp_path.iterdir()) == []
    _fetch(repository, tmp_path)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_sha256_checksums_are_checked_too(repository, tmp_path):
    repository.checksums[NAME] = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
    _fetch(repository, tmp_path)
    repository.checksums[NAME] = "sha256:" + hashlib.sha256(b"other").hexdigest()
    with pytest.raises(DownloadError, match="damaged"):
        _fetch(repository, tmp_path)


def test_a_missing_file_names_the_doi_page(repository, tmp_path):
    broken = repository.entries()
    broken[0]["links"]["self"] += "/gone"
    repository.record = json.dumps({"files": broken})
    with pytest.raises(DownloadError, match=r"404.*https://doi\.org/10\.5281/zenodo\.1254204"):
        _fetch(repository, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_message_says_what_to_do(tmp_path):
    with Repository() as closed:
        url = closed.url
    with pytest.raises(DownloadError, match=r"network.*https://doi\.org/10\.5281/zenodo\.1254204"):
        fetch_data_set("fips-lotus", tmp_path, base_url=url, progress=False)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("<html>maintenance</html>", "did not answer with a record"),
        ("{}", "not laid out"),
        ("[]", "not laid out"),
        ('{"files": []}', "no files"),
        ('{"files": [{"key": "a"}]}', "not laid out"),
    ],
)
def test_a_strange_record_is_refused(repository, tmp_path, record, message):
    repository.record = record
    with pytest.raises(DownloadError, match=message):
        _fetch(repository, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "a/b", "a\\b", "..", ""])
def test_file_names_cannot_leave_the_folder(repository, tmp_path, name):
    entries = repository.entries()
    entries[0]["key"] = name
    repository.record = json.dumps({"files": entries})
    with pytest.raises(DownloadError, match="unusable file name"):
        _fetch(repository, tmp_path)


@pytest.mark.parametrize("checksum", ["", "md5:", "crc32:12345678", "0" * 32])
def test_a_record_without_a_usable_checksum_is_refused(repository, tmp_path, checksum):
    entries = repository.entries()
    entries[0]["checksum"] = checksum
    repository.record = json.dumps({"files": entries})
    with pytest.raises(DownloadError, match="unusable checksum"):
        _fetch(repository, tmp_path)


def test_other_files_can_be_chosen(repository, tmp_path):
    assert [p.name for p in _fetch(repository, tmp_path, files=["readme.txt"])] == ["readme.txt"]
    with pytest.raises(ConfigurationError, match=r"nothing\.mat.*LotusData128\.mat \(0\.7 MB\)"):
        _fetch(repository, tmp_path, files=["nothing.mat"])


def test_a_full_disk_is_noticed_before_the_download(repository, tmp_path):
    entries = repository.entries()
    entries[0]["size"] = 10**18
    repository.record = json.dumps({"files": entries})
    with pytest.raises(DownloadError, match="left"):
        _fetch(repository, tmp_path)
    assert repository.sent == []


def test_a_folder_that_cannot_be_made(repository, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="could not be written"):
        _fetch(repository, tmp_path / "file")


def test_plain_lines_when_not_on_a_terminal(repository, tmp_path, capsys):
    _fetch(repository, tmp_path, progress=True)
    printed = capsys.readouterr()
    assert f"{NAME}: 0.7 MB fetched" in printed.err
    assert printed.out == ""


def test_the_record_lists_sizes_and_checksums(repository):
    files = remote_files("fips-lotus", base_url=repository.url)
    assert [f.name for f in files] == [NAME, "readme.txt"]
    assert files[0].size_bytes == len(CONTENT)
    assert files[0].checksum == "md5:" + hashlib.md5(CONTENT).hexdigest()


def test_the_catalogue_is_consistent():
    sets = list_data_sets()
    assert len({s.name for s in sets}) == len({s.doi for s in sets}) == len(sets)
    for data_set in sets:
        assert data_set.doi.startswith("10.5281/zenodo.")
        assert data_set.url == f"https://doi.org/{data_set.doi}"
        assert data_set.title and data_set.licence and data_set.description
        assert find_data_set(data_set.name) is data_set


def test_an_unknown_data_set_names_near_ones(tmp_path):
    with pytest.raises(ConfigurationError, match="Did you mean htc2022"):
        fetch_data_set("htc-2022", tmp_path)
