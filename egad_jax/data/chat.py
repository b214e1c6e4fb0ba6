"""Chat templates, rendered the way Hugging Face renders them, out of reach of this process."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from egad_jax.errors import InputError

_WORKER = pathlib.Path(__file__).with_name("chat_worker.py")
# The worker gives up earlier, by its own clock of used time.
_TIMEOUT_SECONDS = 60.0


def render_chat(
  template: str,
  messages: Sequence[Mapping[str, Any]],
  *,
  add_generation_prompt: bool,
  special_tokens: Mapping[str, str],
) -> str:
  """Renders a conversation with a Jinja chat template.

  Args:
    template: the Jinja source. It comes with a model file, so it runs in a sandbox, in a process
      of its own with 512 MiB of memory and 2 seconds of processor time (see `chat_worker`).
    messages: `{"role": ..., "content": ...}` in order.
    add_generation_prompt: whether to end with the opening of the assistant's turn.
    special_tokens: names the template may use, such as `bos_token`, with their text.

  Returns:
    The text, special tokens written out.

  Raises:
    InputError: if the template does not parse, refuses the messages, or exceeds its limits.

  >>> render_chat("{% for m in messages %}<{{ m.role }}>{{ m.content }}\\n{% endfor %}",
  ...             [{"role": "user", "content": "Hi"}],
  ...             add_generation_prompt=False, special_tokens={})
  '<user>Hi\\n'
  """
  request = {
    "template": template,
    "messages": list(messages),
    "add_generation_prompt": add_generation_prompt,
    "special_tokens": dict(special_tokens),
  }
  try:
    # -P: modules beside the script, whatever their names, stand for no others.
    worker = subprocess.run(
      [sys.executable, "-P", str(_WORKER)],
      input=json.dumps(request).encode(),
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      timeout=_TIMEOUT_SECONDS,
      check=True,
    )
    answer = json.loads(worker.stdout)
  except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
    answer = {"error": "it takes too much time or memory"}
  if "text" in answer:
    return answer["text"]
  raise InputError(
    f"the tokenizer's chat template cannot render these {len(messages)} messages: "
    f"{answer['error']}. Check their roles and order, and where the template comes from."
  )
