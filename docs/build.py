"""Make the site: `python docs/build.py` copies notebooks and texts to _docs/src, sphinx turns them into _docs/html.

Nothing is executed: a chapter is shown with the outputs it was committed with. A broken link ends the build.
"""
import ast, json, re, shutil, subprocess, sys
from pathlib import Path

from api import module_page, plain

ROOT = Path(__file__).resolve().parents[1]
SITE, HTML, CACHE = ROOT/'_docs/src', ROOT/'_docs/html', ROOT/'_docs/cache'
WRITTEN = set()      # files of the site
PACKAGES = {
    'core': 'what knows nothing of detectors: boxes, images, chance, files, downloads, the environment',
    'network': 'the network is its cfg: layers, model, zoo, weights, checkpoints of other authors',
    'data': 'every box in one table: formats, adapters, known sets, the embedded parking lot, viewer, loader',
    'cleaning': 'faults found and repaired, the inspector, splits, preparing a folder',
    'training': 'loss, optimizer, recipes, runs, several processes, the loop',
    'inference': 'from pictures to detections: suppression, second looks, tiles, films',
    'evaluation': 'the COCO metric, intervals, errors, the leaderboard, submissions',
    'export': 'Darknet, ONNX and DeepStream, each checked against its target',
    'compression': 'pruning, distillation, eight bits, the front of size and score',
    'apps': 'what the app notebooks do: their settings and their calls'}
# any other comes after these
APPS = ('index inspect prepare convert train crossval relabel infer evaluate leaderboard sweep export '
        'compress amp capsule').split()
FILE = re.compile(r'(?<![\w/.])(?:nbs|tests|bench|docs|deploy|assets)/[\w/-]+\.\w+')
# code is passed over
LINK = re.compile(r'```.*?```|`[^`\n]*`|\]\((?P<to>[^)\s]+)\)', re.S)


def text_of(cell): return ''.join(cell['source'])


def links(text: str, # markdown
          source: Path, # where it stands in the checkout
          problems: list, # a broken link is added here
         ) -> str:
    "Check every relative link, copy what it names beside the site's pages, and name headings as the site does."
    def one(m):
        if not m['to'] or re.match(r'[a-z]+:', m['to']): return m[0]
        target, _, heading = m['to'].partition('#')
        path = (source.parent/target).resolve() if target else source
        if not path.is_relative_to(ROOT) or not path.exists():
            problems.append(f'{source.relative_to(ROOT)}: broken link {m["to"]}')
            return m[0]
        if path.is_file() and path.suffix not in ('.ipynb', '.md'): copy(path)
        if path == ROOT/'README.md': target = '/index.md'
        elif path.is_dir(): target = f'/{path.relative_to(ROOT)}/index.md'      # of a package
        return f']({target}{"#" + heading.lower() if heading else ""})'
    return LINK.sub(one, text)


def put(name: str, content: bytes):
    "A file of the site; one that has not changed is left alone, so that sphinx does not read it again."
    path = SITE/name
    WRITTEN.add(path)
    if path.exists() and path.read_bytes() == content: return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def copy(path: Path): put(path.relative_to(ROOT), path.read_bytes())
def write(name: str, text: str): put(name, text.encode())


def table(head: list, rows) -> str:
    "A markdown table."
    cells = lambda row: '| ' + ' | '.join(str(c).replace('|', '\\|') for c in row) + ' |'
    return '\n'.join([cells(head), cells(['---']*len(head)), *map(cells, rows)]) + '\n'


def tree(pages, caption='') -> str:
    "The pages below this one, for the navigation."
    options = [f':caption: {caption}'] if caption else []
    return '\n'.join(['```{toctree}', ':hidden:', *options, '', *pages, '```', ''])


def parameters(source: str) -> list:
    "(name, default, help) of a parameters cell, help from the comment behind each."
    lines = source.splitlines()
    for node in ast.parse(source).body:
        comment = lines[node.end_lineno - 1].encode()[node.end_col_offset:].decode().strip()
        name = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        yield f'`{name.id}`', f'`{ast.unparse(node.value)}`', plain(comment.lstrip('# '))


def module_of(path: Path) -> str: return path.stem.split('_', 1)[1]


def shown(cell: dict) -> bool:
    "Does a cell say anything to a reader?"
    lines = [l for l in text_of(cell).splitlines() if not l.startswith('#|') and l.strip()]
    hidden = re.search(r'^#\|\s*(hide|default_exp)', text_of(cell), re.M)
    return cell['cell_type'] != 'raw' and bool(lines or cell.get('outputs')) and not (hidden and len(lines) < 3)


