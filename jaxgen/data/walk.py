"""One walk of a folder of images, for training and for scoring: its files, classes and splits."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxgen.data.classes import natural
from jaxgen.data.pixels import extensions, text
from jaxgen.errors import invalid

# What operating systems and file servers leave in folders beside names that begin with a dot.
_LITTER = frozenset(
    [
        *("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"),
        *("lost+found", "Thumbs.db", "desktop.ini"),
    ]
)
SPLITS = frozenset(
    [
        *("train", "training", "val", "valid", "validation", "dev", "test", "testing"),
        *("eval", "evaluation", "holdout", "trainval", "minival"),
    ]
)
"""Names by which a sub-folder is known as a half of the data rather than a class."""
DATASET = "dataset.json"
"""Labels by file, as StyleGAN's tools write them: {"labels": [[file, label], ...]}."""
ALL = "all"
"""The class of images that have none."""
SAMPLE = re.compile(r"(?:.*/)?[^/]*_label(\d+)\.\w+")
CLASS = "Class"
"""What samples of ours are called, and the keyword under which their files say their class."""


@dataclasses.dataclass(frozen=True)
class Tree:
    """The image files below a folder, by path from it ("/" between), sorted as text.

    folders: those directly below, empty ones too. left_out: how many of what was not taken.
    """

    root: Path
    files: tuple[str, ...]
    folders: tuple[str, ...]
    left_out: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Listing:
    """Image files with the classes that the folder gives them, if any.

    files: paths from `root`. labels: int64 [N], and classes their names in `natural` order; None
    where nothing says either. some: whether those of whom the images are may have more classes, as
    a model of which some were sampled. left_out: as in `Tree`.
    """

    root: Path
    files: tuple[str, ...]
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    left_out: Mapping[str, int]
    some: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, in one line or none."""
        if not self.left_out:
            return ()
        said = ", ".join(f"{count} {what}" for what, count in self.left_out.items())
        return (f"{self.root}: {len(self.files)} images; left out: {said}",)


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out: a dot before it, or a system's litter."""
    return name.startswith(".") or name in _LITTER


def walk(root: Path, option: str) -> Tree:
    """Image files at any depth, by extension; symbolic links are followed, but not in circles.

    Hidden files and folders (a dot before the name, what systems leave behind) are left out at any
    depth, and counted as one each. Raises UsageError, naming `option`, for folders that cannot be
    read.
    """
    files: list[str] = []
    folders: list[str] = []
    left: Counter[str] = Counter()

    def visit(folder: Path, prefix: str, above: tuple[str, ...]) -> None:
        real = os.path.realpath(folder)
        if any(a == real or a.startswith(real.rstrip(os.sep) + os.sep) for a in above):
            left["links to a folder that they are in"] += 1
            return
        try:
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError as error:
            raise invalid(option, str(folder), "folders that can be read", str(error)) from error
        for entry in entries:
            name = prefix + entry.name
            if hidden(entry.name):
                left["hidden files and folders"] += 1
            elif entry.is_dir():
                if not prefix:
                    folders.append(entry.name)
                visit(folder / entry.name, f"{name}/", (*above, real))
            elif (suffix := os.path.splitext(entry.name)[1].lower()) not in extensions():
                left[f"{suffix or 'other'} files"] += name != DATASET
            elif entry.is_file():
                files.append(name)
            else:
                left["links to nothing, and other things that are no files"] += 1

    visit(root, "", ())
    return Tree(root, tuple(sorted(files)), tuple(folders), {k: n for k, n in left.items() if n})


def listing(
    path: Path, *, option: str, split: str | None = None, splits: bool | None = None
) -> Listing:
    """The images of a folder with their classes: of one of its splits, where it has splits.

    Classes are the sub-folders, at whatever depth the images lie below them, or what `dataset.json`
    says, or what samples of ours say of themselves (`_sampled`). Where there are classes, images
    beside them are left out and counted. split: which split;
    None where none is asked for: then a folder of splits is refused. splits: whether sub-folders
    are splits, each with sub-folders that are classes; None: as their names and contents say.
    Raises UsageError for a folder that may be read either way, a split that is not there, and a
    `dataset.json` that does not fit.
    """
    tree = walk(path, option)
    if not (path / DATASET).is_file():
        if splits is None:
            splits = _are_splits(tree, split or "train", option, asked=split is not None)
        if splits and split is None:
            hint = f"For example {path / tree.folders[0]}."
            raise invalid(option, f"{path} with {_and(tree.folders)}", "one split of it", hint)
        if splits:
            if split not in tree.folders:
                raise invalid(
                    "source.split", split, f"a sub-folder of {path}: {_and(tree.folders)}"
                )
            tree = walk(path / split, option)
    if splits is not True and split not in (None, "train"):
        allowed = f"train, or a sub-folder of {path}, which has classes and no splits"
        raise invalid("source.split", split, allowed)
    if (tree.root / DATASET).is_file():
        return _styled(tree, option)
    inside = [file for file in tree.files if "/" in file]
    if not inside:
        return _sampled(tree)
    with_images = {file.split("/", 1)[0] for file in inside}
    classes = natural(tree.folders if split is not None else list(with_images))
    place = {name: label for label, name in enumerate(classes)}
    left = dict(tree.left_out)
    if len(inside) < len(tree.files):
        left["images beside the folders of classes"] = len(tree.files) - len(inside)
    inside.sort(key=lambda file: tuple(file.split("/", 1)))
    labels = np.array([place[file.split("/", 1)[0]] for file in inside])
    return Listing(tree.root, tuple(inside), labels, classes, left)


