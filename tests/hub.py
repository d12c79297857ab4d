"""A Hugging Face Hub on this machine: as much of it as uploads and downloads of models need."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import ModelCard, ModelCardData

COMMIT = "c" * 40


class Hub:
    """Keeps the files of each repository; `requests` are (verb, path, body)."""

    def __init__(self, token: str) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        """Large files by SHA-256."""
        self.validated: list[str] = []
        """Cards that were sent for validation."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Authorization") != f"Bearer {token}":
                    return self.answer({"error": "Invalid username or password."}, 401)
                self.answer(hub.post(urlsplit(self.path).path, body, self.headers["Host"]))

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hub.blobs[hashlib.sha256(body).hexdigest()] = body
                self.answer({})

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                repository = "/".join(path.removeprefix("/api/models").split("/")[1:3])
                if repository not in hub.files:
                    return self.answer({"error": "Repository not found"}, 404)
                files = hub.files[repository]
                if "/tree/" in path:
                    found = {name: {"size": len(files[name]), "oid": COMMIT} for name in files}
                    return self.answer([{"type": "file", "path": n, **found[n]} for n in found])
                if path.startswith("/api/models/"):
                    siblings = [{"rfilename": name} for name in files]
                    return self.answer({"id": repository, "sha": COMMIT, "siblings": siblings})
                content = files.get(path.split(f"/{repository}/resolve/")[1].split("/", 1)[1])
                if content is None:
                    return self.answer({"error": "not found"}, 404, "EntryNotFound")
                self.answer(content)

            def answer(self, content: Any, code: int = 200, error: str = "") -> None:
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                if error:
                    self.send_header("X-Error-Code", error)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def post(self, path: str, body: bytes, host: str) -> Any:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.files.setdefault(name, {})
            self.private[name] = "private" in (asked.get("visibility"), *asked)
            return {"url": f"http://{host}/{name}", "name": name}
        if path == "/api/validate-yaml":
            self.validated.append(json.loads(body)["content"])
            return {"errors": [], "warnings": []}
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"http://{host}/blob"}}}
                for each in json.loads(body)["objects"]
            ]
            return {"transfer": "basic", "objects": objects}
        repository = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            modes = [
                {"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": None}
                for each in json.loads(body)["files"]
                for name in [each["path"]]
                for mode in ["lfs" if name.endswith(".safetensors") else "regular"]
            ]
            return {"files": modes}
        assert "/commit/" in path, path
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[repository][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[repository][value["path"]] = self.blobs[value["oid"]]
        url = f"http://{host}/{repository}/commit/{COMMIT}"
        return {"success": True, "commitOid": COMMIT, "commitUrl": url}

    def card(self, repository: str, name: str = "README.md") -> ModelCardData:
        """A card's metadata, as the Hub's own library reads it."""
        return ModelCard(self.files[repository][name].decode()).data

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
