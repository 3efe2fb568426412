"Run folders under faults: damaged checkpoints, a full disk, two processes, foreign files."
import dataclasses, json, multiprocessing, os, random, signal, subprocess, time
import pytest, torch
import small
from yolokit.core import environment, files
from yolokit.core.environment import DeviceError
from yolokit.network.cfg import Cfg
from yolokit.network.model import Detector
from yolokit.training import launcher, recipes, runs, step
from yolokit.training.runs import load_run_checkpoint, Run, RunError, save_run_checkpoint
from yolokit.apps.config import ConfigError, make_config


def quiet(text): pass


def test_every_prefix_and_flipped_bits_are_refused(tmp_path):
    save_run_checkpoint(tmp_path, dict(step=1, w=torch.arange(50.)), 1)
    path, = tmp_path.glob('*.pt')
    good = path.read_bytes()
    draw = random.Random(0)
    for n in [0, 1, len(good) - 1, *(draw.randrange(len(good)) for _ in range(40))]:
        path.write_bytes(good[:n])
        assert load_run_checkpoint(tmp_path, quiet) is None
    for bit in (draw.randrange(8*len(good)) for _ in range(200)):
        bad = bytearray(good)
        bad[bit//8] ^= 1 << bit % 8
        path.write_bytes(bad)
        assert load_run_checkpoint(tmp_path, quiet) is None
    path.write_bytes(good)
    assert load_run_checkpoint(tmp_path, quiet)['step'] == 1


def test_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    for s in (1, 2): save_run_checkpoint(tmp_path, dict(step=s), s)
    real = torch.save
    def full(state, path):
        real(state, path)
        with open(path, 'r+b') as f: f.truncate(100)
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(runs.torch, 'save', full)
    with pytest.raises(OSError): save_run_checkpoint(tmp_path, dict(step=3), 3)
    assert load_run_checkpoint(tmp_path, quiet)['step'] == 2
    assert not [p for p in tmp_path.iterdir() if 'part' in p.name]
    # full only once the sha256 is to be written: the new one does not count, the old one does
    monkeypatch.setattr(runs.torch, 'save', real)
    real_atomic = files.atomic_write
    def full_for_marks(path):
        if path.suffix == '.sha256': raise OSError(28, 'No space left on device')
        return real_atomic(path)
    monkeypatch.setattr(runs, 'atomic_write', full_for_marks)
    with pytest.raises(OSError): save_run_checkpoint(tmp_path, dict(step=3), 3)
    heard = []
    assert load_run_checkpoint(tmp_path, heard.append)['step'] == 2
    assert 'never finished' in heard[0]


def test_checkpoint_is_an_ordinary_sha256sum_file(tmp_path):
    save_run_checkpoint(tmp_path, dict(step=7), 7)
    assert subprocess.run(['sha256sum', '-c', 'step-00000007.sha256'], cwd=tmp_path,
                          capture_output=True).returncode == 0


def test_checkpoint_does_not_run_code(tmp_path):
    class Evil:
        def __reduce__(self): return os.system, ('touch ' + str(tmp_path/'ran'),)
    save_run_checkpoint(tmp_path, dict(step=1, evil=Evil()), 1)
    with pytest.raises(Exception): load_run_checkpoint(tmp_path, quiet)
    assert not (tmp_path/'ran').exists()


def reserve(folder, out):
    try: out.put(Run.new('s', 'same', folder).name)
    except RunError: out.put('')


def test_two_processes_never_get_the_same_run(tmp_path):
    names = {Run.new('s', folder=tmp_path).name for _ in range(5)}
    assert len(names) == 5
    out = fork.Queue()
    ps = [fork.Process(target=reserve, args=(tmp_path, out)) for _ in range(4)]
    for p in ps: p.start()
    got = [out.get(timeout=20) for _ in ps]
    for p in ps: p.join()
    assert sorted(got) == ['', '', '', 'same']


def test_an_existing_name_is_not_touched(tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/notes.txt').write_text('do not lose')
    with pytest.raises(RunError, match='mine exists already'): Run.new('s', 'mine', tmp_path)
    assert [p.name for p in (tmp_path/'mine').iterdir()] == ['notes.txt']
    for bad in ('../x', 'a/b', '.hidden', 'a b', ''*101 + 'x'*101):
        with pytest.raises(RunError, match='letters, digits'): Run.new('s', bad, tmp_path)


def test_find_passes_over_broken_and_unfinished(tmp_path):
    facts = dict(data=dict(fingerprint='d'), network=dict(sha256='n'))
    a = Run.new('baseline', folder=tmp_path, **facts).update(state='finished', ended='2026-01-01 00:00:01')
    b = Run.new('baseline', folder=tmp_path, **facts).update(state='finished', ended='2026-01-01 00:00:02')
    Run.new('baseline', folder=tmp_path, **facts).update(state='interrupted', ended='2026-01-01 00:00:03')
    (tmp_path/'broken').mkdir(); (tmp_path/'broken/run.json').write_text('{"state": ')
    for r in (a, b): (r.folder/'weights').mkdir(exist_ok=True); (r.folder/'weights/best.pt').touch()
    assert runs.latest_run('baseline', 'd', 'n', tmp_path).name == b.name
    b.update(state='failed')
    assert runs.latest_run('baseline', 'd', 'n', tmp_path).name == a.name
    assert runs.latest_run('baseline', 'other', 'n', tmp_path) is None


def test_run_json_survives_what_json_cannot_say(tmp_path):
    r = Run.new('s', folder=tmp_path, result=dict(AP=float('nan'), path=tmp_path), names=['세단', 'SUV'])
    text = (r.folder/'run.json').read_text(encoding='utf-8')
    assert json.loads(text)['result']['AP'] is None and '세단' in text


@dataclasses.dataclass
class C:
    stage: str = 'finetune'
    bs: int = 0
    lr0: float = 0.
    fix: bool = True


@pytest.mark.parametrize('given, says', [(dict(stagee='x'), 'did you mean stage'), (dict(bs='x'), 'bs: a whole number'),
                                         (dict(bs=1.5), 'bs: a whole number'),
                                         (dict(fix='perhaps'), 'fix: true or false'), (dict(lr0=True), 'lr0: a number'),
                                         (dict(stage=True), 'stage: text'), (dict(stage=[1]), 'stage: text')])
def test_collect_refuses(given, says):
    with pytest.raises(ConfigError, match=says): make_config(given, C)


def test_collect_takes_what_papermill_gives():
    assert make_config(dict(bs=8, lr0=1, fix=False, stage=7, In=[], os=os, _i='x'), C) == C('7', 8, 1., False)
    assert make_config(dict(bs=None), C) == C()


def test_a_driver_too_old_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(environment, '_find_nvidia', lambda: '/dev/nvidia0, driver 470.57.02')
    with pytest.raises(DeviceError, match='(?s)470.57.*Upgrade the driver.*device=cpu'): environment.device('auto')
    assert environment.device('cpu').type == 'cpu'

    def warns():
        import warnings
        warnings.warn('The NVIDIA driver on your system is too old (found version 11040)')
        return False
    monkeypatch.setattr(torch.cuda, 'is_available', warns)
    monkeypatch.setattr(environment, '_find_nvidia', lambda: '')
    with pytest.raises(DeviceError, match='too old'): environment.device('auto')


def loop(why, ready):
    "A child: steps of 50 ms until it is told to stop."
    with launcher.stop_on_signal() as stop:
        ready.set()
        for _ in range(400):
            time.sleep(.05)
            if stop.why: return why.write_text(stop.why)


def middle(why, ready, pid):
    "A child that has a child of its own and waits."
    p = fork.Process(target=loop, args=(why, ready))
    p.start()
    pid.put(p.pid)
    time.sleep(60)


fork = multiprocessing.get_context('fork')


@pytest.mark.parametrize('sig', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_loop_not_the_process(tmp_path, sig):
    ready = fork.Event()
    p = fork.Process(target=loop, args=(tmp_path/'why', ready))
    p.start()
    assert ready.wait(20)
    os.kill(p.pid, sig)
    p.join(20)
    assert p.exitcode == 0
    assert (tmp_path/'why').read_text() == {signal.SIGTERM: 'SIGTERM', signal.SIGINT: 'Ctrl-C'}[sig]


def test_the_end_of_the_parent_is_noticed(tmp_path, monkeypatch):
    "Of one that waits: a shell that is closed leaves the run alone (test_faults)."
    monkeypatch.setattr(launcher, '_has_supervisor', lambda: True)
    ready, pid = fork.Event(), fork.Queue()
    p = fork.Process(target=middle, args=(tmp_path/'why', ready, pid))
    p.start()
    child = pid.get(timeout=20)
    assert ready.wait(20)
    p.kill(); p.join()
    for _ in range(100):
        if (tmp_path/'why').exists(): break
        time.sleep(.1)
    assert (tmp_path/'why').read_text() == 'SIGTERM'
    time.sleep(.3)
    assert not os.path.exists(f'/proc/{child}') or 'Z' in open(f'/proc/{child}/stat').read().split(')')[1].split()[0]


@pytest.mark.soak
def test_every_prefix_and_ten_thousand_flips_are_refused(tmp_path):
    """The checkpoint of a training, not a toy: cut at every byte, and 10,000 bits of it and all bits of its mark
    flipped one at a time."""
    detector = Detector(Cfg.parse(small.CFG, 'tiny.cfg'), seed=1)
    t = step.init_training(detector, recipes.Recipe())
    save_run_checkpoint(tmp_path, step.checkpoint_state(t), 7)
    path, mark = tmp_path/'step-00000007.pt', tmp_path/'step-00000007.sha256'
    good, said = path.read_bytes(), mark.read_bytes()
    flips, accepted = random.Random(0).sample(range(8*len(good)), 10_000), 0
    for file, data, bits in ((path, good, flips), (mark, said, range(8*len(said)))):
        with open(file, 'r+b', buffering=0) as f:
            for bit in bits:
                f.seek(bit//8); f.write(bytes([data[bit//8] ^ 1 << bit % 8]))
                accepted += load_run_checkpoint(tmp_path, quiet) is not None
                f.seek(bit//8); f.write(data[bit//8:bit//8 + 1])
    assert load_run_checkpoint(tmp_path, quiet)['step'] == 0 and not accepted
    for n in range(len(good) - 1, -1, -1):
        os.truncate(path, n)
        accepted += load_run_checkpoint(tmp_path, quiet) is not None
    print(f'{len(good)} prefixes, {len(flips)} flips of the checkpoint, {8*len(said)} of its mark: {accepted} accepted')
    assert not accepted
