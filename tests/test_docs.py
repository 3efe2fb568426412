"The site's own code, and the texts: what the parser of docments finds, what README may be long."
import ast, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'docs'))
import api, build
sys.path.remove(str(ROOT/'docs'))       # `build` is a package's name too
TEXTS = ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', *sorted(f'docs/{p.name}' for p in (ROOT/'docs').glob('*.md'))]


@pytest.fixture(autouse=True)
def site(monkeypatch, tmp_path): monkeypatch.setattr(build, 'SITE', tmp_path)

SOURCE = '''
def area(box: list, # x0 y0 x1 y1, px
         scale=1, # of the picture
        ) -> float: # px²
    "How large it is."

def both(a, b=2) -> int: # a and b: numbers
    "Their sum."

def one(path: str) -> list: # of lines
    "What it holds."

def many(first, second, # of the two
         *rest, key: str|None=None, # a name
        ): pass
'''


def test_docments_are_read_without_an_import():
    said = api.comments(SOURCE)
    area, both, one, many = (api.function(f, said, 'function') for f in ast.parse(SOURCE).body)
    assert area.startswith('::::{py:function} area(box, scale=1) -> float\nHow large it is.')
    assert '| `box` | `list` |  | x0 y0 x1 y1, px |' in area and '| `scale` |  | `1` | of the picture |' in area
    assert '| *returns* | `float` |  | px² |' in area
    assert 'a and b: numbers' in both.split('| name')[0]            # said of all, so it stands above the table
    assert '| `path` | `str` |  |' in one and '| *returns* | `list` | of lines |' in one
    assert '| `second` |  |  | of the two |' in many and '| `key` | `str \\| None` | `None` | a name |' in many


def test_directives_and_hidden_cells_are_left_out():
    cell = lambda text, **kw: dict(cell_type='code', metadata={}, source=text, outputs=[], **kw)
    assert not build.shown(cell('#| default_exp core.boxes')) and not build.shown(cell('#| hide\nimport nbdev'))
    assert build.shown(cell('#| export\nx = 1')) and not build.shown(dict(cell_type='raw', source='---'))


def test_parameters_have_their_help():
    source = 'data = ""    # data/<name>\nn = 3  # how many # in all\nko = "주차장"    # a name'
    rows = [('`data`', "`''`", r'data/\<name>'), ('`n`', '`3`', r'how many \# in all'), ('`ko`', "`'주차장'`", 'a name')]
    assert list(build.parameters(source)) == rows


def test_broken_links_are_found():
    problems = []
    text = '[a](nbs/train.ipynb) [b](nbs/no.ipynb) `[c](no.md)` [`d`](no.md) [e](https://example.com) [f](#What-it-is)'
    out = build.links(text, ROOT/'README.md', problems)
    assert [p.split()[-1] for p in problems] == ['nbs/no.ipynb', 'no.md'] and '#what-it-is' in out


@pytest.mark.parametrize('name', TEXTS)
def test_texts_name_only_files_that_exist(name):
    problems = []
    build.page(name, problems)
    assert not problems


def test_readme_is_short(): assert len((ROOT/'README.md').read_text().split()) <= 750
