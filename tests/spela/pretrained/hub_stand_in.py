"""A server on this machine that answers huggingface_hub as the Hub does, for one repository after another.

Run as a program it serves until it is killed, and prints its address; repositories are kept in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPOSITORIES: dict[str, dict[str, bytes]] = {}
COMMITS: list[str] = ["0" * 40]


class Hub(BaseHTTPRequestHandler):
    """Making repositories, a commit, its list of files, and the files."""

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), Content_Type="application/json")

    def _words(self) -> list[str]:
        return self.path.split("?")[0].strip("/").split("/")

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"] or 0))
        words = self._words()
        host = f"http://{self.headers['Host']}"
        if words[:3] == ["api", "repos", "create"]:
            asked = json.loads(content)
            owner = asked.get("organization") or "me"
            REPOSITORIES.setdefault(f"{owner}/{asked['name']}", {})
            self._json({"url": f"{host}/{owner}/{asked['name']}"})
        elif "preupload" in words:
            paths = [file["path"] for file in json.loads(content)["files"]]
            answer = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]
            self._json({"files": answer})
        elif "commit" in words:
            repo = "/".join(words[2:4])
            files = REPOSITORIES[repo]
            for line in content.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            COMMITS.append(f"{len(COMMITS):040x}")
            self._json(
                {"commitUrl": f"{host}/{repo}/commit/{COMMITS[-1]}", "commitOid": COMMITS[-1]}
            )
        else:  # of a card's header
            self._json({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        words = self._words()
        if words[0] == "api":
            name = "/".join(words[2:4])
            if name not in REPOSITORIES:
                self._send(404, X_Error_Code="RepoNotFound")
            elif "tree" in words:
                self._json(
                    [
                        {"type": "file", "path": path, "size": len(held), "oid": COMMITS[-1]}
                        for path, held in REPOSITORIES[name].items()
                    ]
                )
            else:
                held = [{"rfilename": path} for path in REPOSITORIES[name]]
                self._json({"id": name, "sha": COMMITS[-1], "siblings": held})
            return
        held = REPOSITORIES.get("/".join(words[:2]), {})
        if words[-1] not in held:
            self._send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMITS[-1])
            return
        etag = f'"{hashlib.sha256(held[words[-1]]).hexdigest()}"'
        self._send(200, held[words[-1]], ETag=etag, X_Repo_Commit=COMMITS[-1])

    do_HEAD = do_GET


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
