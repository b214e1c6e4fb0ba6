"""How every command starts and ends: flags, help, one message for bad input, exit codes.

0 done; 2 bad config, flag or input (one message, no traceback); 1 anything else. Commands but
for training, which saves first, end at once by SIGINT, as other programs do.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable

import ml_collections
from absl import flags
from ml_collections import config_flags

from egad_jax import progress, streams
from egad_jax.errors import InputError
from egad_jax.files import paths
from launch import config_file, terminal
from launch.config_file import stored as stored_config

__all__ = ["config", "define_config", "print_result", "required", "run", "stored_config"]

BAD_INPUT = 2
_OWN = ("egad_jax", "configs", "launch")
# The code that a shell gives a program that SIGPIPE ends.
_NOBODY_READS = 141
_MAX_MESSAGE = 2000
_CONFIG = "config"
_HELP = ("help", "helpshort", "helpfull", "h", "?")
# Closes the terminal before anything else is written.
_closing = contextlib.ExitStack()


class _NamesParser(flags.ArgumentParser):
  """Reads a name, or names in parentheses: ("a", "b")."""

  def parse(self, argument: object) -> object:
    if isinstance(argument, str) and argument.strip()[:1] in ("(", "["):
      with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        names = ast.literal_eval(argument.strip())
        return tuple(names) if isinstance(names, list | tuple) else argument
    return argument


# The type of data.source.
config_flags.register_flag_parser_for_type(object, _NamesParser())


class _ConfigFlag:
  """What `--config` and `--config.key=value` gave.

  Attributes:
    name: the file as it was given, "" if none was.
    default: the file that is taken if none is given, None if there is no such file.
  """

  def __init__(self) -> None:
    self.name: str = ""
    self.default: str | None = None


_config_flag = _ConfigFlag()


def define_config(*, required: bool = True, default: str | None = None) -> _ConfigFlag:
  """Defines `--config=FILE` with overrides `--config.a.b=value`.

  Args:
    required: whether the command needs one.
    default: the file that is taken if none is given; None: there is none.
  """
  _config_flag.default = default
  # A process that imports two commands, as tests do, runs one of them.
  if _CONFIG in flags.FLAGS:
    delattr(flags.FLAGS, _CONFIG)
  flags.DEFINE_string(
    _CONFIG,
    default,
    "A preset by name (tiny, quickstart, ...), a Python file with get_config(), or a config as a "
    ".yaml or .json file; --config.KEY=VALUE overrides a key, --print_config of run.py lists all."
    if required
    else "The config; the one that the run stored if not given.",
  )
  return _config_flag


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


def config(flag: _ConfigFlag) -> ml_collections.ConfigDict:
  """The config of `define_config`, with its overrides.

  Raises:
    InputError: the flag is missing.
  """
  if not flag.name:
    raise InputError(
      f"--config is required: a file like configs/tiny.py, or a preset: "
      f"{', '.join(config_file.presets())}."
    )
  # An override may have replaced a whole group.
  return config_file.checked("--config", flags.FLAGS[_CONFIG].value.to_dict())  # type: ignore[union-attr]


def given_keys() -> set[str]:
  """The keys of the config that were given one by one, such as "curriculum.kind"."""
  prefix = f"{_CONFIG}."
  return {
    name.removeprefix(prefix)
    for name in flags.FLAGS
    if name.startswith(prefix) and flags.FLAGS[name].present
  }


def message(error: BaseException) -> str:
  """An error's words in one line."""
  # Messages quote files: no control character of theirs may reach the terminal.
  words = " ".join(config_file.reason(error).split())
  line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)
  return line if len(line) <= _MAX_MESSAGE else f"{line[:_MAX_MESSAGE]} [...]"


def _asks_help(argv: list[str]) -> bool:
  return any(word.startswith("-") and word.lstrip("-") in _HELP for word in argv[1:])


def _parse(argv: list[str]) -> None:
  try:
    argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
    rest = flags.FLAGS(_load_config(argv) if _CONFIG in flags.FLAGS else argv)
  except InputError:
    raise
  except flags.Error as error:
    raise InputError(message(error)) from error
  # ml_collections reports a misspelt or mistyped key by raising from the flag's setter.
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise InputError(
      f"--config has no such key, or not of that type: {message(error)} --print_config lists all."
    ) from error
  if rest[1:]:
    raise InputError(f"unexpected arguments {rest[1:]}; every argument is a flag, --name=value.")


def _load_config(argv: list[str]) -> list[str]:
  """Loads the file of `--config`, makes flags of its keys, and returns the other arguments."""
  rest, name, overrides = argv[:1], None, False
  words = iter(argv[1:])
  for word in words:
    flag, separator, value = word.partition("=")
    if word == "--":
      rest += [word, *words]
    elif flag in ("--config", "-config"):
      name = value if separator else next(words, "")
      # The shell leaves ~ as it is after a `=`.
      name = paths.expand(name, "--config") if name.startswith("~") else name
    else:
      overrides |= flag.lstrip("-").removeprefix("no").startswith("config.")
      rest.append(word)
  name = _config_flag.default if name is None else name
  if name is None and not overrides:
    return rest
  if name is None:
    config(_config_flag)
  _config_flag.name = str(name)
  with progress.phase(f"reading {name}"):
    loaded = config_file.load(str(name))
  delattr(flags.FLAGS, _CONFIG)
  config_flags.DEFINE_config_dict(_CONFIG, loaded, "The config.", sys_argv=rest)
  return rest


def _print_help(main: Callable[[], int | None]) -> None:
  """Prints what the command does, an example, and every flag of this project."""
  doc = sys.modules[main.__module__].__doc__ or ""
  print(f"{doc.strip()}\n\nFlags:")
  for module, found in flags.FLAGS.flags_by_module_dict().items():
    if module.startswith("absl."):
      continue
    for flag in sorted(found, key=lambda flag: flag.name):
      kind = "" if flag.boolean else f"={flag.flag_type().upper()}"
      needed = " (required)" if _is_required(flag) else ""
      default = "" if flag.default is None or flag.boolean else f" Default: {flag.default}."
      print(f"  --{flag.name}{kind}{needed}")
      print(flags.text_wrap(f"{flag.help}{default}", 100, "      "))


def _is_required(flag: flags.Flag) -> bool:
  """Whether a flag must be given."""
  return any("must have a value" in validator.message for validator in flag.validators)


def print_result(text: str) -> None:
  """Writes a result to stdout, when nothing moves on the terminal any more."""
  _closing.close()
  if text:
    print(text)


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
    if _asks_help(sys.argv):
      _print_help(main)
      sys.exit(0)
    with _closing:
      _closing.enter_context(terminal.opened())
      _parse(sys.argv)
      return _with_packages(main)
  except InputError as error:
    print(f"{program}: {message(error)}", file=sys.stderr)
    return BAD_INPUT
