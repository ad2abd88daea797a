"""A stand-in for the W&B server on the loopback address: the mock at the edge of the tests of `sweep.tracking`.

It answers what wandb 0.31 asks when it uploads a run (GraphQL, file_stream, files, artifacts), lists runs, and saves
views and charts. It keeps what it was sent, and can be told to misbehave.
"""

import base64
import gzip
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import wandb

from sweep.tracking import account

SHORT = {name: "1" for name in account.PATIENCE if name.endswith(("RETRY_MAX", "WAIT_MAX_SECONDS"))}
KEY = "0123456789abcdef" * 2 + "01234567"  # of the right length, and nobody's
ENTITY = "someone"


@dataclass
class Stored:
    """What the server holds of one run."""

    id: str
    project: str
    about: dict[str, Any] = field(default_factory=dict)  # groupName, jobType, tags, displayName, …
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    state: str = "finished"

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]


@dataclass
class Trouble:
    """The next `times` requests of a kind go wrong so: "graphql", an operation, "file_stream", those with "history"."""

    kind: str
    status: int = 200
    times: int = 10**6
    message: str = "trouble"
    after_keeping: bool = False  # what was sent is kept, but the answer is lost
    seconds: float = 0.0  # before anything is answered


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, Stored] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []  # GraphQL operations with their variables
        self.used: list[str] = []  # artifacts that a run declared as its input
        self.logged: list[str] = []  # artifacts that a run made
        self.views: dict[str, dict[str, Any]] = {}
        self.charts: dict[str, str] = {}
        self.troubles: list[Trouble] = []
        self.project = "p"
        self.project_is_missing = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}

    def operations(self) -> list[str]:
        return [name for name, _ in self.asked]

    def trouble(self, *kinds: str) -> Trouble | None:
        for trouble in self.troubles:
            if trouble.kind in kinds and trouble.times > 0:
                trouble.times -= 1
                return trouble
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error of a test's."""

    # ---- GraphQL, one method an operation -------------------------------------------------------------------------

    def answer(self, operation: str, query: str, sent: dict[str, Any]) -> dict[str, Any]:
        method = getattr(self, f"on_{operation}", None)
        if method is not None:
            return method(sent)
        if "viewer" in query:
            viewer = {"id": "u", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "admin": False}
            teams = {"edges": [{"node": {"name": ENTITY}}]}
            return {"viewer": viewer | {"name": ENTITY, "teams": teams, "apiKeys": {"edges": []}, "deletedAt": None}}
        return {}

    def on_RunResumeStatus(self, sent: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": sent["project"], "entity": {"id": "e", "name": ENTITY}}
        run = self.runs.get(sent["name"])
        return {"model": project | {"bucket": run and self.bucket(run)}}

    def bucket(self, run: Stored) -> dict[str, Any]:
        return {
            "id": run.id,
            "name": run.id,
            "displayName": run.about.get("displayName") or run.id,
            "description": None,
            "sweepName": None,
            "config": json.dumps(run.config),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "tags": run.about.get("tags") or [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
            "project": {"id": "p", "name": run.project, "entity": {"id": "e", "name": ENTITY}},
        }

    def on_UpsertBucket(self, sent: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(sent["name"], Stored(sent["name"], sent["project"]))
        run.about |= {key: value for key, value in sent.items() if value is not None}
        if sent.get("config"):
            run.config = json.loads(sent["config"])
        if sent.get("summaryMetrics"):
            run.summary |= json.loads(sent["summaryMetrics"])
        return {"upsertBucket": {"bucket": self.bucket(run), "inserted": True}}

    def on_CreateRunFiles(self, sent: dict[str, Any]) -> dict[str, Any]:
        self.runs[sent["run"]].files += sent["files"]
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in sent["files"]]
        return {"createRunFiles": {"runID": sent["run"], "uploadHeaders": [], "files": files}}

    def on_CreateArtifact(self, sent: dict[str, Any]) -> dict[str, Any]:
        name = sent["input"]["artifactCollectionName"]
        self.logged.append(name)
        sequence = {"id": f"sequence of {name}", "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": name, "state": "PENDING", "artifactSequence": sequence}}}

    def _manifest(self) -> dict[str, Any]:
        file = {"id": "f", "name": "m", "displayName": "m", "uploadUrl": f"{self.url}/upload/m", "uploadHeaders": []}
        return {"artifactManifest": {"id": "m", "file": file}}

    def on_CreateArtifactManifest(self, sent: dict[str, Any]) -> dict[str, Any]:
        return {"createArtifactManifest": self._manifest()}

    def on_UpdateArtifactManifest(self, sent: dict[str, Any]) -> dict[str, Any]:
        return {"updateArtifactManifest": self._manifest()}

    def on_CreateArtifactFiles(self, sent: dict[str, Any]) -> dict[str, Any]:
        nodes = [
            {
                "id": each["name"],
                "name": each["name"],
                "displayName": each["name"],
                "storagePath": each["name"],
                "uploadUrl": f"{self.url}/upload/{each['name']}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": each["artifactID"]},
            }
            for each in sent["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def on_CommitArtifact(self, sent: dict[str, Any]) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": sent["artifactID"], "digest": "d"}}}

    def on_ArtifactType(self, sent: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def on_UseArtifact(self, sent: dict[str, Any]) -> dict[str, Any]:
        self.used.append(sent["input"]["artifactID"])
        return {"useArtifact": {"artifact": {"id": sent["input"]["artifactID"]}}}

    # ---- the public API -------------------------------------------------------------------------------------------

    def described(self, run: Stored) -> dict[str, Any]:
        keys = {"historyKeys": {"lastStep": run.steps[-1] if run.steps else -1}}
        known = keys | {"group": run.about.get("groupName"), "jobType": run.about.get("jobType"), "state": run.state}
        rest = dict.fromkeys(("commit", "description", "notes", "systemMetrics", "heartbeatAt"))
        created = {"createdAt": "2026-01-01T00:00:00Z", "projectId": "1", "readOnly": False}
        return self.bucket(run) | rest | created | known | {"user": {"name": ENTITY, "username": ENTITY}}

    def on_Runs(self, sent: dict[str, Any]) -> dict[str, Any]:
        if self.project_is_missing:
            return {"project": None}
        edges = [{"node": self.described(run), "cursor": run.id} for run in self.runs.values()]
        page = {"endCursor": None, "hasNextPage": False}
        runs = {"edges": edges, "pageInfo": page}
        return {"project": {"internalId": "1", "runCount": len(edges), "readOnly": False, "runs": runs}}

    def on_Run(self, sent: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(sent["name"])
        return {"project": {"run": run and self.described(run)}}

    on_RunHistoryKeys = on_Run

    def on_CreateCustomChart(self, sent: dict[str, Any]) -> dict[str, Any]:
        self.charts[sent["chartName"]] = sent["spec"]
        return {"createCustomChart": {"chart": {"id": f"{sent['entity']}/{sent['chartName']}"}}}

    # ---- workspaces and reports -----------------------------------------------------------------------------------

    def on_upsertView(self, sent: dict[str, Any]) -> dict[str, Any]:
        place = sent.get("id") or base64.b64encode(f"View:{len(self.views) + 1}".encode()).decode()
        project = {"id": "p", "name": sent["projectName"], "entityName": sent["entityName"]}
        kept = {key: sent.get(key) for key in ("name", "displayName", "description", "spec", "type")}
        self.views[place] = kept | {"id": place, "project": project, "createdAt": None, "updatedAt": None}
        return {"upsertView": {"view": self.views[place], "inserted": not sent.get("id")}}

    on_UpsertView2 = on_upsertView

    def on_View(self, sent: dict[str, Any]) -> dict[str, Any]:
        found = [view for view in self.views.values() if view["name"] == sent["viewName"]]
        return {"project": {"allViews": {"edges": [{"node": view} for view in found]}}}

    def on_SpecificReport(self, sent: dict[str, Any]) -> dict[str, Any]:
        return {"view": self.views.get(sent["reportId"])}

    def on_GetProjects(self, sent: dict[str, Any]) -> dict[str, Any]:
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        known = {"id": "p", "name": self.project, "entityName": ENTITY, "createdAt": "2026-01-01T00:00:00Z"}
        node = known | {"__typename": "Project", "isBenchmark": False, "user": None}
        return {"models": {"pageInfo": page, "edges": [{"node": node}]}}

    def on_ProjectInternalId(self, sent: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"id": "p", "internalId": "1"}}

    # ---- file_stream ----------------------------------------------------------------------------------------------

    def keep(self, run_id: str, sent: dict[str, Any]) -> None:
        run, files = self.runs[run_id], sent.get("files") or {}
        if history := files.get("wandb-history.jsonl"):
            run.history[history["offset"] :] = map(json.loads, history["content"])
        if summary := files.get("wandb-summary.json"):
            run.summary |= json.loads(summary["content"][-1])
        if sent.get("complete"):
            run.state = "finished" if sent.get("exitcode") == 0 else "failed"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        sent = json.loads(self.body() or "{}") if self.path.endswith(("graphql", "file_stream")) else {}
        if self.path.endswith("/graphql"):
            self.graphql(sent)
        elif self.path.endswith("/file_stream"):
            rows = ["history"] if "wandb-history.jsonl" in (sent.get("files") or {}) else []
            trouble = self.server.trouble("file_stream", *rows)
            if trouble is None or trouble.after_keeping:
                self.server.keep(self.path.split("/")[-2], sent)
            if trouble is None:
                self.reply({"exitcode": None, "limits": {}})
            else:
                self.fail(trouble)
        else:
            self.reply({})

    def do_PUT(self) -> None:
        self.body()
        self.reply({})

    do_GET = do_PUT

    def graphql(self, sent: dict[str, Any]) -> None:
        operation = sent.get("operationName") or sent["query"].split("{")[0].split("(")[0].split()[-1]
        variables = sent.get("variables") or {}
        self.server.asked.append((operation, variables))
        if trouble := self.server.trouble("graphql", operation):
            self.fail(trouble)
        else:
            self.reply({"data": self.server.answer(operation, sent["query"], variables)})

    def fail(self, trouble: Trouble) -> None:
        time.sleep(trouble.seconds)
        if trouble.status == 0:
            self.connection.close()
            return
        self.reply({"errors": [{"message": trouble.message}], "data": None}, trouble.status)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            whole = b""
            while size := int(self.rfile.readline(), 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            whole = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(whole) if self.headers.get("Content-Encoding") == "gzip" else whole

    def reply(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def signed_in():
    """A server that wandb in this process talks to with little patience, and forgets afterwards."""
    with serving() as server, pytest.MonkeyPatch.context() as patch:
        settings = account.PATIENCE | SHORT | server.environment
        for name, value in (settings | {"WANDB_MODE": "online", "WANDB_SILENT": "true"}).items():
            patch.setenv(name, value)
        patch.setattr(account, "PATIENCE", account.PATIENCE | SHORT)
        wandb.teardown()
        yield server
        wandb.teardown()


if __name__ == "__main__":
    with serving() as standing:
        print(standing.url, flush=True)
        while True:
            time.sleep(3600)
