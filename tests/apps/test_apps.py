"The train app through papermill, as a user calls it: the embedded default end to end, wrong parameters, a signal."
import json, signal, subprocess, sys, time
from pathlib import Path
import pytest
from small import checkout, environment
from yolokit.data import parking

TRAIN = Path(__file__).resolve().parents[2]/'nbs/train.ipynb'
PAPERMILL = [sys.executable, '-m', 'papermill', '--no-progress-bar', str(TRAIN)]
SHORT = dict(steps=3, width=160, height=96, bs=4, workers=0, threads=1, device='cpu')


def call(root, *output, cwd='/', **parameters):
    "Start papermill in a working directory that is not the checkout."
    p = [x for k, v in parameters.items() for x in ('-p', k, str(v))]
    # a shell's background job ignores Ctrl-C, and so would everything started from it
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([*PAPERMILL, *map(str, output), *p], cwd=cwd, env=environment(root), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, preexec_fn=heed)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = checkout(tmp_path_factory.mktemp('checkout'))
    with pytest.MonkeyPatch.context() as m:
        m.setenv('YOLOKIT_ROOT', str(folder))
        parking.make_parking(folder/'data/parking', n_train=8, n_val=4, n_test=2, workers=1)
    return folder


def test_main_job_and_wrong_parameters(root, tmp_path):
    jobs = dict(main=call(root, **SHORT, stage='finetune'), typo=call(root, tmp_path/'typo.ipynb', stagee='finetune'),
                stage=call(root, tmp_path/'stage.ipynb', stage='final'))
    said = {k: p.communicate(timeout=400) for k, p in jobs.items()}
    assert jobs['typo'].returncode and 'unknown parameter stagee: did you mean stage?' in said['typo'][1]
    assert (jobs['stage'].returncode
            and "stage 'final' does not exist: the stages are baseline and finetune" in said['stage'][1])
    out, err = said['main']
    assert jobs['main'].returncode == 0, err[-3000:]
    json.loads(out)                                         # without an output path papermill prints the notebook
    run, before = root/'runs/finetune-001', root/'runs/baseline-001'
    plan = ['baseline: no finished run for this data and this network, so it comes first',
            '1. baseline, as baseline-001, from random weights: 3 steps of 4 images, about ',
            '2. finetune, as finetune-001, from the best weights of baseline-001: 3 steps', 'in all about']
    for text in (err, (run/'log.txt').read_text(), (before/'log.txt').read_text()):
        for line in plan: assert line in text
        assert text.index('in all about') < text.index('step/s')             # before it starts
    assert 'step/s' in err and 'img/s' in err                               # progress, on the terminal
    for f in ('report.ipynb', 'weights/best.pt', 'predictions.json', 'submission.json'):
        assert (run/f).exists() and f'finetune-001/{f}' in err
    info = json.loads((run/'run.json').read_text())
    assert (info['state'] == 'finished' and info['parent'] == 'baseline-001'
            and 'AP50' in info['result'] and info['weights_sha256'])
    assert {'curves.png', 'batch.png', 'pr.png', 'predictions.png'} <= {p.name for p in (run/'plots').iterdir()}
    ids = {i['id'] for i in json.loads((root/'data/parking/Test_Images_Information.json').read_text())['images']}
    assert {r['image_id'] for r in json.loads((run/'submission.json').read_text())} <= ids


def children(pid):
    "Processes whose parent is pid."
    found = []
    for p in Path('/proc').glob('[0-9]*/stat'):
        try: fields = p.read_text().rsplit(')', 1)[1].split()
        except OSError: continue
        if int(fields[1]) == pid: found.append(int(p.parent.name))
    return found


def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError: return False


def wait(what, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what(): return True
        time.sleep(.1)
    return False


@pytest.mark.parametrize('sig', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak),
                                 pytest.param(signal.SIGKILL, marks=pytest.mark.soak)])
def test_a_signal_to_papermill_saves_and_leaves_nothing_behind(root, tmp_path, sig):
    name = f'told-{int(sig)}'
    tiny = dict(data='squares', network='tiny.cfg', stage='baseline', weights='none', bs=4, threads=1, device='cpu')
    p = call(root, tmp_path/'out.ipynb', **tiny, name=name, steps=100000, workers=1)
    rows = root/f'runs/{name}/steps.csv'
    assert wait(rows.exists, 200), p.communicate()[1][-2000:]
    family = [k for c in children(p.pid) for k in (c, *children(c))]
    assert family
    p.send_signal(sig)
    began = time.monotonic()
    info = lambda: json.loads((root/f'runs/{name}/run.json').read_text())
    assert wait(lambda: info()['state'] == 'interrupted', 30)
    assert wait(lambda: not any(map(alive, family)), 30), 'a process was left behind'
    print(f'{signal.Signals(sig).name}: saved and gone in {time.monotonic() - began:.1f} s')
    p.communicate(timeout=60)
    assert p.returncode
    assert list((root/f'runs/{name}/checkpoint').glob('step-*.sha256'))
    assert f'-p resume {name}' in (root/f'runs/{name}/log.txt').read_text()


def test_amp_story(root, tmp_path):
    "The notebook with a few steps of a small network: every cell runs, and shows what it tells."
    small = dict(pictures=4, steps=4, bs=2, width=64, height=64, device='cpu')
    p = [x for k, v in small.items() for x in ('-p', k, str(v))]
    done = subprocess.run([sys.executable, '-m', 'papermill', '--no-progress-bar', str(TRAIN.parent/'amp.ipynb'),
                           str(tmp_path/'amp.ipynb'), *p], cwd='/', env=environment(root),
                          capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    said = (tmp_path/'amp.ipynb').read_text()
    assert said.count('"image/png"') >= 4 and 'clipped, then unscaled' in said and 'fail_on_recompile' in said
    assert list((root/'runs').glob('amp*')) == []                           # it leaves nothing behind


def test_the_app_shows_samples_and_anchors_before_the_first_step(root, monkeypatch):
    "A picture and a figure; no run folder is made for it."
    from yolokit.apps.train import preview, TrainConfig
    monkeypatch.setenv('YOLOKIT_ROOT', str(root))
    before = sorted((root/'runs').glob('*')) if (root/'runs').exists() else []
    picture, figure = preview(TrainConfig(stage='baseline', **SHORT), 8)
    assert picture.shape == (3*96, 3*160, 3) and picture.std() > 20 and 'BPR' in figure.axes[0].get_title()
    assert (sorted((root/'runs').glob('*')) if (root/'runs').exists() else []) == before
