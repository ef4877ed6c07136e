"""What the site needs beyond MkDocs: pages from outside docs/, and the checks that make `nox -s docs` strict.

The pages link to files of the repository as they are read there. This copies what they link to into the site, and turns
the links.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PROSE = sorted(path.name for path in ROOT.glob("*.md") if path.name != "README.md")
EXAMPLES = sorted(path.name for path in (ROOT / "examples").iterdir() if path.is_dir() and path.name[0] not in "._")
LANGUAGES = {".py": "python", ".sql": "sql", ".yaml": "yaml", ".ini": "ini"}

PUBLIC = ("", ".cognito", ".errors", ".events", ".handlers", ".otel", ".runtime", ".sqlalchemy", ".testing")
"""The public modules of asyncdb_guard."""
FIXTURES = "asyncdb_guard.testing.plugin"


def on_config(config: MkDocsConfig) -> None:
    """Add what lies outside docs/ to the navigation."""
    names: list[str | dict[str, str]] = ["examples/index.md", *(f"examples/{name}.md" for name in EXAMPLES)]
    config["nav"].append({"Examples": names})
    config["nav"].append({"Project": [{name[:-3].capitalize(): place(name)} for name in PROSE]})


def place(name: str) -> str:
    """Where a file of the repository is in the site, with an anchor if it is part of a page; unchanged if nowhere."""
    folder, _, rest = name.partition("/")
    if folder == "docs" and rest:
        return rest
    if name == "README.md":
        return "index.md"
    if name in PROSE:
        return f"project/{name.lower()}"
    if folder == "examples" and rest == "README.md":
        return "examples/index.md"
    example, _, file = rest.partition("/")
    if folder == "examples" and example in EXAMPLES:
        return f"examples/{example}.md" + (f"#{anchor(file)}" if file else "")
    return f"{posixpath.join('..', name)}"


def anchor(file: str) -> str:
    """The anchor of a file of an example."""
    return re.sub(r"[^\w]+", "-", file.lower())


def source_of(uri: str) -> str:
    """The file of the repository that a page of the site was made from."""
    for name in (*PROSE, "examples/README.md"):
        if place(name) == uri:
            return name
    return f"docs/{uri}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/."""
    for name in (*PROSE, "examples/README.md"):
        files.append(File.generated(config, place(name), content=(ROOT / name).read_text(encoding="utf-8")))
    for name in EXAMPLES:
        files.append(File.generated(config, f"examples/{name}.md", content=example_page(name)))
    return files


def example_page(name: str) -> str:
    """The files of an example, one below the other."""
    parts = [f"# `{name}`\n"]
    folder = ROOT / "examples" / name
    for path in sorted(folder.rglob("*")):
        text = path.read_text(encoding="utf-8") if path.suffix in LANGUAGES else ""
        if text.strip():
            file = path.relative_to(folder).as_posix()
            fence = f"{LANGUAGES[path.suffix]}\n{text.rstrip()}\n"
            parts.append(f"## `{file}` {{ #{anchor(file)} }}\n\n`````{fence}`````\n")
    return "\n".join(parts)


def indented(markdown: str) -> Iterator[str]:
    """The lines, with what is in an item of a list indented by 4 columns, as Python-Markdown wants it.

    In the pages it begins below the item's text, as forges want it.
    """
    offsets: list[int] = []  # where the text of each open item begins
    after_blank = True
    for line in markdown.split("\n"):
        column = len(line) - len(line.lstrip(" "))
        item = re.match(r" *([-*]|\d+\.) +", line)
        if line.strip() and (after_blank or item):
            while offsets and column < offsets[-1]:
                offsets.pop()
        inside = column - offsets[-1] if offsets else column
        yield " " * (4 * len(offsets) + max(inside, 0)) + line.lstrip(" ") if line.strip() else ""
        if item and inside == 0:
            offsets.append(item.end())
        after_blank = not line.strip()


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn links to files of the repository into links to pages of the site."""
    uri = page.file.src_uri
    source = source_of(uri)

    def turned(link: re.Match[str]) -> str:
        target, hash_, fragment = link[1].partition("#")
        if not target or ":" in target:
            return link[0]
        found = place(posixpath.normpath(posixpath.join(posixpath.dirname(source), target)))
        return f"]({posixpath.relpath(found, posixpath.dirname(uri) or '.')}{hash_}{fragment})"

    lines: list[str] = []
    fence = ""
    for line in indented(markdown):
        if mark := re.match(r" *(`{3,})", line):
            fence = "" if fence == mark[1] else fence or mark[1]
        lines.append(line if fence else re.sub(r"\]\(([^)\s]+)\)", turned, line))
    return "\n".join(lines)


def public_names() -> Iterator[tuple[str, griffe.Object]]:
    """Each public name with its path, the methods of public classes included."""
    package = griffe.load("asyncdb_guard", search_paths=[ROOT], resolve_aliases=True)
    for suffix in PUBLIC:
        module = package[suffix.removeprefix(".")] if suffix else package
        told = module.exports or [name for name, one in module.members.items() if own(name, one)]
        for name in map(str, told):
            if name != "__version__":
                yield f"{module.path}.{name}", final(module[name])
    plugin = package[FIXTURES.removeprefix("asyncdb_guard.")]
    for name, one in plugin.functions.items():
        if own(name, one) and any("fixture" in str(decorator.value) for decorator in one.decorators):
            yield one.path, one


def own(name: str, one: griffe.Object | griffe.Alias) -> bool:
    """Whether a module without `__all__` defines this public name itself."""
    return not one.is_alias and name[0] != "_" and not name.isupper() and name != "logger" and not one.is_type_alias


def final(one: griffe.Object | griffe.Alias) -> griffe.Object:
    """The object itself, if this is another name for it."""
    return one.final_target if isinstance(one, griffe.Alias) else one


def undocumented() -> list[str]:
    """The public names that have no docstring."""
    missing: list[str] = []
    for path, one in public_names():
        if not one.has_docstring:
            missing.append(path)
        if isinstance(one, griffe.Class):
            for name, member in one.members.items():
                named = name[0] != "_" and not member.is_alias
                callable_ = member.is_function or "property" in member.labels
                if named and callable_ and not member.has_docstring:
                    missing.append(f"{path}.{name}")
    return missing


def on_pre_build(config: MkDocsConfig) -> None:
    """Fail for a public name without a docstring."""
    if names := undocumented():
        raise PluginError(f"These public names have no docstring: {', '.join(names)}")


def on_post_build(config: MkDocsConfig) -> None:
    """Fail for a public name that no page describes, and for a page that would load something from elsewhere."""
    pages = {path: path.read_text(encoding="utf-8") for path in Path(config.site_dir).rglob("*.html")}
    anchors = {found for text in pages.values() for found in re.findall(r'\bid="?([\w.]+)', text)}
    names = list(public_names())
    described = {one.path for path, one in names if anchors & {path, one.path}}
    if missing := [path for path, one in names if one.path not in described]:
        raise PluginError(f"No page of docs/api describes {', '.join(missing)}")
    loaded = re.compile(r'<(?:(?:script|img|iframe|source)\b[^>]*\bsrc|link\b[^>]*\bhref)="?https?:[^>]*>')
    for path, text in pages.items():
        if found := [tag for tag in loaded.findall(text) if "canonical" not in tag]:
            raise PluginError(f"{path.name} would load something from elsewhere: {found[0]}")
