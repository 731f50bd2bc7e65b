"""As much of a Dockerfile and of .dockerignore as the project's own use."""

import json
import re
import shlex
import shutil
from fnmatch import fnmatch
from typing import NamedTuple


class Instruction(NamedTuple):
    keyword: str
    text: str

    @property
    def flags(self):
        return dict(re.findall(r"--([\w-]+)=(\S+)", self.text))

    @property
    def words(self):
        """Of the JSON form or of the plain one, without flags."""
        if self.text.startswith("["):
            return json.loads(self.text)
        return [word for word in shlex.split(self.text) if not word.startswith("--")]


def stages(path):
    """The instructions of each stage, FROM first."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = []
    for line in joined.splitlines():
        if line.strip():
            keyword, _, text = line.strip().partition(" ")
            if keyword == "FROM":
                found.append([])
            found[-1].append(Instruction(keyword, " ".join(text.split())))
    return found


def only(stage, keyword):
    """The last instruction of that kind: the one that counts."""
    return [instruction for instruction in stage if instruction.keyword == keyword][-1]


def environment(stage):
    """What ENV sets; a variable in a value is kept as it is."""
    return {
        name: value
        for instruction in stage
        if instruction.keyword == "ENV"
        for name, _, value in (word.partition("=") for word in instruction.words)
    }


class Ignored:
    """A .dockerignore: the last pattern that matches a file, or a directory that it is in, decides."""

    def __init__(self, path):
        lines = [line.strip() for line in path.read_text().splitlines()]
        self._patterns = [line for line in lines if line and not line.startswith("#")]

    def __contains__(self, file):
        places = [str(file), *map(str, file.parents)]
        ignored = False
        for pattern in self._patterns:
            plain = pattern.removeprefix("!")
            if any(fnmatch(place, plain) or fnmatch(f"/{place}", plain.replace("**/", "*/")) for place in places):
                ignored = not pattern.startswith("!")
        return ignored


def copy_context(root, files, ignored, stage, target):
    """Does what the stage's COPY instructions do, with the files of the project that are not ignored."""
    for instruction in stage:
        if instruction.keyword != "COPY" or "from" in instruction.flags:
            continue
        *sources, to = instruction.words
        for source in sources:
            found = [f for f in files if f not in ignored and (str(f) == source or f.is_relative_to(source))]
            assert found, f"COPY {source}: there is nothing of that name, or it is ignored"
            for file in found:
                place = target / to / (file.name if str(file) == source else file.relative_to(source))
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / file, place)
