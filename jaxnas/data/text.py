"""Text for language models: from a file, a folder with three parts, or this package.

    text = load_text("shakespeare")                      # in the package, characters
    text = load_text("my.txt", level="words")            # cut in train, valid and test
    text = load_text("penn", level="words")              # a folder: *train*, *valid*, *test*

A folder is how the Penn Treebank (ptb.train.txt ...) and WikiText (wiki.train.tokens ...) come;
neither is in the package. Words are what stands between blanks, and every line ends in "<eos>", as
in the code of AWD-LSTM and DARTS. The vocabulary is made of the training part alone; what it lacks
becomes "<unk>", which is in it only where something needs it.
"""

from __future__ import annotations

import collections
import gzip
import importlib.resources
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxnas.data.dataset import DatasetError, contents_sha256

LEVELS = ("characters", "words")
PARTS = ("train", "valid", "test")
EMBEDDED = "shakespeare"
END, UNKNOWN = "<eos>", "<unk>"
FORMAT, VERSION = "jaxnas.vocabulary", 1
MAX_VOCABULARY_BYTES = 64 * 2 ** 20


class Vocabulary(NamedTuple):
    """Symbols by number."""

    level: str                # "characters" or "words"
    symbols: tuple[str, ...]  # [V], distinct

    def encode(self, text: str, where: str = "text") -> np.ndarray:
        """Number a text: [N] int32.

        Raises:
          DatasetError: a symbol that is not in the vocabulary, if that has no "<unk>".
        """
        return _number(_split(text, self.level), self, where)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Write numbers [N] as text; of words, the lines that "<eos>" ends."""
        symbols = [self.symbols[int(token)] for token in tokens]
        if self.level == "characters":
            return "".join(symbols)
        lines = " ".join("\n" if symbol == END else symbol for symbol in symbols)
        return lines.replace(" \n ", "\n").replace(" \n", "\n").replace("\n ", "\n")

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        fields = {"format": FORMAT, "version": VERSION, "level": self.level,
                  "symbols": list(self.symbols)}
        path.write_text(json.dumps(fields, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def restore(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote.

        Raises:
          DatasetError: no such file, or not a vocabulary.
        """
        if not path.is_file() or path.stat().st_size > MAX_VOCABULARY_BYTES:
            raise DatasetError(f"There is no vocabulary {path}; give the path of a JSON file of at "
                               f"most {MAX_VOCABULARY_BYTES >> 20} MiB.")
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DatasetError(f"{path} is not a vocabulary: it cannot be read as JSON.") from error
        symbols = fields.get("symbols") if isinstance(fields, dict) else None
        if (not isinstance(symbols, list) or not symbols or len(set(map(str, symbols))) !=
                len(symbols) or not all(isinstance(symbol, str) for symbol in symbols)
                or fields.get("level") not in LEVELS or fields.get("format") != FORMAT
                or fields.get("version") != VERSION):
            raise DatasetError(f"{path} is not a vocabulary: it must hold format {FORMAT!r}, "
                               f"version {VERSION}, a level among {LEVELS} and distinct symbols.")
        return cls(fields["level"], tuple(symbols))


class TextDataset(NamedTuple):
    """Three parts of a text as numbers of symbols, on the host."""

    name: str
    sha256: str             # of the three parts
    train: np.ndarray       # [N] int32 in [0, V)
    valid: np.ndarray
    test: np.ndarray
    vocabulary: Vocabulary
    unknown: tuple[int, int, int]  # symbols of train, valid and test that became "<unk>"


