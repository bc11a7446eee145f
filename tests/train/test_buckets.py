"""A run whose folder lies in a bucket, gs://BUCKET/FOLDER.

The bucket is made up: a server on loopback speaks as much of Google's JSON API
as TensorStore does, and fsspec, on which epath builds, looks into the same
memory.
"""

import http.server
import json
import threading
import time
import urllib.parse
import zlib

import fsspec
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from orbax.checkpoint._src.path import gcs_utils

from dollar_jax.interop import buckets
from dollar_jax.interop.pipeline import EMBEDDED
from dollar_jax.train import metrics

STEPS = 12
NOW = "2030-01-01T00:00:00Z"
RUN = "gs://made-up/runs/one"


class Bucket(MemoryFileSystem):
  """Objects by name; a folder is no more than how some names begin."""

  protocol = ("gs", "gcs")
  store = {}
  pseudo_dirs = [""]
  cachable = False

  @classmethod
  def _strip_protocol(cls, path):
    path = path.removeprefix("gs://").removeprefix("gcs://")
    return "/" + path.strip("/") if path.strip("/") else ""

  def listdir(self, path, detail=True, **options):
    return self.ls(path, detail=detail, **options)


def generation(content):
  """What changes whenever an object does."""
  return str(zlib.crc32(content) + 1)


class Api(http.server.BaseHTTPRequestHandler):
  """What TensorStore asks of a bucket."""

  protocol_version = "HTTP/1.1"

  def do_GET(self):
    name, query = self._asked()
    if name is None:
      start = "/made-up/" + query.get("prefix", "")
      names = sorted(key for key in Bucket.store if key.startswith(start))
      items = [{"name": name.removeprefix("/made-up/")} for name in names]
      return self._answer(200, json.dumps({"items": items}).encode())
    if name not in Bucket.store:
      return self._answer(404)
    content = Bucket.store[name].getvalue()
    bounds = self.headers.get("Range", "").removeprefix("bytes=")
    if not bounds:
      return self._answer(200, content)
    first, last = bounds.split("-")
    stop = int(last) + 1 if last else len(content)
    where = f"bytes {first}-{stop - 1}/{len(content)}"
    part = content[int(first) : stop]
    return self._answer(206, part, {"Content-Range": where}, content)

  def do_POST(self):
    _, query = self._asked()
    name = f"/made-up/{query['name']}"
    content = self.rfile.read(int(self.headers["Content-Length"]))
    if query.get("ifGenerationMatch") == "0" and name in Bucket.store:
      return self._answer(412)
    Bucket.store[name] = MemoryFile(None, name, content)
    facts = {"name": query["name"], "bucket": "made-up"}
    facts |= {"generation": generation(content), "metageneration": "1"}
    facts |= {"size": str(len(content)), "timeCreated": NOW, "updated": NOW}
    return self._answer(200, json.dumps(facts).encode())

  def do_DELETE(self):
    found = Bucket.store.pop(self._asked()[0], None)
    return self._answer(204 if found else 404)

  def _asked(self):
    """Name of the object in the store, if any, and the query."""
    path, _, query = self.path.partition("?")
    _, _, name = path.partition("/b/made-up/o/")
    query = dict(urllib.parse.parse_qsl(query))
    name = f"/made-up/{urllib.parse.unquote(name)}" if name else None
    return name, query

  def _answer(self, status, content=b"", headers=(), whole=b""):
    self.send_response(status)
    self.send_header("x-goog-generation", generation(whole or content))
    self.send_header("Content-Length", str(len(content)))
    for name, value in dict(headers).items():
      self.send_header(name, value)
    self.end_headers()
    self.wfile.write(content)

  def log_message(self, *args):
    """Says nothing."""


@pytest.fixture(scope="module")
def bucket():
  """A bucket called made-up."""
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  before = fsspec.registry.get("gcs")
  fsspec.register_implementation("gcs", Bucket, clobber=True)
  with pytest.MonkeyPatch.context() as patch:
    url = f"http://127.0.0.1:{server.server_port}"
    patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
    patch.setenv("GCE_METADATA_ROOT", "127.0.0.1:1")
    patch.setattr(gcs_utils, "get_bucket", lambda name: None)
    yield epath.Path("gs://made-up")
  server.shutdown()
  server.server_close()
  fsspec.register_implementation("gcs", before, clobber=True)


def test_a_run_in_a_bucket_is_the_run_on_a_disk(
  runs, dollar, bucket, tmp_path, caplog, assert_same_run
):
  whole, run = runs.whole("teacher"), epath.Path(RUN)
  command = runs.command("teacher", RUN)
  assert dollar(command)[::2] == (0, "")
  copy = buckets.download(run)
  assert_same_run(copy, whole)
  assert not (copy / "data").exists()

  # interrupted: a checkpoint in pieces, a later one not yet whole, no model
  for name in ("model", "checkpoints/10/state"):
    (run / name).rmtree()
  (run / "checkpoints" / str(STEPS) / "commit_success.txt").unlink()
  assert dollar(command)[::2] == (0, "")
  assert f"{RUN}/checkpoints/10 cannot be read" in caplog.text
  assert f"{RUN}/checkpoints/12 cannot be read" not in caplog.text
  assert_same_run(buckets.download(run), whole)

  out = tmp_path / "out"
  line = [f"--model={RUN}", "--prompts=a 3 moving left", f"--out={out}"]
  assert dollar(["sample", *line])[0] == 0
  assert list(out.glob("*.mp4"))


def test_rows_are_in_the_bucket_before_the_checkpoint(bucket, monkeypatch):
  folder = "gs://made-up/rows"
  log = metrics.MetricsLog(folder, 0)
  log.write(1, {"loss": 1.0})
  assert metrics.read(folder) == [], "an object a row would be too many"
  log.sync()
  assert [row["step"] for row in metrics.read(folder)] == [1]
  log.write(2, {"loss": 1.0})
  now = time.monotonic()
  monkeypatch.setattr(metrics.time, "monotonic", lambda: now + 61)
  log.write(3, {"loss": 1.0})
  assert [row["step"] for row in metrics.read(folder)] == [1, 2, 3]
  log.close()
  again = metrics.MetricsLog(folder, 2)
  assert [row["step"] for row in metrics.read(folder)] == [1, 2]
  again.close()


@pytest.mark.parametrize(
  ("place", "remedy"),
  [
    ("s3://elsewhere/run", "a folder on a disk, or gs://BUCKET/…"),
    ("gs://elsewhere/run", "run `pip install gcsfs`, or mount the bucket"),
  ],
)
def test_what_cannot_be_opened_is_one_sentence(
  runs, refusal, monkeypatch, place, remedy
):
  def missing(self, path):
    raise ImportError("Install gcsfs to access GCS")

  monkeypatch.setattr(epath.backend.fsspec_backend.__class__, "fs", missing)
  sentence = refusal(runs.command("teacher", place))
  assert sentence.startswith(f"{place} cannot be opened")
  assert remedy in sentence


def test_what_wants_a_disk_says_so(refusal):
  where = "gs://made-up/out"
  mount = f"{where} is not on a disk; mount the bucket with"
  line = ["--prompts=a 3 moving up", f"--out={where}"]
  assert refusal(["sample", *line]).startswith(mount)
  line = [f"--source={EMBEDDED}", f"--out={where}"]
  assert refusal(["convert", *line]).startswith(mount)