def notebook(path: Path, problems: list) -> tuple: # title, the line under it, has it parameters
    "Copy a notebook without nbdev's directives; a parameters cell becomes a table."
    book = json.loads(path.read_text(encoding='utf-8'))
    book['cells'] = [c for c in book['cells'] if shown(c)]
    book['metadata']['language_info'] = dict(name='python', pygments_lexer='python')
    app = False
    for c in book['cells']:
        if c['cell_type'] == 'markdown': c['source'] = links(text_of(c), path, problems)
        else: c['source'] = re.sub(r'^#\|.*\n?', '', text_of(c), flags=re.M).strip('\n')
        if 'parameters' in c['metadata'].get('tags', []):
            app = True
            rows = table(['parameter', 'default', 'what it is'], parameters(c['source']))
            c.update(cell_type='markdown', source='## Parameters\n\n' + rows)
            for key in ('outputs', 'execution_count'): c.pop(key, None)
    if path.parent.name in PACKAGES:
        name = f'{path.parent.name}.{module_of(path)}'
        book['cells'][0]['source'] += f'\n\nThe module it exports: [`yolokit.{name}`](/api/{name}.md)'
    write(str(path.relative_to(ROOT)), json.dumps(book))
    m = re.match(r'#\s+(.*)\n+(?:>\s*(.*))?', text_of(book['cells'][0]))
    return m[1], m[2] or '', app


def chapters(problems: list) -> list: # pages
    "All chapters, a page for each package with what is in it."
    pages = []
    for package, about in PACKAGES.items():
        rows, names = [], []
        for path in sorted((ROOT/'nbs'/package).glob('[0-9]*.ipynb')):
            title, line, _ = notebook(path, problems)
            names.append(f'{path.stem[:2]} {title} <{path.stem}>')
            rows.append((path.stem[:2], f'[{title}]({path.name})', line))
        text = f'# {package}\n\n> {about}\n\n' + table(['', 'chapter', 'what it tells'], rows)
        text += f'\nWhat these chapters export: [yolokit.{package}](/api/{package}.md)\n\n'
        write(f'nbs/{package}/index.md', text + tree(names))
        pages.append(f'nbs/{package}/index')
    return pages


def apps(problems: list) -> list: # pages
    "The notebooks at the root, and a page that lists them."
    order = {name: i for i, name in enumerate(APPS)}
    found = sorted((ROOT/'nbs').glob('*.ipynb'), key=lambda p: (order.get(p.stem, len(order)), p.stem))
    told = {p: notebook(p, problems) for p in found}
    rows = [(f'[{p.stem}](nbs/{p.name})', line) for p, (_, line, app) in told.items() if app]
    text = '# All apps\n\n> Notebooks with settings, calls and pictures: run them in JupyterLab or by papermill.\n\n'
    write('apps.md', text + table(['app', 'what it does'], rows))
    return ['apps', *(f'nbs/{p.stem}' for p in told)]


def api(problems: list) -> list: # pages
    "A page for each package and module: public names from the source, read without importing it."
    for package, about in PACKAGES.items():
        book = {module_of(p): p for p in (ROOT/'nbs'/package).glob('[0-9]*.ipynb')}
        paths = [p for p in (ROOT/'yolokit'/package).glob('*.py') if p.stem[0] != '_']
        paths.sort(key=lambda p: (book[p.stem].stem if p.stem in book else 'z', p.stem))
        rows, names = [], []
        for p in paths:
            name = f'{package}.{p.stem}'
            text, line = module_page(p, name, book.get(p.stem))
            write(f'api/{name}.md', text)
            names.append(f'{p.stem} <{name}>')
            rows.append((f'[{p.stem}]({name}.md)', line))
        text = f'# yolokit.{package}\n\n> {about}\n\n' + table(['module', 'what it is'], rows)
        write(f'api/{package}.md', f'{text}\n{tree(names)}')
    return [f'api/{package}' for package in PACKAGES]


def texts(problems: list) -> list: # pages
    "The texts of docs/ and of the root; README.md becomes the first page."
    known = [f'docs/{n}.md' for n in ('usage', 'results', 'costs', 'glossary')]
    other = sorted(str(p.relative_to(ROOT)) for p in (ROOT/'docs').glob('*.md'))
    names = [n for n in dict.fromkeys([*known, *other, 'CONTRIBUTING.md', 'CHANGELOG.md']) if (ROOT/n).exists()]
    for name in names: write(name, page(name, problems))
    return names


def page(name: str, problems: list) -> str:
    "A text with its links; it may name no file of the checkout that is not there."
    text = (ROOT/name).read_text(encoding='utf-8')
    for path in dict.fromkeys(FILE.findall(text)):
        if not (ROOT/path).exists(): problems.append(f'{name}: names {path}, which is not there')
    return links(text, ROOT/name, problems)


def main():
    problems = []
    parts = {'Apps': apps, 'Chapters': chapters, 'API': api, 'Texts': texts}
    pages = {caption: make(problems) for caption, make in parts.items()}
    trees = [tree(names, caption) for caption, names in pages.items()]
    write('index.md', '\n'.join([page('README.md', problems), '', *trees]))
    for path in SITE.rglob('*'):
        if path.is_file() and path not in WRITTEN: path.unlink()
    options = ['-c', ROOT/'docs', '-d', CACHE, '-b', 'html', '-W', '--keep-going', '-n', '-q', '-j', '2']
    done = subprocess.run([sys.executable, '-m', 'sphinx', *options, SITE, HTML])
    if problems or done.returncode:
        shutil.rmtree(CACHE, ignore_errors=True)      # what was warned of is warned of again
        sys.exit('\n'.join([*problems, 'docs: the site has faults, named above']))
    print(f'the site: {HTML.relative_to(ROOT)}/index.html')


if __name__ == '__main__': main()
