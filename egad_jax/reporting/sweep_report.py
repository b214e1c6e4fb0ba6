"""Compares the students of a sweep."""
from egad_jax.files.storage import write_text
import json
def is_written(directory, lines):
  return (directory/"sweep.html").exists()
def write(directory, lines, failures):
  with directory.writing("sweep.jsonl"):
    write_text(directory/"sweep.jsonl", "".join(json.dumps({"name":n,"changes":c})+"\n" for n,c in lines.items()))
  with directory.writing("sweep.html"):
    write_text(directory/"sweep.html", "x")
