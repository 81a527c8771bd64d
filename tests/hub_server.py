"""A stand-in for the Hugging Face hub on loopback: repositories, LFS blobs, commits in memory."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """`repositories`: {(type, name): {private, files}}; `cuts` blobs are cut off while sent."""

    def __init__(self, cuts=0):
        self.repositories, self.blobs, self.sent, self.cuts = {}, {}, [], cuts
        self.accepted = False
        hub, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def body(self):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def reply(self, value, status=200):
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                if self.path.startswith("/api/whoami"):
                    return self.reply({"name": "me", "type": "user", "orgs": []})
                kind, name = re.match(r"/api/(model|dataset)s/([^/]+/[^/?]+)", self.path).groups()
                found = hub.repositories.get((kind, name))
                return self.reply({"id": name, "private": found["private"], "sha": "0" * 40}) \
                    if found else self.reply({"error": "none"}, 404)

            def do_PUT(self):
                with lock:      # blobs come in several threads: one arrives, others are cut
                    cut = hub.cuts > 0 and hub.accepted
                    hub.cuts, hub.accepted = hub.cuts - cut, True
                if cut:
                    self.rfile.read(1000)
                    return self.connection.close()
                data = self.body()
                hub.sent.append(len(data))
                hub.blobs[hashlib.sha256(data).hexdigest()] = data
                return self.reply({})

            def do_POST(self):
                given = self.body()
                if self.path == "/api/repos/create":
                    return self.create(json.loads(given))
                if self.path == "/api/validate-yaml":
                    return self.reply({"errors": [], "warnings": []})
                if self.path.endswith("/info/lfs/objects/batch"):
                    return self.batch(json.loads(given))
                kind, name, act = re.match(r"/api/(model|dataset)s/([^/]+/[^/]+)/(\w+)/main",
                                           self.path).groups()
                return getattr(self, act)(kind, name, given)

            def create(self, given):
                key = (given.get("type") or "model",
                       f"{given.get('organization') or 'me'}/{given['name']}")
                there = key in hub.repositories
                hub.repositories.setdefault(key, {
                    "private": bool(given.get("private")
                                    or given.get("visibility") == "private"), "files": {}})
                return self.reply({"url": f"{hub.url}/{key[1]}", "id": key[1]},
                                  409 if there else 200)

            def preupload(self, kind, name, given):
                return self.reply({"files": [
                    {"path": one["path"], "shouldIgnore": False, "oid": None, "uploadMode":
                     "lfs" if one["path"].endswith((".safetensors", ".parquet")) else "regular"}
                    for one in json.loads(given)["files"]]})

            def batch(self, given):
                return self.reply({"transfer": "basic", "objects": [
                    {**one, **({} if one["oid"] in hub.blobs else {"actions": {"upload": {
                        "href": f"{hub.url}/blob/{one['oid']}", "header": {}}}})}
                    for one in given["objects"]]})

            def commit(self, kind, name, given):
                files = hub.repositories[kind, name]["files"]
                for line in given.decode().splitlines():
                    one = json.loads(line)
                    if one["key"] == "file":
                        files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
                    elif one["key"] == "lfsFile":
                        files[one["value"]["path"]] = hub.blobs[one["value"]["oid"]]
                return self.reply({"commitUrl": f"{hub.url}/{name}/commit/{'1' * 40}",
                                   "commitOid": "1" * 40})

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
