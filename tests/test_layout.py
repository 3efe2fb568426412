"The rules of the house: what a notebook may import, how it opens, what it may leave behind."
import ast, json, re, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
CHAPTERS = [p for p in BOOKS if p.stem[:2].isdigit()]
APPS = [p for p in BOOKS if p not in CHAPTERS]
EXTRAS = ('ipywidgets', 'jupyterlab', 'papermill', 'nbdev', 'fastcore', 'execnb', 'IPython', 'ipykernel', 'nbformat', 'nbclient', 'pytest', 'onnx', 'onnxruntime', 'optuna', 'ultrafast_pycocotools', 'tensorboard')
EXPECTED = '''boxes cfg layers model zoo pickles weights published census ground files adapters known records images table checks
              formats repair viewer datasets scene parking suspects augment loader anchors ranks loss optim compiled fused recipes board runs train sixteen launch stages match views suppress
              certainty inspector curves detect evaluate leaderboard compact submit sweeps errors graph lower targets export channels
              front prune distill quantize qat tensorrt compress'''.split()


def read(path): return json.loads(path.read_text(encoding='utf-8'))
def src(cell): return ''.join(cell['source'])
def code(path): return [c for c in read(path)['cells'] if c['cell_type'] == 'code']
def ids(paths): return dict(argvalues=paths, ids=[p.stem for p in paths])


def test_every_chapter_and_app_is_there():
    assert set(EXPECTED) <= {p.stem.split('_', 1)[1] for p in CHAPTERS}
    assert {'prepare', 'train', 'infer', 'evaluate', 'inspect', 'leaderboard', 'sweep', 'export', 'amp'} <= {p.stem for p in APPS}


@pytest.mark.parametrize('path', **ids(CHAPTERS))
def test_chapter_exports_one_module_and_imports_lower_numbers_only(path):
    number = {p.stem.split('_', 1)[1]: int(p.stem[:2]) for p in CHAPTERS}
    text = '\n'.join(src(c) for c in code(path))
    name, = re.findall(r'^#\|\s*default_exp\s+(\w+)', text, re.M)
    assert path.stem.split('_', 1)[1] == name
    exported = '\n'.join(src(c) for c in code(path) if re.search(r'^#\|\s*exports?\b', src(c), re.M))
    used = set()
    for node in ast.walk(ast.parse(exported)):
        if isinstance(node, ast.ImportFrom) and node.module == 'yolokit': used |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('yolokit.'): used.add(node.module.split('.')[1])
        elif isinstance(node, ast.Import): used |= {a.name.split('.')[1] for a in node.names if a.name.startswith('yolokit.')}
    for other in used: assert number[other] < number[name], f'{path.name} imports yolokit.{other}, which comes later'


@pytest.mark.parametrize('path', **ids(BOOKS))
def test_opens_with_a_title_and_one_line(path):
    first = next(src(c) for c in read(path)['cells'] if c['cell_type'] == 'markdown')
    assert re.match(r'#\s+\S.*\n+>\s*\S', first), first[:80]


@pytest.mark.parametrize('path', **ids(BOOKS))
def test_metadata(path):
    nb = read(path)
    assert nb['metadata']['kernelspec']['name'] == 'python3'      # papermill runs it without -k
    names = [c['id'] for c in nb['cells']]
    assert len(set(names)) == len(names)
    for c in code(path):
        for o in c['outputs']:
            assert o['output_type'] != 'error', f"{path.name}: a committed error {o.get('ename')}"
            assert len(json.dumps(o)) < 140_000, f'{path.name}: an output of {len(json.dumps(o))} bytes after {src(c)[:60]!r}'


@pytest.mark.parametrize('path', **ids(CHAPTERS))
def test_exported_cells_are_short(path):
    most = 60 if path.stem in ('33_train', '32_recipes') else 25      # the loop; the list of a recipe's numbers
    for c in code(path):
        lines = [l for l in src(c).splitlines() if l.strip() and not l.lstrip().startswith('#|')]
        if re.search(r'^#\|\s*exports?\b', src(c), re.M): assert len(lines) <= most, f'{path.name}: {len(lines)} lines: {lines[0]}'


@pytest.mark.parametrize('path', **ids(APPS))
def test_app_has_parameters_no_outputs_no_logic(path):
    nb = read(path)
    tagged = [c for c in nb['cells'] if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1, 'papermill needs exactly one cell tagged parameters; does allowed_cell_metadata_keys keep tags?'
    for node in ast.parse(src(tagged[0])).body:
        assert isinstance(node, ast.Assign), ast.dump(node)
        assert isinstance(ast.literal_eval(node.value), (str, int, float, bool)), 'parameters are scalars'
    for line in src(tagged[0]).splitlines():
        if '=' in line.split('#')[0]: assert '#' in line, f'no help after: {line}'
    assert 'skip_exec: true' in src(nb['cells'][0])              # nbdev_test leaves it to papermill
    for c in code(path):
        assert not re.search(r'^\s*(def|class) ', src(c), re.M), f'logic in an app: {src(c)[:60]}'
        assert path.stem == 'amp' or not c['outputs'], 'apps are committed without outputs'
    # its story is in what it shows: all cells but the parameters' have run, in order
    if path.stem == 'amp': assert all(c['outputs'] for c in code(path) if c['id'] != tagged[0]['id']) and sum('image/png' in o.get('data', {}) for c in code(path) for o in c['outputs']) >= 4


def test_library_imports_without_the_extras():
    modules = [p.stem for p in sorted((ROOT/'yolokit').glob('*.py')) if not p.stem.startswith('_')]
    program = f'''
import sys, importlib
for m in {EXTRAS!r}: sys.modules[m] = None       # what Python takes for "not installed"
for m in {modules!r}: importlib.import_module('yolokit.' + m)
'''
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize('name', ['boxes', 'cfg', 'zoo'])
def test_the_light_chapters_do_not_import_torch(name):
    program = f'import sys, yolokit.{name}; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', program], cwd=ROOT).returncode == 0


def test_dependencies_cover_the_imports():
    "Whatever the library imports at run time is listed in pyproject.toml, once."
    import tomllib
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    listed = {re.match(r'[\w-]+', d)[0] for d in project['dependencies']}
    module = {'cv2': 'opencv-python', 'PIL': 'pillow', 'yaml': 'pyyaml', 'faster_coco_eval': 'faster-coco-eval'}
    lazy = {'ipywidgets', 'IPython', 'onnx', 'onnxruntime', 'optuna', 'ultrafast_pycocotools'}                             # inside functions of the viewer and of progress
    used = set()
    for p in (ROOT/'yolokit').glob('*.py'):
        for node in ast.walk(ast.parse(p.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            used |= {n.split('.')[0] for n in names}
    used = {module.get(n, n) for n in used if n not in sys.stdlib_module_names} - {'yolokit'} - lazy
    assert used <= listed, f'not listed: {sorted(used - listed)}'
    assert len(listed) == len(project['dependencies'])


def test_constraints_pin_everything():
    "Every dependency of every extra has one exact version in constraints.txt."
    import tomllib
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    pinned = dict(l.split('==') for l in (ROOT/'constraints.txt').read_text().splitlines() if l)
    for d in project['dependencies'] + project['optional-dependencies']['lab'] + project['optional-dependencies']['dev']:
        if not d.startswith('yolokit'): assert re.match(r'[\w-]+', d)[0] in pinned, d
