"""Tests of models on the Hugging Face Hub: its cache, a stand-in for its server, and no network."""

from __future__ import annotations

import hashlib
import http.server
import json
import pathlib
import threading

import pytest
from huggingface_hub import constants

from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from egad_jax.files import hub
from egad_jax.models.load import load_pretrained
from tests.models import tiny_llama

NAME, COMMIT = "someone/tiny", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty cache, and a machine without a network."""
  path = tmp_path / "hub"
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(path))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  return path


def fill(cache, revision="main"):
  """Lays a model out as the Hub does: blobs, links to them by commit, and the name of a commit."""
  root = cache / "models--someone--tiny"
  snapshot = root / "snapshots" / COMMIT
  tiny_llama.make(snapshot)
  (root / "blobs").mkdir()
  for path in list(snapshot.iterdir()):
    blob = root / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(blob)
    path.symlink_to(blob)
  (root / "refs").mkdir()
  (root / "refs" / revision).write_text(COMMIT)
  return snapshot


def test_a_model_in_the_cache_is_read_without_a_network(cache):
  snapshot = fill(cache)
  assert hub.snapshot(f"hf:{NAME}", weights=True) == snapshot
  assert hub.snapshot(f"hf:{NAME}@{COMMIT}", weights=True) == snapshot
  read = load_pretrained(f"hf:{NAME}@main")
  assert (read.name, read.config.num_layers) == (NAME, 2)
  assert read.params["embedding"][:].shape == (260, 32)
  assert Tokenizer.from_source(f"hf:{NAME}").vocab_size == 260


@pytest.mark.parametrize("filled", [True, False])
def test_what_is_not_there_is_one_message(cache, filled):
  if filled:
    fill(cache)
  with pytest.raises(InputError, match=r"not whole in the cache .*hub.*cannot be downloaded") as e:
    load_pretrained(f"hf:{NAME}@other" if filled else f"hf:{NAME}")
  assert "\n" not in str(e.value)
  assert "hf download someone/tiny" in str(e.value)
  assert "give a directory" in str(e.value)


@pytest.mark.parametrize(
  "source",
  ["hf:", "hf:a/b/c", "hf:/etc/passwd", "hf:../x", "hf:a/..", "hf:a b", "hf:a@", "hf:a@../b"],
)
def test_names_that_are_none(cache, source):
  with pytest.raises(InputError, match="expected hf:NAME or hf:NAME@REVISION"):
    hub.snapshot(source, weights=True)


class Server(http.server.BaseHTTPRequestHandler):
  """The few answers of the Hub that a download asks for."""

  files: dict[str, bytes]
  status = 200
  requested: list[str]

  def log_message(self, *_):
    """Says nothing."""

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    path = self.path.split("?")[0]
    headers, body = {"X-Repo-Commit": COMMIT}, b"{}"
    status = self.status
    if status != 200:
      headers["X-Error-Code"] = {404: "RepoNotFound", 403: "GatedRepo"}.get(status, "")
    elif path.startswith(f"/api/models/{NAME}/tree/"):
      body = json.dumps(
        [
          {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
          for name, data in self.files.items()
        ]
      ).encode()
    elif path.startswith("/api/"):
      body = json.dumps({"id": NAME, "sha": COMMIT, "siblings": []}).encode()
    else:
      name = path.split(f"/resolve/{COMMIT}/")[1]
      body = self.files[name]
      headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
      if self.command == "GET":
        self.requested.append(name)
    self.send_response(status)
    for key, value in (headers | {"Content-Length": str(len(body))}).items():
      self.send_header(key, value)
    self.end_headers()
    if self.command == "GET":
      self.wfile.write(body)


@pytest.fixture
def server(cache, monkeypatch, tmp_path):
  """A server with a model and files that are not to be downloaded."""
  made = tiny_llama.make(tmp_path / "made")
  files = {path.name: path.read_bytes() for path in made.iterdir()}
  others = ("pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors")
  handler = type(
    "Handler", (Server,), {"files": files | dict.fromkeys(others, b"x"), "requested": []}
  )
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    address = f"http://127.0.0.1:{running.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield handler
    running.shutdown()


def test_only_the_files_that_are_read_are_downloaded_and_once(server):
  Tokenizer.from_source(f"hf:{NAME}")
  assert "model.safetensors" not in server.requested
  read = load_pretrained(f"hf:{NAME}")
  assert read.params["embedding"][:].shape == (260, 32)
  wanted = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
  assert sorted(server.requested) == wanted
  load_pretrained(f"hf:{NAME}")
  assert sorted(server.requested) == wanted


@pytest.mark.parametrize(
  ("status", "message"),
  [
    (404, "no such model or revision.*hf auth login"),
    (403, r"accepted its terms.*https://huggingface\.co/someone/tiny"),
    (500, "not whole in the cache"),
  ],
)
def test_refusals_of_the_hub_say_what_to_do(server, status, message):
  server.status = status
  with pytest.raises(InputError, match=message):
    hub.snapshot(f"hf:{NAME}", weights=True)


def test_an_unreachable_hub_is_one_message(cache, monkeypatch):
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
  with pytest.raises(InputError, match="cannot be downloaded: LocalEntryNotFoundError"):
    hub.snapshot(f"hf:{NAME}", weights=True)


def test_nothing_is_imported_for_other_sources():
  text = pathlib.Path(hub.__file__).read_text()
  top = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
  assert not any("huggingface_hub" in line for line in top)
