"The commands of the README in a terminal (a pty), from several folders; papermill's own options as papermill has them."
import json, os, pty, re, select, shlex, subprocess, sys, time
from pathlib import Path

import pytest

from yolokit.apps.command_line import _add_output, _list_apps, install_papermill

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bin_folder(tmp_path):
    "A folder of commands whose papermill is ours, as `make setup` leaves it."
    (tmp_path/'bin').mkdir()
    install_papermill(tmp_path/'bin')
    return tmp_path/'bin'


def on_a_pty(command, folder, bin_folder, timeout=120, **env):
    "Exit status and everything that a terminal shows."
    path = f'{bin_folder}:{Path(sys.executable).parent}:{os.environ["PATH"]}'
    env = os.environ | dict(PATH=path, PYTHONPATH=str(ROOT), COLUMNS='120') | env
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe('bash', ['bash', '-c', command], env)
    out, end = b'', time.monotonic() + timeout
    while time.monotonic() < end:
        if not select.select([fd], [], [], 1)[0]: continue
        try: data = os.read(fd, 1 << 16)
        except OSError: break           # the terminal is closed: the command has ended
        if not data: break
        out += data
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), out.decode(errors='replace')


@pytest.fixture(params=['checkout', 'its parent', 'elsewhere'])
def folder(request, tmp_path):
    (tmp_path/'else').mkdir()
    return dict(checkout=ROOT, elsewhere=tmp_path/'else').get(request.param, ROOT.parent)


def test_an_app_needs_no_output_on_a_terminal(folder, bin_folder, tmp_path):
    "`--prepare-only` writes the notebook with its parameters and runs nothing."
    rc, text = on_a_pty('papermill nbs/train.ipynb -p stage finetune --prepare-only', folder, bin_folder,
                        YOLOKIT_ROOT=str(tmp_path))
    assert rc == 0, text
    assert 'Missing argument' not in text
    written = list((tmp_path/'runs').glob('train-*.ipynb'))
    assert len(written) == 1 and str(written[0].name) in text
    assert 'stage = "finetune"' in written[0].read_text(encoding='utf-8').replace('\\"', '"')


def test_a_second_run_in_the_same_second_takes_another_name(bin_folder, tmp_path):
    both = ' && '.join(['papermill nbs/infer.ipynb --prepare-only']*2)
    assert on_a_pty(both, tmp_path, bin_folder, YOLOKIT_ROOT=str(tmp_path))[0] == 0
    assert len(list((tmp_path/'runs').glob('infer-*.ipynb'))) == 2


@pytest.mark.parametrize('stdin', [subprocess.DEVNULL, subprocess.PIPE], ids=['no input', 'a pipe'])
def test_without_a_terminal_it_writes_the_same_and_prints_no_notebook(stdin, bin_folder, tmp_path):
    "papermill alone would print the notebook, or take the notebook's own path for the output."
    before = _list_apps()['train'].read_bytes()
    done = subprocess.run([bin_folder/'papermill', 'nbs/train.ipynb', '--prepare-only'], cwd=ROOT, stdin=stdin,
                          capture_output=True, text=True,
                          env=os.environ | dict(PYTHONPATH=str(ROOT), YOLOKIT_ROOT=str(tmp_path)))
    assert done.returncode == 0 and done.stdout == '', done.stderr
    assert len(list((tmp_path/'runs').glob('train-*.ipynb'))) == 1
    assert _list_apps()['train'].read_bytes() == before


@pytest.mark.parametrize('words', ['--help-notebook other.ipynb', '--no-such-option', 'nowhere.ipynb out.ipynb',
    'other.ipynb out.ipynb -p a 2 -r b 3 -y "{c: 4}" -f p.yaml --cwd . -k python3 --prepare-only --no-progress-bar'])
def test_all_else_is_papermills_own(words, bin_folder, tmp_path):
    "Side by side with papermill itself: the same status, the same words, the same notebook."
    cell = dict(cell_type='code', execution_count=None, id='a', metadata=dict(tags=['parameters']), outputs=[],
                source='a = 1')
    book = dict(cells=[cell], metadata=dict(kernelspec=dict(name='python3', language='python', display_name='p')),
                nbformat=4, nbformat_minor=5)
    found = []
    for name, command in (('ours', [bin_folder/'papermill']), ('theirs', [sys.executable, '-m', 'papermill'])):
        here = tmp_path/name
        here.mkdir()
        (here/'other.ipynb').write_text(json.dumps(book)); (here/'p.yaml').write_text('d: 5\n')
        done = subprocess.run([*command, *shlex.split(words)], cwd=here, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, env=os.environ | dict(PYTHONPATH=str(ROOT)))
        out = here/'out.ipynb'
        cells = json.loads(out.read_text())['cells'] if out.exists() else []
        last = re.sub(r'ours|theirs|python -m papermill', 'X', (done.stderr.strip() or '-').splitlines()[-1])
        text = re.sub(r'python -m papermill|ours|theirs', '', done.stdout)
        found.append((done.returncode, text.replace('papermill', ''), last.replace('papermill', 'X'),
                      [c['source'] for c in cells]))
    assert found[0] == found[1]


def commands_of(path):
    "Lines of code blocks that call papermill or yolokit, without comments."
    if path.suffix == '.ipynb':
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    else: text = path.read_text(encoding='utf-8')
    blocks = ''.join(re.findall(r'```\w*\n(.*?)```', text, re.S))
    return [l.split('  #')[0].strip() for l in blocks.splitlines() if re.match(r'(papermill|yolokit) ', l)]


PRINTED = [(p.name, c) for p in [ROOT/'README.md', ROOT/'docs'/'usage.md', *sorted(_list_apps().values())]
           for c in commands_of(p)]


def test_there_are_commands_to_try(): assert len(PRINTED) > 40


@pytest.mark.parametrize('where, command', PRINTED, ids=[f'{w} {c[:50]}' for w, c in PRINTED])
def test_every_printed_command_names_an_app_and_its_parameters(where, command):
    "Read as papermill and the app would read it: the notebook is there, every parameter is one that the app has."
    from yolokit.apps.command_line import _parameters_of
    words = shlex.split(command.split(' && ')[0].split(' | ')[0])
    if words[0] == 'yolokit':
        app, given = words[1], [w.partition('=')[0] for w in words[2:] if '=' in w]
        if app in ('lab', '--help'): return
    else:
        full = _add_output(words[1:])
        app = Path(full[[w.endswith('.ipynb') for w in full].index(True)]).stem
        given = [words[k + 1] for k, w in enumerate(words) if w in ('-p', '-r')]
    assert app in _list_apps(), command
    assert set(given) <= set(_parameters_of(_list_apps()[app])), command


@pytest.mark.parametrize('app', sorted(_list_apps()))
def test_papermill_reads_every_parameter_and_its_type(app, caplog):
    "`papermill --help-notebook` lists them all, and running the app brings no 'Unable to parse' or 'Unknown type'."
    from papermill.inspection import _infer_parameters
    from papermill.iorw import load_notebook_node
    from yolokit.apps.command_line import _parameters_of
    with caplog.at_level('WARNING'): found = _infer_parameters(load_notebook_node(str(_list_apps()[app])))
    assert not caplog.messages
    want = {k: type(v).__name__ for k, (v, _) in _parameters_of(_list_apps()[app]).items()}
    assert {p.name: p.inferred_type_name for p in found} == want
    assert all(p.help for p in found)