def unlabelled(
    path: Path, *, option: str, split: str | None = None, splits: bool | None = None
) -> Listing:
    """All images of a folder, or of its sub-folder `split` where `splits` says so, as of one class.

    Raises UsageError for a folder without images, and for a split that is not there.
    """
    if split not in (None, "train") and not splits:
        raise invalid("source.split", split, "train, or another split with source.splits=True")
    root = path / split if splits and split else path
    if not root.is_dir():
        folders = walk(path, option).folders
        raise invalid("source.split", split, f"a sub-folder of {path}: {_and(folders)}")
    tree = walk(root, option)
    if not tree.files:
        raise invalid(option, str(root), "a folder with images")
    labels = np.zeros(len(tree.files), np.int64)
    return Listing(tree.root, tree.files, labels, (ALL,), tree.left_out)


def _are_splits(tree: Tree, split: str, option: str, asked: bool) -> bool:
    """Whether the sub-folders are splits, by the rule of `listing`."""
    direct: set[str] = set()
    below: dict[str, set[str]] = {}
    for file in tree.files:
        parts = file.split("/")
        if len(parts) == 2:
            direct.add(parts[0])
        elif len(parts) > 2:
            below.setdefault(parts[0], set()).add(parts[1])
    names = direct | set(below)
    known = names & (SPLITS | ({split} if asked else set()))
    if not known or not names & (SPLITS | {split}):
        return False
    first = split if split in names else min(known, key=lambda name: (name != "train", name))
    styled = (tree.root / first / DATASET).is_file()
    has_classes = styled or (first in below and first not in direct)
    if names == known and has_classes:
        return True
    others = [name for name in names - {first} if below.get(name, set()) & below.get(first, set())]
    if names == known or (has_classes and others):
        fix = "Say which: source.splits=True or False." if asked else "Give one of its sub-folders."
        given = f"{tree.root} with {_and(natural(list(names)))}"
        raise invalid(option, given, "a folder of classes, or one of splits that hold classes", fix)
    return False


def _sampled(tree: Tree) -> Listing:
    """Images directly in a folder, with labels if all are samples of ours (`000000_label3.png`).

    The files say the names of their classes, if they are not from before they did so, in the order
    of the labels. Where some do, one that does not has no label, and so the folder has none.
    """
    marks = [SAMPLE.fullmatch(name) for name in tree.files]
    if not tree.files or not all(marks):
        return Listing(tree.root, tree.files, None, None, tree.left_out)
    labels = np.array([int(mark[1]) for mark in marks if mark])
    names = [text(tree.root / file).get(CLASS) for file in tree.files]
    if not any(names):
        return Listing(tree.root, tree.files, labels, None, tree.left_out)
    if not all(names):
        return Listing(tree.root, tree.files, None, None, tree.left_out)
    pairs = sorted({name: int(y) for y, name in zip(labels, names, strict=True)}.items(),
                   key=lambda pair: pair[1])  # fmt: skip
    classes = tuple(str(name) for name, _ in pairs)
    place = {name: label for label, name in enumerate(classes)}
    labels = np.array([place[str(name)] for name in names])
    return Listing(tree.root, tree.files, labels, classes, tree.left_out, some=True)


def _styled(tree: Tree, option: str) -> Listing:
    """A folder whose `dataset.json` says the labels; classes are called by their numbers."""
    file = tree.root / DATASET
    try:
        said = json.loads(file.read_text())
        pairs = said["labels"]
        pairs = None if pairs is None else {str(name): label for name, label in pairs}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        allowed = 'JSON with {"labels": [[file, label], ...]}, as StyleGAN writes it'
        raise invalid(option, str(file), allowed, "Mend it, or take it away.") from error
    if pairs is None or any(label is None for label in pairs.values()):
        return Listing(tree.root, tree.files, None, None, tree.left_out)
    wrong = [v for v in pairs.values() if isinstance(v, bool) or not isinstance(v, int) or v < 0]
    if wrong:
        raise invalid(option, f"{file} with the label {wrong[0]!r}", "integers >= 0")
    for what, names_of in (
        ("images without a label", sorted(set(tree.files) - set(pairs))),
        ("labels without an image", sorted(set(pairs) - set(tree.files))),
    ):
        if names_of:
            given = f"{file}: {len(names_of)} {what}, such as {names_of[0]}"
            raise invalid(option, given, "a label for each image, and an image for each label")
    labels = np.array([pairs[name] for name in tree.files], np.int64)
    names = tuple(str(i) for i in range(int(labels.max(initial=-1)) + 1))
    return Listing(tree.root, tree.files, labels, names, tree.left_out)


def _and(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "no sub-folders") + more
