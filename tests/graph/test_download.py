"""The downloader against a real HTTP server on this machine."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from beliefedit.errors import GraphError
from beliefedit.graph.download import ARCHIVES, Archive, download

CONTENT = np.random.default_rng(0).bytes(300_000)


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT; the server's plan says how each request in turn misbehaves."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers["Range"])
        plan = server.plan.pop(0) if server.plan else {}
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if plan.get("resume", True) else 0
        body = plan.get("content", CONTENT)[start:]
        self.send_response(plan.get("status", 206 if start else 200))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:plan.get("drop_after", len(body))])
        self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.plan, server.ranges = [], []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def archive(server):
    return Archive("a.tar.gz", f"http://127.0.0.1:{server.server_port}/a.tar.gz", len(CONTENT),
                   hashlib.sha256(CONTENT).hexdigest())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_is_fetched_once(tmp_path, server, archive):
    assert download(tmp_path / "new", [archive]) == [tmp_path / "new" / "a.tar.gz"]
    assert (tmp_path / "new" / "a.tar.gz").read_bytes() == CONTENT
    download(tmp_path / "new", [archive])
    assert len(server.ranges) == 1 and names(tmp_path / "new") == ["a.tar.gz"]


def test_a_dropped_connection_is_taken_up_where_it_stopped(tmp_path, server, archive):
    server.plan = [{"drop_after": 120_000}, {"drop_after": 50_000}]
    download(tmp_path, [archive])
    assert server.ranges == ["bytes=0-", "bytes=120000-", "bytes=170000-"]
    assert (tmp_path / "a.tar.gz").read_bytes() == CONTENT and names(tmp_path) == ["a.tar.gz"]


def test_a_later_call_goes_on_from_the_part_file(tmp_path, server, archive):
    server.plan = [{"drop_after": 120_000}, {"drop_after": 0}]
    with pytest.raises(GraphError, match=r"stopped at 120000 of 300000 bytes(.|\n)*run again"):
        download(tmp_path, [archive])
    assert names(tmp_path) == ["a.tar.gz.part"]
    download(tmp_path, [archive])
    assert server.ranges[-1] == "bytes=120000-" and (tmp_path / "a.tar.gz").read_bytes() == CONTENT


def test_a_server_that_cannot_resume_starts_over(tmp_path, server, archive):
    server.plan = [{"drop_after": 120_000}, {"resume": False}]
    download(tmp_path, [archive])
    assert (tmp_path / "a.tar.gz").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"!", CONTENT + b"more"])
def test_a_wrong_file_is_deleted(tmp_path, server, archive, content):
    server.plan = [{"content": content}]
    with pytest.raises(GraphError, match="is not the file of 300000 bytes and SHA-256"):
        download(tmp_path, [archive])
    assert names(tmp_path) == []


def test_a_file_that_ends_early_is_not_taken(tmp_path, server, archive):
    server.plan = [{"content": CONTENT[:1000]}, {"content": CONTENT[:1000], "status": 416}]
    with pytest.raises(GraphError, match="stopped at 1000 of 300000 bytes: HTTP Error 416"):
        download(tmp_path, [archive])
    assert names(tmp_path) == ["a.tar.gz.part"]


def test_a_file_put_there_by_someone_is_checked_and_left_alone(tmp_path, server, archive):
    (tmp_path / "a.tar.gz").write_bytes(b"mine")
    with pytest.raises(GraphError, match="delete it to fetch it again"):
        download(tmp_path, [archive])
    assert (tmp_path / "a.tar.gz").read_bytes() == b"mine" and server.ranges == []


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_refusing_server_is_an_error_with_a_remedy(tmp_path, server, archive, status):
    server.plan = [{"status": status}]
    with pytest.raises(GraphError, match=f"HTTP Error {status}(.|\n)*fetch a.tar.gz yourself"):
        download(tmp_path, [archive])
    assert names(tmp_path) == []


def test_no_server_is_an_error_with_a_remedy(tmp_path, archive, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(GraphError, match="Connection refused(.|\n)*fetch a.tar.gz yourself"):
        download(tmp_path, [archive])


def test_a_folder_that_cannot_be_made(tmp_path, archive):
    (tmp_path / "file").write_text("")
    with pytest.raises(GraphError, match="cannot make the folder"):
        download(tmp_path / "file" / "below", [archive])


def test_the_table_is_well_formed():
    assert [archive.name for archive in ARCHIVES] == ["wikidata5m_alias.tar.gz", "wikidata5m_transductive.tar.gz"]
    for archive in ARCHIVES:
        assert archive.url.startswith("https://") and archive.url.endswith(archive.name)
        assert len(bytes.fromhex(archive.sha256)) == 32 and archive.size > 10**8
