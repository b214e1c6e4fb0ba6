"""Tests of finding the licence in a model's files."""

from __future__ import annotations

import pytest

from egad_jax.models.license import License, license_of_directory, license_of_gguf

LINK = "https://example.org/LICENSE"


@pytest.mark.parametrize(
  ("front", "wanted"),
  [
    ("license: apache-2.0", License("apache-2.0")),
    ("tags: [x]\nlicense: 'mit'  # really", License("mit")),
    ('license: "cc-by-4.0"\n', License("cc-by-4.0")),
    ("license: other\nlicense_name: llama3.2", License("other", "llama3.2")),
    (
      f"license: other\nlicense_name: A B\nlicense_link: {LINK}",
      License("other", "A B", LINK),
    ),
    ("license_name: deepseek\nlicense_link: LICENSE", License("other", "deepseek", "LICENSE")),
    ("license: [apache-2.0, mit]", License("apache-2.0, mit")),
    ("license:\n  - apache-2.0\n  - mit", License("apache-2.0, mit")),
    ("license:\n  name: Custom\n  url: " + LINK, License("other", "Custom", LINK)),
    ("license: >-\n  other\n  terms", License("other terms")),
    ("model-index:\n  - name: x\n    license: mit\nlicense: gpl-3.0", License("gpl-3.0")),
    ("license: 2024-13-45\n", License("2024-13-45")),
    ("license: no", License("no")),
    ("license:", None),
    ("license: null", None),
    ("license: []", None),
    ("extra:\n  license: mit", None),
    ("license: unknown", None),
    ("license: [mit", None),
    ("- license: mit", None),
    ("license: " + "[" * 5000, None),
  ],
)
def test_front_matter(tmp_path, front, wanted):
  (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\nlicense: bsd\n", "utf-8")
  assert license_of_directory(tmp_path) == wanted


@pytest.mark.parametrize(
  "text",
  [
    b"---\r\ntags: [x]\r\nlicense: mit\r\n---\r\n",
    b"\xef\xbb\xbf---\nlicense: mit\n---\n",
    b"\n\n--- \nlicense: mit\n---  \ntext",
    b"---\nname: caf\xe9\nlicense: mit\n---\n",
    b"---\nlicense: mit\n---",
    b"---\rlicense: mit\r---\r",
    b"---\nlicense: mit\n...\n",
  ],
)
def test_front_matter_of_any_editor(tmp_path, text):
  (tmp_path / "README.md").write_bytes(text)
  assert license_of_directory(tmp_path) == License("mit")


def test_no_front_matter(tmp_path):
  assert license_of_directory(tmp_path) is None
  (tmp_path / "README.md").write_text("license: mit\n---\n")
  assert license_of_directory(tmp_path) is None


def test_mappings_that_would_grow_without_end_are_not_expanded(tmp_path):
  layers = ["a0: &a0 {license: x}"]
  layers += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
  text = "\n".join(["---", *layers, "license: mit", "---", ""])
  (tmp_path / "README.md").write_text(text)
  assert license_of_directory(tmp_path) == License("mit")


@pytest.mark.parametrize(
  "name", ["LICENSE", "License.txt", "LICENCE.md", "COPYING", "LICENSE-MODEL"]
)
def test_a_licence_file_in_place_of_a_card(tmp_path, name):
  (tmp_path / name).write_text("\n\n   LLAMA 9  COMMUNITY\tLICENSE\n\nAgreement ...\n")
  assert license_of_directory(tmp_path) == License("other", "LLAMA 9 COMMUNITY LICENSE", name)
  (tmp_path / "README.md").write_text("---\nlicense: llama9\n---\n")
  assert license_of_directory(tmp_path) == License("llama9")


def test_gguf():
  key = "general.license"
  assert license_of_gguf({}) is None
  assert license_of_gguf({key: "mit"}) == License("mit")
  named = {key: "other", f"{key}.name": "Llama 9", f"{key}.link": LINK}
  assert license_of_gguf(named) == License("other", "Llama 9", LINK)
  assert license_of_gguf({key: 5}) is None
