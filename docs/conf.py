"Settings of the site. docs/build.py writes its pages to _docs/src and calls sphinx."
import configparser
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

settings = configparser.ConfigParser()
settings.read(Path(__file__).parents[1]/'settings.ini')

project = settings['DEFAULT']['lib_name']
author = settings['DEFAULT']['author']
version = release = settings['DEFAULT']['version']
extensions = ['myst_nb']

# chapters are shown as they were committed
nb_execution_mode = 'off'
nb_merge_streams = True
nb_mime_priority_overrides = [('html', 'text/html', 5), ('html', 'text/markdown', 7)]
myst_enable_extensions = ['dollarmath', 'colon_fence']
myst_heading_anchors = 4
nitpick_ignore_regex = [('py:.*', '.*')]      # types of numpy and torch in signatures; links of pages are still checked

html_theme = 'sphinx_book_theme'
html_title = f'yolokit {version}'
html_static_path = ['static']
html_css_files = ['site.css']
html_show_sourcelink = False
html_copy_source = False
html_theme_options = dict(show_navbar_depth=1, home_page_in_toc=False, use_download_button=False,
                          use_fullscreen_button=False, show_toc_level=2, navbar_persistent=[])
html_math_renderer = 'mathml'
highlight_language = 'none'                   # of a block that names no language
add_module_names = False
toc_object_entries_show_parents = 'hide'


def formula(self, node):
    "A formula as MathML, which browsers draw without a script from elsewhere."
    self.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer('mathml', (formula, None), (formula, None))
