"""A stand-in for the Hub's HTTP interface on the loopback, for the real client of `huggingface_hub`.

It keeps repositories in memory: commits with their files, branches and tags. What a push and a download of a model
need is there, and nothing else; Xet uploads are not (`HF_HUB_DISABLE_XET=1`).
"""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


class Repository:
    """Commits by their hash, and which one each branch or tag stands for."""

    def __init__(self, private):
        self.private, self.commits, self.refs, self.tags = private, {}, {}, []
        self.commit("main", {}, [])

    def commit(self, branch, added, deleted):
        """A new commit: files added, and paths deleted, to those of the branch."""
        files = {path: content for path, content in self.files(branch).items() if path not in deleted} | added
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[sha], self.refs[branch] = files, sha
        return sha

    def sha(self, revision):
        return self.refs.get(revision, revision)

    def files(self, revision):
        return self.commits.get(self.sha(revision), {})


class Hub(BaseHTTPRequestHandler):
    """`server.repositories` by name, `server.blobs` by their sha256."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.route("GET")

    do_HEAD = do_POST = do_PUT = lambda self: self.route(self.command)

    def log_message(self, *_):
        pass

    def route(self, method):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        for pattern, (takes, answer) in ROUTES.items():
            if method in takes and (found := re.fullmatch(pattern, path)):
                return answer(self, *found.groups())
        self.fail(f"{method} {path} is not emulated")

    def send(self, content=b"", status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, code):
        self.send({"error": code}, 404, X_Error_Code=code)

    def address(self, path):
        return f"http://{self.headers['Host']}{path}"

    def whoami(self):
        self.send({"name": "tester", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self):
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        known = name in self.server.repositories
        if not known:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.server.repositories[name] = Repository(private)
        self.send({"url": self.address(f"/{name}"), "name": name, "id": name}, 409 if known else 200)

    def info(self, name, revision="main"):
        repository = self.server.repositories.get(name)
        if repository is None or repository.sha(revision) not in repository.commits:
            return self.fail("RepoNotFound" if repository is None else "RevisionNotFound")
        siblings = [{"rfilename": path} for path in repository.files(revision)]
        about = {"id": name, "modelId": name, "sha": repository.sha(revision), "private": repository.private}
        self.send(about | {"siblings": siblings, "tags": [], "pipeline_tag": None})

    def tree(self, name, revision):
        files = self.server.repositories[name].files(revision)
        self.send([{"type": "file", "path": p, "size": len(c), "oid": digest(c)} for p, c in files.items()])

    def refs(self, name):
        if (repository := self.server.repositories.get(name)) is None:
            return self.fail("RepoNotFound")
        both = {"branches": [], "tags": [], "converts": []}
        for name, sha in repository.refs.items():
            kind, place = ("tags", "tags") if name in repository.tags else ("branches", "heads")
            both[kind].append({"name": name, "ref": f"refs/{place}/{name}", "targetCommit": sha})
        self.send(both)

    def validate(self):
        self.send({"errors": [], "warnings": []})

    def preupload(self, name, revision):
        files = json.loads(self.body)["files"]
        mode = {True: "lfs", False: "regular"}
        large = [mode[file["path"].endswith(".safetensors")] for file in files]
        self.send(
            {
                "files": [
                    {"path": file["path"], "uploadMode": kind, "shouldIgnore": False, "oid": None}
                    for file, kind in zip(files, large, strict=True)
                ]
            }
        )

    def lfs_batch(self, name):
        objects = json.loads(self.body)["objects"]
        for blob in objects:
            if blob["oid"] not in self.server.blobs:
                blob["actions"] = {"upload": {"href": self.address(f"/blobs/{blob['oid']}")}}
        self.send({"transfer": "basic", "objects": objects})

    def put_blob(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.blobs[oid] = self.body
        self.send()

    def commit(self, name, revision):
        added, deleted = {}, []
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                added[value["path"]] = self.server.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                deleted.append(value["path"])
        sha = self.server.repositories[name].commit(revision, added, deleted)
        self.send({"commitUrl": self.address(f"/{name}/commit/{sha}"), "commitOid": sha, "success": True})

    def tag(self, name, revision):
        repository = self.server.repositories[name]
        tag = json.loads(self.body)["tag"]
        repository.refs[tag] = repository.sha(revision)
        repository.tags.append(tag)
        self.send({})

    def resolve(self, name, revision, path):
        repository = self.server.repositories.get(name)
        if repository is None:
            return self.fail("RepoNotFound")
        sha, content = repository.sha(revision), repository.files(revision).get(path)
        if content is None:
            missing = "EntryNotFound" if sha in repository.commits else "RevisionNotFound"
            return self.send({}, 404, X_Error_Code=missing, X_Repo_Commit=sha)
        self.send(content, X_Repo_Commit=sha, ETag=f'"{digest(content)}"')


def digest(content):
    return hashlib.sha1(content).hexdigest()


NAME = r"((?:spaces/)?[\w.-]+/[\w.-]+)"
ROUTES = {
    "/api/whoami-v2": ({"GET"}, Hub.whoami),
    "/api/repos/create": ({"POST"}, Hub.create),
    "/api/validate-yaml": ({"POST"}, Hub.validate),
    f"/api/models/{NAME}": ({"GET"}, Hub.info),
    f"/api/models/{NAME}/revision/([^/]+)": ({"GET"}, Hub.info),
    f"/api/models/{NAME}/tree/([^/]+)": ({"GET"}, Hub.tree),
    f"/api/models/{NAME}/refs": ({"GET"}, Hub.refs),
    f"/api/models/{NAME}/preupload/([^/]+)": ({"POST"}, Hub.preupload),
    f"/api/models/{NAME}/commit/([^/]+)": ({"POST"}, Hub.commit),
    f"/api/models/{NAME}/tag/([^/]+)": ({"POST"}, Hub.tag),
    rf"/{NAME}\.git/info/lfs/objects/batch": ({"POST"}, Hub.lfs_batch),
    "/blobs/([0-9a-f]+)": ({"PUT"}, Hub.put_blob),
    f"/{NAME}/resolve/([^/]+)/(.+)": ({"GET", "HEAD"}, Hub.resolve),
}


@contextmanager
def serve():
    """A running stand-in: its `repositories`, and `environment`, which points a child process at it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.blobs = {}, {}
    server.environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_standin",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