def load_text(
    name: str,
    *,
    level: str = "characters",
    fractions: tuple[float, float] = (0.1, 0.1),
    min_count: int = 1,
    vocabulary: Vocabulary | None = None,
) -> TextDataset:
    """Load a text into host memory.

    Args:
      name: "shakespeare", the first 499,950 characters of Tiny Shakespeare, in the package; or the
        path of a UTF-8 file; or that of a folder with one file each whose name holds "train",
        "valid" and "test".
      level: "characters" or "words".
      fractions: of valid and test where one file is cut; they are its end, in this order.
      min_count: symbols that the training part has less often become "<unk>".
      vocabulary: used as it is instead of a new one; its level must be `level`.

    Raises:
      DatasetError: missing, empty, not UTF-8, parts that are not there, or an option out of range;
        one sentence.
    """
    if level not in LEVELS:
        raise DatasetError(f"level must be one of {LEVELS}, got {level!r}.")
    if min_count < 1:
        raise DatasetError(f"min_count must be 1 or more, got {min_count}.")
    if len(fractions) != 2 or min(fractions) <= 0 or sum(fractions) >= 1:
        raise DatasetError(f"fractions must be those of valid and test, above 0 and together below "
                           f"1, got {fractions}.")
    if vocabulary is not None and vocabulary.level != level:
        raise DatasetError(f"level must be that of the vocabulary, {vocabulary.level!r}, got "
                           f"{level!r}.")
    sources, texts = _read(name, fractions)
    parts = [_split(text, level) for text in texts]
    for source, part in zip(sources, parts):
        if len(part) < 2:
            raise DatasetError(f"{source} must hold 2 {level} or more, got {len(part)}.")
    if vocabulary is None:
        vocabulary = _vocabulary(level, parts, min_count)
    numbers = [_number(part, vocabulary, source) for source, part in zip(sources, parts)]
    known = set(vocabulary.symbols)
    unknown = [sum(symbol not in known for symbol in part) for part in parts]
    short = name if name == EMBEDDED else Path(name).stem
    return TextDataset(short, contents_sha256(numbers), numbers[0], numbers[1], numbers[2],
                       vocabulary, (unknown[0], unknown[1], unknown[2]))


def _read(name: str, fractions: tuple[float, float]) -> tuple[list[str], list[str]]:
    """Return what to call the three parts in messages, and their texts."""
    if name == EMBEDDED:
        file = importlib.resources.files("jaxnas.data") / "files" / "tiny_shakespeare.txt.gz"
        return _cut(name, gzip.decompress(file.read_bytes()).decode("utf-8"), fractions)
    path = Path(name)
    if path.is_dir():
        files = [_part(path, part) for part in PARTS]
        return [str(file) for file in files], [_decoded(file) for file in files]
    if not path.is_file():
        raise DatasetError(f"There is no text {name!r}; give the path of a UTF-8 file or of a "
                           f"folder with train, valid and test, or {EMBEDDED!r}.")
    return _cut(name, _decoded(path), fractions)


def _part(folder: Path, part: str) -> Path:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    found = [path for path in files if part in path.name.lower()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:4]) or "none"
        raise DatasetError(f"{folder} must hold one file whose name has {part!r} in it, found "
                           f"{names}.")
    return found[0]


def _decoded(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8: byte {error.start} is "
                           f"{error.object[error.start]:#04x}; convert it.") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    if not text.strip():
        raise DatasetError(f"{path} is empty.")
    return text.replace("\r\n", "\n")


def _cut(name: str, text: str, fractions: tuple[float, float]) -> tuple[list[str], list[str]]:
    """Cut a text in train, valid and test, between lines where that is near."""
    ends = [0]
    for share in (1 - sum(fractions), 1 - fractions[1]):
        end = int(len(text) * share)
        line = text.find("\n", end) + 1
        ends.append(line if 0 < line <= end + len(text) // 100 else end)
    parts = [text[start:end] for start, end in zip(ends, (*ends[1:], len(text)))]
    return [f"the {part} part of {name}" for part in PARTS], parts


def _split(text: str, level: str) -> Sequence[str]:
    if level == "characters":
        return text
    return [word for line in text.splitlines() for word in (*line.split(), END)]


def _vocabulary(level: str, parts: Sequence[Iterable[str]], min_count: int) -> Vocabulary:
    """Count the training part; the most frequent symbol is 0, characters are in their order."""
    counts = collections.Counter(parts[0])
    kept = {symbol for symbol, count in counts.items() if count >= min_count}
    if any(not kept.issuperset(part) for part in parts):
        kept.add(UNKNOWN)
    order = sorted(kept) if level == "characters" else sorted(
        kept, key=lambda symbol: (-counts[symbol], symbol))
    return Vocabulary(level, tuple(order))


def _number(part: Sequence[str], vocabulary: Vocabulary, where: str) -> np.ndarray:
    numbers = {symbol: number for number, symbol in enumerate(vocabulary.symbols)}
    unknown = numbers.get(UNKNOWN, -1)
    tokens = np.fromiter((numbers.get(symbol, unknown) for symbol in part), np.int32, len(part))
    if unknown < 0 and (tokens < 0).any():
        symbol = part[int(np.argmax(tokens < 0))]
        raise DatasetError(f"{where}: the vocabulary has neither {symbol!r} nor {UNKNOWN!r}; use "
                           "one made of this text.")
    return tokens
