"""Links of these pages to files of the repository that are no pages: checked, and shown as code.

The same links work where the pages are read beside the files. On a site they would lead nowhere.
"""

import re
from pathlib import Path

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
BEYOND = re.compile(r"\[(?P<label>[^\]]*)\]\(\.\./(?P<path>[^)#]*)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Each link to ``../PATH`` becomes its label and the path; the build fails where there is no such file."""

    def shown(link: re.Match[str]) -> str:
        label, path = link["label"], link["path"]
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_path} links to {path!r}, which is not there")
        code = f"`{path}`"
        return code if label.strip("`") in path else f"{label} ({code})"

    return BEYOND.sub(shown, markdown)
