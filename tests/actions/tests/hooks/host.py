"""A git host for one repository, as far as Naru needs one: git over HTTP by git's own backend, and the call that
writes a commit status. What it was told goes to a file, one JSON object a line.

host.py PORT ROOT TOKEN LOG: repositories are below ROOT. The first status is answered with 503. While there is a file
ROOT/hang, git is not answered.
"""
import base64, http.server, json, os, subprocess, sys, threading, time

port, root, token, log = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
lock = threading.Lock()
failures = [1]


class Host(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            out = b""
            while size := int(self.rfile.readline(), 16):
                out += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return out
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def git(self):
        body = self.body()
        while os.path.exists(root + "/hang"):
            time.sleep(0.02)
        given = self.headers.get("Authorization", "")
        password = base64.b64decode(given[6:]).decode().partition(":")[2] if given.startswith("Basic ") else ""
        if password != token:
            return self.answer(401, headers=[("WWW-Authenticate", "Basic")])
        path, _, query = self.path.partition("?")
        env = dict(os.environ, GIT_PROJECT_ROOT=root, GIT_HTTP_EXPORT_ALL="1", PATH_INFO=path, QUERY_STRING=query,
                   REQUEST_METHOD=self.command, CONTENT_TYPE=self.headers.get("Content-Type", ""),
                   HTTP_CONTENT_ENCODING=self.headers.get("Content-Encoding", ""),
                   GIT_PROTOCOL=self.headers.get("Git-Protocol", ""), CONTENT_LENGTH=str(len(body)))
        done = subprocess.run(["git", "http-backend"], input=body, env=env, stdout=subprocess.PIPE)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = [tuple(line.decode().split(": ", 1)) for line in head.split(b"\r\n") if b": " in line]
        status = next((int(value.split()[0]) for name, value in headers if name == "Status"), 200)
        self.answer(status, content, [it for it in headers if it[0] != "Status"])

    def do_GET(self):
        self.git()

    def do_POST(self):
        if "/statuses/" not in self.path:
            return self.git()
        body = json.loads(self.body())
        if not any(token in self.headers.get(it, "") for it in ("Authorization", "Private-Token")):
            return self.answer(401)
        with lock:
            if failures:
                failures.pop()
                return self.answer(503)
            with open(log, "a") as file:
                file.write(json.dumps({"path": self.path, "body": body}) + "\n")
        self.answer(201, b"{}")

    def log_message(self, *args):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", port), Host).serve_forever()
