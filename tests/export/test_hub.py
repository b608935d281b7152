"""Models on a hub and back, against a hub that is served here."""

import base64
import hashlib
import http.server
import json
import shutil
import threading
import urllib.parse

import numpy as np
import pytest
import yaml

import jaxgen
from jaxgen.api import export, load, pull, push
from jaxgen.errors import UsageError
from tests import base_run
from tests.running import run_here

REPO = "me/digits"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as sending and fetching a model asks for.

    `repos` of the class: name -> {path: bytes}; `large`: sizes from which a file goes by LFS.
    """

    repos: dict[str, dict[str, bytes]] = {}
    stored: dict[str, bytes] = {}
    large = 1000

    def log_message(self, *_):
        pass

    def reply(self, content, code=200, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def missing(self):
        self.reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    def commit(self, name):
        return hashlib.sha1(repr(sorted(self.repos[name].items())).encode()).hexdigest()

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            if name not in self.repos:
                return self.missing()
            if parts[4:5] == ["tree"]:
                files = self.repos[name]
                rows = [
                    {"type": "file", "path": p, "size": len(d), "oid": "0"}
                    for p, d in files.items()
                ]
                return self.reply(rows)
            if parts[4:5] == ["revision"] and parts[5] not in ("main", self.commit(name)):
                return self.reply({"error": "no"}, 404, X_Error_Code="RevisionNotFound")
            files = [{"rfilename": p} for p in self.repos[name]]
            return self.reply(
                {"id": name, "modelId": name, "sha": self.commit(name), "siblings": files}
            )
        name, (verb, _), file = "/".join(parts[:2]), parts[2:4], "/".join(parts[4:])
        assert verb == "resolve", path
        if name not in self.repos:
            return self.missing()
        if file not in self.repos[name]:
            return self.reply({"error": "none"}, 404, X_Error_Code="EntryNotFound")
        data = self.repos[name][file]
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self.reply(data, ETag=etag, X_Repo_Commit=self.commit(name))

    def do_PUT(self):
        self.stored[self.path.rpartition("/")[2]] = self.body()
        self.reply(b"")

    def do_POST(self):
        parts = urllib.parse.urlparse(self.path).path.strip("/").split("/")
        body = self.body()
        if self.headers.get("Authorization") is None:
            return self.reply({"error": "no token"}, 401)
        if parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            if name in self.repos:
                return self.reply({"error": "there is one", "url": name}, 409)
            self.repos[name] = {}
            return self.reply({"url": f"{self.server.address}/{name}", "name": name})
        if parts[-1] == "validate-yaml":
            text = json.loads(body)["content"]
            if text.startswith("---"):
                assert yaml.safe_load(text.split("---")[1])["library_name"] == "jaxgen"
            return self.reply({"errors": [], "warnings": []})
        if parts[-1] == "batch":  # of LFS
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.address}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            reply = {"transfer": "basic", "objects": objects}
            return self.reply(reply, Content_Type="application/vnd.git-lfs+json")
        name = "/".join(parts[2:4])
        if parts[4] == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] > self.large else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.reply({"files": modes})
        assert parts[4] == "commit", self.path
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.repos[name][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.repos[name][value["path"]] = self.stored[value["oid"]]
            elif entry["key"] == "deletedFile":
                self.repos[name].pop(value["path"], None)
        where = f"{self.server.address}/{name}/commit/{self.commit(name)}"
        return self.reply({"commitUrl": where, "commitOid": self.commit(name)})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub's repositories, and the library told where it is."""
    from huggingface_hub import constants, hf_api

    server = http.server.ThreadingHTTPServer(("localhost", 0), Hub)
    server.address = f"http://localhost:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(Hub, "repos", {})
    monkeypatch.setattr(Hub, "stored", {})
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    # Read from the environment when the library is imported.
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        server.address + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # this network is here
    monkeypatch.setattr(hf_api.api, "endpoint", server.address)
    yield Hub.repos
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "model"
    export(load(base_run.base()), out, licence="mit")
    return out


