"""Downloads through huggingface_hub from a hub on this machine, and what arrives is checked."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from beliefedit.errors import GraphError
from beliefedit.graph.download import ARCHIVES, REVISION, Archive, download

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ARCHIVE = Archive("a.tar.gz", len(CONTENT), SHA256)


class Hub(BaseHTTPRequestHandler):
    """The part of the hub that fetching one file needs."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.wfile.write(self.answer())

    def answer(self):
        self.server.paths.append(self.path)
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").split("-")[0])
        content = self.server.content
        self.send_response(self.server.status or (206 if start else 200))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        return content[start:]

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.paths, server.content, server.status = [], CONTENT, None
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
                        url + "/{repo_id}/resolve/{revision}/{filename}")
    yield server
    server.shutdown()
    server.server_close()


def test_a_whole_file_is_fetched_once(tmp_path, hub):
    assert download(tmp_path / "new", [ARCHIVE]) == [tmp_path / "new" / "a.tar.gz"]
    assert (tmp_path / "new" / "a.tar.gz").read_bytes() == CONTENT
    n_requests = len(hub.paths)
    assert f"/datasets/intfloat/wikidata5m/resolve/{REVISION}/a.tar.gz" in hub.paths
    download(tmp_path / "new", [ARCHIVE])
    assert len(hub.paths) == n_requests > 0


def test_a_wrong_file_is_refused(tmp_path, hub):
    hub.content = CONTENT[:-1] + b"!"
    with pytest.raises(GraphError, match="is not the file of 300000 bytes and SHA-256"):
        download(tmp_path, [ARCHIVE])


def test_a_file_put_there_by_hand_is_checked_and_left_alone(tmp_path, hub):
    (tmp_path / "a.tar.gz").write_bytes(b"mine")
    with pytest.raises(GraphError, match="delete it and run again"):
        download(tmp_path, [ARCHIVE])
    assert (tmp_path / "a.tar.gz").read_bytes() == b"mine" and not hub.paths
    (tmp_path / "a.tar.gz").write_bytes(CONTENT)
    assert download(tmp_path, [ARCHIVE]) == [tmp_path / "a.tar.gz"] and not hub.paths


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusing_hub_is_an_error_with_a_remedy(tmp_path, hub, status):
    hub.status = status
    with pytest.raises(GraphError, match="a.tar.gz could not be fetched(.|\n)*put a.tar.gz and b.tar.gz from"):
        download(tmp_path, [ARCHIVE, Archive("b.tar.gz", 1, "00")])


def test_without_a_network_the_files_to_fetch_by_hand_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(GraphError, match="could not be fetched(.|\n)*wikidata5m_alias.tar.gz and wikidata5m_trans"):
        download(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path, hub):
    (tmp_path / "file").write_text("")
    with pytest.raises(GraphError, match="could not be fetched"):
        download(tmp_path / "file" / "below", [ARCHIVE])


def test_the_table_is_well_formed():
    assert [archive.name for archive in ARCHIVES] == ["wikidata5m_alias.tar.gz", "wikidata5m_transductive.tar.gz"]
    for archive in ARCHIVES:
        assert len(bytes.fromhex(archive.sha256)) == 32 and archive.size > 10**8
