"""The pages build, every link leads somewhere, and a link that does not is refused."""

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READMES = [ROOT / "README.md", *sorted(ROOT.glob("benchmarks/*.md")), *sorted(ROOT.glob("pallas_kernels/**/*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")


def build(config: Path, site: Path) -> None:
    """As ``mkdocs build --strict``."""
    commands = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config

    made = load_config(str(config), strict=True, site_dir=str(site))
    made.plugins.on_startup(command="build", dirty=False)
    commands.build(made)


def test_they_build_and_every_link_leads_somewhere(tmp_path):
    build(ROOT / "mkdocs.yml", tmp_path / "site")
    shown = (tmp_path / "site" / "optimizers" / "index.html").read_text()
    assert "<code>optim/muon.py</code>" in shown or "<code>posttrain_jax/optim/muon.py</code>" in shown


@pytest.mark.parametrize("link", ["[x](nowhere.md)", "[x](tiny.md#no-such-part)", "[x](../posttrain_jax/nowhere.py)"])
def test_a_link_to_nothing_is_refused(link, tmp_path):
    pytest.importorskip("mkdocs")
    from mkdocs.exceptions import Abort, PluginError

    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in ("posttrain_jax", "configs", "benchmarks", "colabs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "docs" / "tiny.md").write_text(f"# Tiny\n\n{link}\n")
    with pytest.raises((Abort, PluginError)):
        build(tmp_path / "mkdocs.yml", tmp_path / "site")


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_readmes_link_to_files_that_are_there(path):
    links = LINK.findall(path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []
