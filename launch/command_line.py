"""How every command starts and ends: flags, one message for bad input, exit codes.

0 done; 2 bad config, flag or input (one message, no traceback); 1 anything else. Commands but
for training, which saves first, end at once by SIGINT, as other programs do.
"""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable

import absl.logging
import ml_collections
from absl import app, flags
from etils import epath
from ml_collections import config_flags

from egad_jax import paths, streams
from egad_jax.errors import InputError

BAD_INPUT = 2
_OWN = ("egad_jax", "configs", "launch")
# As of a program that SIGPIPE ends.
_NOBODY_READS = 141
_MAX_MESSAGE = 2000


def define_config() -> flags.FlagHolder:
  """Defines `--config=FILE.py` with overrides `--config.a.b=value`."""
  return config_flags.DEFINE_config_file(
    "config", None, "Config file; --config.key=value overrides a key.", lock_config=True
  )


def required(name: str, meaning: str) -> flags.FlagHolder:
  """Defines a string flag that must be given."""
  return flags.DEFINE_string(name, None, meaning, required=True)


def text(flag: flags.FlagHolder) -> str:
  """The value of a flag that is text, and no path, in UTF-8 as far as the locale cannot read it.

  Raises:
    InputError: its bytes are of neither encoding.
  """
  value = flag.value
  try:
    value.encode()
  except UnicodeEncodeError:
    # In the C locale Python keeps bytes beyond ASCII as halves of surrogate pairs.
    try:
      value = os.fsencode(value).decode()
    except UnicodeError as error:
      raise InputError(f"--{flag.name} must be valid UTF-8: {error}.") from error
  return value


def config(flag: flags.FlagHolder) -> ml_collections.ConfigDict:
  """The config of `define_config`, with its overrides.

  Raises:
    InputError: the flag is missing or its file cannot be read.
  """
  try:
    if flag.value is not None:
      # Of a missing or broken file ml_collections tells only when something in it is read.
      flag.value.keys()
      return flag.value
  except (OSError, ImportError, SyntaxError, AttributeError, KeyError, ValueError) as error:
    raise InputError(f"--config cannot be read: {_message(error)}") from error
  raise InputError("--config is required: a file like configs/tiny.py.")


def stored_config(path: epath.Path) -> ml_collections.ConfigDict:
  """The config that a run stored, checked key by key against configs/default.py.

  Raises:
    InputError: the file is missing, is no config, or has other keys or values of other types.
  """
  from configs import default
  from egad_jax.training import workdir

  stored = workdir.read_config(path)
  if stored is None:
    raise InputError(f"{path}: no such file; expected the config of a run.")
  config = default.get_config()
  values, known = workdir.flat(stored), workdir.flat(config.to_dict())
  differing = sorted(values.keys() ^ known.keys())
  if differing:
    raise InputError(
      f"{path} must have exactly the keys of configs/default.py; these are in one only: "
      f"{', '.join(differing[:5])}. Restore the file, or use the version that made it."
    )
  for key, value in values.items():
    # JSON has no tuples.
    value = tuple(value) if isinstance(value, list) else value
    expected = type(known[key])
    if expected is list:
      expected = tuple
    if not (
      type(value) is expected or known[key] is None or (expected is float and _is_int(value))
    ):
      raise InputError(f"{path}: {key} must be of type {expected.__name__}; got {value!r}.")
    try:
      config.update_from_flattened_dict({key: value})
    except TypeError as error:  # Of a key whose default is None and has a type all the same.
      raise InputError(f"{path}: {_message(error)}") from error
  return config


def _is_int(value: object) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _message(error: BaseException) -> str:
  # The str() of a KeyError is the repr of its message, and ml_collections wraps one in another.
  text: object = error
  while isinstance(text, BaseException) and text.args:
    text = text.args[-1] if isinstance(text, OSError) and len(text.args) > 1 else text.args[0]
  # Messages quote files: no control character of theirs may reach the terminal.
  line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(str(text).split()))
  return line if len(line) <= _MAX_MESSAGE else f"{line[:_MAX_MESSAGE]} [...]"


def _parse(argv: list[str]) -> None:
  app.define_help_flags()
  try:
    rest = flags.FLAGS(_with_home(argv))
  except SystemExit:  # --help has printed; absl gives it code 1.
    sys.exit(0)
  except flags.Error as error:
    raise InputError(_message(error)) from error
  except (OSError, ImportError, SyntaxError) as error:
    raise InputError(f"--config cannot be read: {_message(error)}") from error
  # ml_collections reports a misspelt or mistyped key by raising from the flag's setter.
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise InputError(
      f"--config has no such key, or not of that type: {_message(error)} --print_config lists all."
    ) from error
  if rest[1:]:
    raise InputError(f"unexpected arguments {rest[1:]}; every argument is a flag, --name=value.")


def _with_home(argv: list[str]) -> list[str]:
  """The arguments with `~` in --config=~/FILE replaced, which the shell leaves as it is."""
  name = re.compile("--?config=(?=~)")
  return [
    found[0] + paths.expand(argument[found.end() :], "--config")
    if (found := name.match(argument))
    else argument
    for argument in argv
  ]


def _log_to_stderr() -> None:
  """This project's messages from INFO on; other libraries' (absl's users) only from WARNING on."""
  absl.logging.set_verbosity(absl.logging.WARNING)
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
  logger = logging.getLogger("egad_jax")
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  logger.propagate = False


def log_only_warnings_unless(first: bool) -> None:
  """What all processes of a run would say alike, the first one says."""
  if not first:
    logging.getLogger("egad_jax").setLevel(logging.WARNING)


def _escape_what_stdout_cannot_write() -> None:
  # As stderr does by itself. Texts of models and names of files have any character.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")


def run(main: Callable[[], int | None]) -> None:
  """Parses the flags, runs `main`, and exits with its code (None is 0).

  An `InputError`, and nothing else, is reported as one message on stderr with exit code 2. If what
  was printed does not arrive, the code is 1, or 141 if nobody reads any more (as in `| head -1`).
  """
  streams.take_over()
  if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    # Not a KeyboardInterrupt, which waits until a compilation is over.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
  program = os.path.basename(sys.argv[0])
  _escape_what_stdout_cannot_write()
  try:
    try:
      code = _run(main, program)
    finally:
      streams.close_stdout()
  except streams.StdoutError as error:
    code = _NOBODY_READS
    if not streams.reader_is_gone(error):
      print(f"{program}: standard output: {error.strerror}", file=sys.stderr)
      code = 1
  sys.exit(code)


def _with_packages(main: Callable[[], int | None]) -> int:
  try:
    return main() or 0
  except ModuleNotFoundError as error:
    # One of this project's own would be a fault of ours.
    if not error.name or error.name.split(".")[0] in _OWN:
      raise
    raise InputError(
      f"the Python package {error.name} is not installed for {sys.executable}: {error}. Use "
      ".venv/bin/python of `make install`, or pip install the package."
    ) from error


def _run(main: Callable[[], int | None], program: str) -> int:
  try:
    _parse(sys.argv)
    _log_to_stderr()
    return _with_packages(main)
  except InputError as error:
    print(f"{program}: {_message(error)}", file=sys.stderr)
    return BAD_INPUT
