"""The Hub source against a small Hub on the loopback address; the reading process can reach nothing else."""

import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow
import pyarrow.parquet
import pytest

from sweep.common.errors import UserError
from sweep.data.hub import HubDataset

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXTS = [f"Document {n} of the tiny set: " + "once upon a time " * (n % 7 + 1) for n in range(300)]


def parquet(texts):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "n": list(range(len(texts)))}), file)
    return file.getvalue()


def jsonl(texts):
    return "".join(json.dumps({"body": text}) + "\n" for text in texts).encode()


REPOSITORIES = {
    "datasets/someone/tiny": {
        "data/train-00000-of-00002.parquet": parquet(TEXTS[:200]),
        "data/train-00001-of-00002.parquet": parquet(TEXTS[200:]),
    },
    "datasets/someone/lines": {"train.jsonl": jsonl(TEXTS[:100])},
    "models/someone/gpt": {
        "tokenizer.json": json.dumps(
            {
                "version": "1.0",
                "pre_tokenizer": {"type": "Whitespace"},
                "model": {"type": "WordLevel", "vocab": {"Document": 0, "once": 1, "?": 2}, "unk_token": "?"},
            }
        ).encode()
    },
}


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's HTTP interface as datasets and huggingface_hub use to stream a public repository."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        path = unquote(urlsplit(self.path).path)
        for repository, files in REPOSITORIES.items():
            api = f"/api/{repository}"
            page = "/" + repository.removeprefix("models/")
            if path == api or path.startswith(f"{api}/revision/"):
                siblings = [{"rfilename": name} for name in files]
                revision = path.removeprefix(api).removeprefix("/revision/") or "main"
                if revision not in ("main", COMMIT):
                    return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                return self.json(
                    {"id": repository.split("/", 1)[1], "sha": COMMIT, "siblings": siblings, "private": False}
                )
            if path.startswith(f"{api}/tree/"):
                folder = path.removeprefix(f"{api}/tree/").partition("/")[2]
                recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() == "true"
                return self.json(self.tree(files, folder, recursive))
            if path.startswith(f"{api}/paths-info/"):
                asked = (
                    parse_qs(body).get("paths", [])
                    if "json" not in self.headers["Content-Type"]
                    else json.loads(body)["paths"]
                )
                return self.json([entry for entry in self.tree(files, "", True) if entry["path"] in asked])
            if path.startswith(f"{page}/resolve/"):
                name = path.removeprefix(f"{page}/resolve/").split("/", 1)[1]
                if name not in files:
                    return self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return self.file(files[name])
        return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_GET = do_HEAD = do_POST = answer

    @staticmethod
    def tree(files, folder, recursive):
        names = [name for name in files if name.startswith(folder)]
        folders = sorted({name.rsplit("/", 1)[0] for name in names if "/" in name} - {folder})
        listed = [name for name in names if recursive or "/" not in name.removeprefix(folder).strip("/")]
        return [{"type": "directory", "path": name, "oid": COMMIT} for name in folders] + [
            {"type": "file", "path": name, "size": len(files[name]), "oid": COMMIT} for name in listed
        ]

    def file(self, data):
        headers = {"ETag": f'"{len(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if not asked:
            return self.reply(200, data, headers)
        start, _, stop = asked.removeprefix("bytes=").partition("-")
        first, last = int(start), min(int(stop or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self.reply(206, data[first : last + 1], headers)

    def json(self, value):
        return self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def reply(self, status, data, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


# The endpoint is read when huggingface_hub is imported, so each case is a process of its own.
PROGRAM = """
import json, socket, sys
lookup = socket.getaddrinfo
def loopback_only(host, *args, **kwargs):
    assert host in ("127.0.0.1", b"127.0.0.1"), f"asked for {host}"
    return lookup(host, *args, **kwargs)
socket.getaddrinfo = loopback_only

from sweep.data.prepare import prepare
from sweep.common.errors import UserError
from sweep.data.hub import HubDataset
from sweep.data.sources import TokenizerConfig
for options in json.loads(sys.argv[1]):
    tokenizer = TokenizerConfig(**options.pop("tokenizer", {"kind": "bytes"}))
    try:
        config = HubDataset(**options, tokenizer=tokenizer, validation_fraction=0.1)
        tokens = prepare(config, sys.argv[2], progress=False)
        answer = {"text": tokens.decode(tokens.train) + tokens.decode(tokens.validation), "meta": tokens.meta}
    except UserError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
"""


def answers(endpoint, tmp_path, *cases):
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", PROGRAM, json.dumps(cases), str(tmp_path / "tokens")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def documents(answer):
    assert "error" not in answer, answer
    return sorted(answer["text"].split("<|endoftext|>")[:-1])


@pytest.mark.slow
def test_datasets_are_streamed(endpoint, tmp_path):
    (whole, some, little, lines, tokenized), _ = answers(
        endpoint,
        tmp_path,
        {"path": "someone/tiny"},
        {"path": "someone/tiny", "max_documents": 30, "revision": COMMIT},
        {"path": "someone/tiny", "max_bytes": "2k"},
        {"path": "someone/lines", "text_field": "body"},
        {"path": "someone/tiny", "tokenizer": {"kind": "hub", "path": "someone/gpt"}},
    )
    assert documents(whole) == sorted(TEXTS)
    assert documents(some) == sorted(TEXTS[:30])
    assert sum(map(len, documents(little))) <= 2000
    assert documents(little) == sorted(TEXTS[: len(documents(little))])
    assert documents(lines) == sorted(TEXTS[:100])
    assert tokenized["meta"]["vocab_size"] == 4
    cached = [path for path in (tmp_path / "hf").rglob("*") if path.suffix in (".parquet", ".arrow", ".jsonl")]
    assert cached == [], "streamed, not downloaded"


@pytest.mark.slow
def test_what_the_hub_does_not_have_is_one_line(endpoint, tmp_path):
    found, stderr = answers(
        endpoint,
        tmp_path,
        {"path": "someone/absent"},
        {"path": "someone/tiny", "revision": "v9"},
        {"path": "someone/tiny", "split": "test"},
        {"path": "someone/tiny", "name": "other"},
        {"path": "someone/lines"},
        {"path": "not a name"},
        {"path": "someone/tiny", "tokenizer": {"kind": "hub", "path": "someone/absent"}},
    )
    wanted = [
        f"data.path=someone/absent: {endpoint} answers 404 (absent or private); check the name and data.revision=None",
        f"data.path=someone/tiny: {endpoint} answers 404 (absent or private); check the name and data.revision=v9",
        "data.split=test",
        "data.name=other",
        "data.path=someone/lines: no text in the field 'text'; it has body: set data.text_field",
        "data.path=not a name: ",
        f"data.tokenizer.path=someone/absent: {endpoint} answers 404",
    ]
    for answer, text in zip(found, wanted, strict=True):
        assert text in answer["error"]
        assert "\n" not in answer["error"]
    assert stderr == ""


def test_without_a_network_one_line_comes_soon(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        nobody = f"http://127.0.0.1:{server.server_port}"  # closed again: a port where nothing listens
    (answer,), stderr = answers(nobody, tmp_path, {"path": "someone/tiny"})
    assert answer["error"].startswith(f"data.path=someone/tiny: cannot reach {nobody}; check the network")
    assert stderr == ""


def test_a_dataset_needs_a_name():
    with pytest.raises(UserError, match=r"data\.path: name a dataset of the Hub"):
        HubDataset().identity()


def test_a_limit_is_a_quantity():
    with pytest.raises(UserError, match=r"data\.max_bytes=lots: not a positive number"):
        HubDataset(path="someone/tiny", max_bytes="lots").identity()
