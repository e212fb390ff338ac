"""Pages of the repository as pages of the site.

A page that only includes a file of the repository lies where that file does
(`docs/serving/README.md` includes `serving/README.md`), so links between such files
hold on the site too. What the site has no page for, such as a configuration file, is
linked where it is, and a folder is only named.
"""

import os
import re
import shutil
from pathlib import Path

DOCS = Path(__file__).parents[1]
WHOLE_FILE = re.compile(r"```\{include\} (\S+)\n```\n")
LINK = re.compile(r"(!?\[[^\]]*\])\(([^()\s:#]+)((?:#[^()\s]*)?)\)")


def expand(app, docname, source):
    page = (DOCS / docname).parent
    if not (found := WHOLE_FILE.fullmatch(source[0])):
        return
    file = (page / found[1]).resolve()
    if not file.exists():  # results are written by commands, and may not have been yet
        name = file.relative_to(DOCS.parent)
        source[0] = f"# {file.stem}\n\nThis checkout has no `{name}`.\n"
        return

    def link(match):
        text, target, anchor = match.groups()
        there = file.parent / target
        if (page / target).is_file() or not there.exists():
            return match[0]
        if there.is_dir():
            return text[1:-1]
        return f"{text}({os.path.relpath(there, page)}{anchor})"

    source[0] = LINK.sub(link, file.read_text(encoding="utf-8"))


def fetch_notebooks(app):
    """Copy the notebooks in, since Sphinx reads no documents from elsewhere."""
    folder = DOCS / "notebooks"
    folder.mkdir(exist_ok=True)
    there = {notebook.name for notebook in (DOCS.parent / "notebooks").glob("*.ipynb")}
    for stale in {copy.name for copy in folder.iterdir()} - there:
        (folder / stale).unlink()
    for name in there:
        shutil.copyfile(DOCS.parent / "notebooks" / name, folder / name)


def setup(app):
    app.connect("builder-inited", fetch_notebooks)
    app.connect("source-read", expand)
    return {"parallel_read_safe": True}