def test_a_run_goes_to_the_hub_and_back(hub, tmp_path):
    base = base_run.base()
    code, out, err = run_here(
        "push", "--workdir", base, "--repo", REPO, "--license", "mit", "--json"
    )
    assert code == 0 and json.loads(out)["repo"] == REPO, err
    assert "model.safetensors" in Hub.stored or len(hub[REPO]["model.safetensors"]) > Hub.large
    assert hub[REPO]["README.md"].decode().startswith('---\nlicense: "mit"')
    code, out, err = run_here("pull", "--repo", REPO, "--out", str(tmp_path / "got"), "--json")
    assert code == 0, err
    expected = load(base).sample([0, 1]).images
    np.testing.assert_array_equal(load(tmp_path / "got").sample([0, 1]).images, expected)
    assert not (tmp_path / "got" / ".cache").exists()
    np.testing.assert_array_equal(jaxgen.load(f"hf://{REPO}").sample([0, 1]).images, expected)
    revision = f"hf://{REPO}@main"
    code, _, err = run_here("sample", "--workdir", revision, "--out", str(tmp_path / "a.png"))
    assert code == 0, err
    # What writes into a workdir wants one of this machine.
    code, _, err = run_here("evaluate", "--workdir", revision)
    assert code == 2 and "path of this machine" in err, err


def test_a_folder_goes_as_it_is_and_takes_the_place_of_what_was_there(hub, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "m")
    (copy / "README.md").write_text("# Mine\n")
    (copy / "classifier.safetensors").write_bytes(b"of a scoring")
    hub[REPO] = {"receipts/old.json": b"{}", "train.py": b"print()"}
    push(copy, REPO)
    assert hub[REPO]["README.md"] == b"# Mine\n" and "receipts/old.json" not in hub[REPO]
    assert "classifier.safetensors" not in hub[REPO]
    said = pull(REPO, tmp_path / "got")
    assert said["licence"] == "mit" and not (tmp_path / "got" / "train.py").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda files: files.update({"model.safetensors": b"x" * 2000}), "sha256 differs"),
        (lambda files: files.pop("model.safetensors"), "a model that jaxgen exported"),
        (lambda files: files.pop("config.json"), "a model that jaxgen exported"),
        (lambda files: files.pop("samples/final_samples.png"), "incomplete, without samples"),
        (lambda files: files.update({"receipts/x.json": b"{}"}), "not exported with it"),
    ],
)
def test_what_is_not_as_it_was_exported_is_not_taken(change, message, hub, folder, tmp_path):
    push(folder, REPO)
    change(hub[REPO])
    with pytest.raises(UsageError, match=message):
        pull(REPO, tmp_path / "got")
    assert not (tmp_path / "got").exists() and not list(tmp_path.glob(".pull*"))
    with pytest.raises(UsageError, match=message):
        load(f"hf://{REPO}")


def test_a_fetched_config_runs_no_code(hub, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "m")
    config = json.loads((copy / "config.json").read_text())
    config["wrap"] = [{"name": "os.system", "command": f"touch {tmp_path / 'mark'}"}]
    (copy / "config.json").write_text(json.dumps(config))
    push(copy, REPO)
    pull(REPO, tmp_path / "got")
    for place in (tmp_path / "got", f"hf://{REPO}"):
        with pytest.raises(UsageError, match="--trust os"):
            load(place)
    assert not (tmp_path / "mark").exists()


def test_what_the_hub_refuses_is_one_message(hub, folder, tmp_path, monkeypatch):
    def answer(*arguments):
        code, _, err = run_here(*arguments)
        assert code == 2 and len(err.strip().splitlines()) == 1, err
        return err

    got = str(tmp_path / "got")
    assert "a model that there is" in answer("pull", "--repo", "me/none", "--out", got)
    push(folder, REPO)
    assert "branch, tag or commit" in answer("pull", "--repo", f"{REPO}@v9", "--out", got)
    assert "OWNER/NAME" in answer("pull", "--repo", "digits", "--out", got)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    assert "empty one" in answer("pull", "--repo", REPO, "--out", str(tmp_path / "full"))
    assert "--license" in answer("push", "--workdir", base_run.base(), "--repo", "me/new")
    assert "me/new" not in hub
    # No token; no network.
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
    assert "hf auth login" in answer("push", "--workdir", str(folder), "--repo", "me/other")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://localhost:9")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://localhost:9")
    assert "cannot be reached" in answer("pull", "--repo", REPO, "--out", got)
    assert not (tmp_path / "got").exists()
