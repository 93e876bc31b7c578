"""What a message's backticks alone mend: whoever reads it does just what they say.

An item in backticks is a command of ours, which is run; a flag, which is put in place of the one
that is there, of the one that there is not, or added; a flag without a value of which nobody knows
one, which is left out; `export NAME=...` and `unset NAME`; a shell's command; or a key of a file.
Words in capitals stand for what only the reader knows (`knows`): a name, a place, a number.
"""

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jobs.completion
from tests.support.warm import run

SHELL = {"rm", "mv", "cp", "mkdir", "chmod"}


def nothing(home: Path) -> None:
    """Plants nothing: the command itself is wrong."""


@dataclass(frozen=True)
class Failure:
    """A command as somebody types it, in a world in which `plant` has gone wrong.

    knows: by flag or variable, what the reader means; by anything else in backticks, how the
    reader's own file is edited. checked_by: flags under which the mended command is tried.
    """

    name: str
    command: str
    plant: Callable[[Path], None] = nothing
    knows: Mapping[str, str | Callable[[Path], None]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    checked_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """A command line with its environment, and how it ended."""

    words: tuple[str, ...]
    environment: Mapping[str, str]
    code: int
    said: str


FLAGS = {job: set(flags) for job, flags in jobs.completion.jobs_and_flags()}


def items(said: str) -> list[str]:
    """What stands in backticks, in order."""
    return list(dict.fromkeys(" ".join(each.split()) for each in re.findall(r"`([^`]+)`", said)))


def attempt(home: Path, words: tuple[str, ...], environment: Mapping[str, str]) -> Attempt:
    name, *flags = words
    module = f"jobs.{name}" if name in FLAGS else "jobs"
    arguments = flags if name in FLAGS else list(words)
    ended = run(home, module, *arguments, **environment)
    return Attempt(words, environment, ended.returncode, ended.stdout + ended.stderr)


class Reader:
    """Reads a failed command's message, and tries what it says until the command ends well."""

    def __init__(self, home: Path, failure: Failure) -> None:
        self.home, self.failure = home, failure
        self.first = attempt(home, words_of(failure.command), failure.environment)
        self.tried: list[str] = []

    def mends(self, most: int = 4) -> bool:
        """Whether some chain of at most `most` things that were said makes the command end well."""
        return self._mends(self.first, most)

    def _mends(self, failed: Attempt, most: int) -> bool:
        for item in items(failed.said) if most else ():
            if item in self.tried or "--help" in item:
                continue
            self.tried.append(item)
            for changed in self._follow(item, failed):
                if changed.code == 0 or self._mends(changed, most - 1):
                    return True
        return False

    def _follow(self, item: str, failed: Attempt) -> Iterator[Attempt]:
        """What comes of doing as `item` says."""
        edit = self.failure.knows.get(item)
        if callable(edit):
            edit(self.home)
            yield self._again(failed)
        elif item.startswith(("vae ", "python -m jobs.")):
            yield from self._run(item, failed)
        elif item.startswith("--"):
            words = self._with_flags(failed.words, item)
            if words is not None and words != failed.words:
                yield self._again(failed, words=words)
        elif item.startswith(("export ", "unset ")):
            environment = self._with_variable(failed.environment, item)
            if environment is not None:
                yield self._again(failed, environment=environment)
        elif item.split()[0] in SHELL:
            self._shell(item)
            yield self._again(failed)

    def _run(self, item: str, failed: Attempt) -> Iterator[Attempt]:
        said = self._filled(words_of(item))
        if said is None:
            return
        other = attempt(self.home, said, failed.environment)
        # The same job is the command in other words; another one prepares it.
        is_same = said[0] == failed.words[0] or failed.words[0] not in FLAGS
        if is_same and other.code == 0 and "--" not in failed.words:
            yield other
        elif not other.code or self._mends(other, 2):
            yield self._again(failed)
        else:
            yield other

    def _again(
        self,
        failed: Attempt,
        words: tuple[str, ...] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Attempt:
        words = words or failed.words
        given = self.failure.checked_by
        extra = () if given[:1] and given[0] in words else given
        return attempt(
            self.home, (*words, *extra),
            failed.environment if environment is None else environment,
        )  # fmt: skip

    def _with_flags(self, words: tuple[str, ...], item: str) -> tuple[str, ...] | None:
        """`words` with the flags of `item` in them; None where nobody knows a value."""
        if "--" in words:  # What stands behind it is another job's.
            end = words.index("--")
            own = self._with_flags(words[:end], item)
            return None if own is None else (*own, *words[end:])
        known = FLAGS.get(words[0], set())
        for flag, values in _flags(shlex.split(item)):
            if flag not in known:
                return None
            filled = self._values(flag, values)
            if filled is None:
                return None
            wrong = [w for w in words if w.startswith("--") and w not in known]
            at = len(words) - 1 - words[::-1].index(flag) if flag in words else None
            if wrong:
                at = words.index(wrong[0])
                filled = filled or _values_at(words, at)
            if at is None:
                words = (*words, flag, *filled)
            elif filled:
                words = (*words[:at], flag, *filled, *words[at + 1 + len(_values_at(words, at)) :])
            else:
                words = (*words[:at], *words[at + 1 + len(_values_at(words, at)) :])
        return words

    def _values(self, flag: str, said: tuple[str, ...]) -> tuple[str, ...] | None:
        """The values that were said, the reader's own in place of capitals or of nothing."""
        known = self.failure.knows.get(flag)
        if not said or any(_is_open(value) for value in said):
            if isinstance(known, str):
                return tuple(shlex.split(known))
            return None if said else ()
        return said

    def _filled(self, words: tuple[str, ...]) -> tuple[str, ...] | None:
        found: list[str] = [words[0]]
        for flag, values in _flags(list(words[1:])):
            filled = self._values(flag, values) if values else ()
            if filled is None:
                return None
            found += [flag, *filled]
        return tuple(found)

    def _with_variable(self, before: Mapping[str, str], item: str) -> dict[str, str] | None:
        verb, *rest = shlex.split(item)
        after = dict(before)
        for each in rest:
            name, equals, value = each.partition("=")
            if verb == "unset":
                after[name] = ""
                continue
            known = self.failure.knows.get(name)
            if not equals or _is_open(value) or not value:
                if not isinstance(known, str):
                    return None
                value = known
            after[name] = value
        return after

    def _shell(self, item: str) -> None:
        subprocess.run(["bash", "-c", item], cwd=self.home, check=False, capture_output=True)


def words_of(command: str) -> tuple[str, ...]:
    """`vae pack ...` and `python -m jobs.pack ...` without what stands before the job's name."""
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        return (words[2].removeprefix("jobs."), *words[3:])
    assert words[0] == "vae", command
    return tuple(words[1:])


def _flags(words: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each flag with the values behind it."""
    at = 0
    while at < len(words):
        values = _values_at(tuple(words), at)
        yield words[at], values
        at += 1 + len(values)


def _values_at(words: tuple[str, ...], at: int) -> tuple[str, ...]:
    end = at + 1
    while end < len(words) and not words[end].startswith("--"):
        end += 1
    return words[at + 1 : end]


def _is_open(value: str) -> bool:
    """Whether a value is a word in capitals, such as URL or HOST:PORT, or dots."""
    return bool(re.search(r"\.\.\.|\b[A-Z][A-Z_]+\b", value)) and not value.startswith("models:/")
