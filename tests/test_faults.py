"Injected faults: each ends as specified, and a resumed run has the bits of one to which nothing happened."
import json, math, os, shutil, signal, time
import pytest, torch
import victims
from small import checkout
from victims import end, gone, run, start
from yolokit.training.runs import Run

# name: (the fault, what its log has to say, does it end by itself as if nothing had been?)
GOES_ON = {
    'a worker is killed': (('worker', 6), 'New ones are started', dict(workers=1)),
    'a worker is killed again and again': (('worker', 0), 'New ones are started', dict(workers=1)),
    'two workers are killed': (('worker', 3), 'New ones are started', dict(workers=2)),
    'the disk is full when a checkpoint is written': (('full', '*step-*.pt*', 5), 'could not be written', {}),
    'the disk is full when its sha256 is written': (('full', '*step-*.sha256*', 5), 'could not be written', {}),
    'the disk is full when the log is written': (('full', 'log.txt', 8), '', {}),
    'no memory in the forward pass': (('oom', 'forward', 6), 'activations are recomputed', {}),
    'no memory in the backward pass': (('oom', 'backward', 6), 'activations are recomputed', {}),
    'no memory in the trial': (('oom', 'forward', -1), 'the trial ran out of memory', {}),
    'the checkpoint folder cannot be synced': (('full', 'fsync', 3), 'could not be written', {}),
    'the disk is full when a row is written': (('full', 'steps.csv', 1), 'the disk is full', {}),
    'the disk is full when a judgement is written': (('full', 'metrics.csv', 2), 'the disk is full', {}),
    'the disk is full when last.pt is written': (('full', '*last.pt*', 2), 'the disk is full', {}),
    'the disk is full when best.pt is written': (('full', '*best.pt*', 1), 'the disk is full', {}),
    'the disk is full when run.json is written': (('full', '*run.json*', 3), 'the disk is full', {}),
    'the disk is full when the curves are drawn': (('full', '*curves.png*', 1), 'the disk is full', {}),
    'the disk is full when the report is written': (('full', '*report.ipynb*', 1), 'the disk is full', {}),
    'the disk is full when the first batch is drawn': (('full', '*batch.png*', 1), 'the disk is full', {}),
    'torch says that the disk is full, at a checkpoint': (('torch_full', 5), 'could not be written', {}),
    'torch says that the disk is full, at many': (('torch_full', 4, 5, 6, 7, 8, 9), 'No space left', {}),
    'nohup, SIGHUP, and the shell is gone': (('nohup', 6), '', {}),
    'the shell is gone': (('shell_gone', 6), '', {}),
}
ENDS = {
    'no memory when the weights change': (('oom', 'step', 7), 'out of memory while step', {}),
    'no memory when judging': (('oom', 'judge', 2), 'out of memory while judging: lower bs', {}),
    'every step is NaN': (('nan', 'loss', 0), '10 steps in a row were not finite', {}),
    'an image is cut short': (('image', 'cut'), 'train3.png', {}),
    'an image is gone': (('image', 'gone'), 'train3.png', {}),
    **{f'{s.name} when {phase}': (('signal', int(s), phase), 'go on with -p resume '
                                  if phase != 'preparing' else 'stopped: ', {})
       for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
       for phase in ('preparing', 'probing', 'stepping', 'saving', 'judging', 'finishing')},
    'the parent is gone': (('orphan', 6), 'go on with -p resume ', {}),
    'a checkpoint is half written': (('saving: half written', 9), '', {}),
    'killed in the middle of a rename': (('saving: before the rename', 12), '', {}),
    'killed between a checkpoint and its sha256': (('saving: the file is there, its sha256 is not', 9), '', {}),
    'killed when half the weights are new': (('step: half the weights are new', 9), '', {}),
}
# between a kill and the resume: (what happens, what is said, does it go on?)
DAMAGES = {
    'its newest mark is missing': (lambda f: newest(f, '.sha256').unlink(), 'it was never finished', True),
    'its newest checkpoint is cut': (lambda f: os.truncate(newest(f, '.pt'), 5000),
                                     'its bytes are not those that were written', True),
    'a bit of its newest checkpoint is flipped': (lambda f: flip(newest(f, '.pt')),
                                                  'its bytes are not those that were written', True),
    'its newest mark is garbage': (lambda f: newest(f, '.sha256').write_bytes(b'\xff\x00'), 'is passed over', True),
    'all checkpoints are gone': (lambda f: shutil.rmtree(f/'checkpoint'), '', True),
    'its weights are gone': (lambda f: shutil.rmtree(f/'weights'), 'best.pt', False),
    'steps.csv ends in half a row': (lambda f: (f/'steps.csv').open('a').write('15,0.0'), '', True),
    'run.json is damaged': (lambda f: (f/'run.json').write_text('{"state": "runn'), 'its run.json is damaged', False),
    'run.json is gone': (lambda f: (f/'run.json').unlink(), 'no run', False),
    'the data are others': (lambda f: other_data(f.parents[1]), 'cannot go on: the data is not what it was', False),
    'the checkpoint is of another network': (lambda f: other_network(f), 'is not of this network or recipe', False),
    'torch is another one': (lambda f: facts(f, versions=dict(torch='1.0')),
                             'the result will not be the same to the bit', True),
    'it is still running': (None, 'is still running, as process', False),
    'its best weights are gone': (lambda f: (f/'weights/best.pt').unlink(), 'weights/best.pt is gone', False),
    'its network is gone': (lambda f: hide(f.parents[1]/'tiny.cfg'), 'the cfg that the run holds is enough', True),
    'its run.json is of a newer version': (lambda f: facts(f, config=dict(colour=1)), 'by a newer yolokit', False),
    'its log is gone': (lambda f: (f/'log.txt').unlink(), '', True),
    'its pictures are gone': (lambda f: shutil.rmtree(f/'plots'), '', True),
}
# what is asked for: (what is said, while no folder is made)
REFUSED = {
    'a clip below zero': (dict(change='clip=-1'), 'clip=-1'),
    'a restart below zero': (dict(change='restart=-1; schedule=restarts'), 'restart=-1'),
    'restarts that shrink to nothing': (dict(change='restart_mult=0; schedule=restarts'), 'restart_mult=0'),
    'a name outside the run': (dict(change='alias=../../x'), 'no folder'),
    'anchors that match nothing': (dict(change='gains.anchor_t=0'), 'anchor_t=0'),
    'a stage that is not there': (dict(change='freeze=stage99'), 'stage99'),
    'a size between strides': (dict(width=100), 'multiple of 8'),
    'a rate that is no number': (dict(lr0=math.nan), 'lr0=nan'),
    'a seed beyond 64 bits': (dict(seed=2**70), 'seed='),
    'a device that is not here': (dict(device='cuda:9'), 'device=cuda:9'),
    'a limit of nothing': (dict(limit_mb=0.), 'limit_mb=0'),
    'weights that are not there': (dict(weights='nobody.pt'), 'no such file'),
    'a key below a number': (dict(change='gains.box.lr0=1'), 'say name=value'),
}
# a run that is killed at a place, and the same command once more: it goes on, or begins anew
AGAIN = ('saving: half written', 'saving: before the rename', 'judging', 'judging: weights', 'judging: before its row',
         'step: in the backward pass', 'step: a row is written')


def newest(folder, suffix): return max((folder/'checkpoint').glob('step-*' + suffix))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data)//2] ^= 16
    path.write_bytes(data)


def hide(path): path.rename(path.with_suffix('.kept'))


def facts(folder, **kw): (folder/'run.json').write_text(json.dumps(json.loads((folder/'run.json').read_text()) | kw))


def other_data(root):
    for p in (root/'squares/labels/train').iterdir(): p.write_text('0 0.5 0.5 0.2 0.2\n')


def other_network(folder):
    from yolokit.training import runs
    path = newest(folder, '.pt')
    state = runs.load_run_checkpoint(folder/'checkpoint')
    name = next(k for k, v in state['detector'].items() if v.ndim == 4)
    state['detector'][name] = torch.zeros(3, 3, 1, 1)
    runs.save_run_checkpoint(folder/'checkpoint', state, int(path.stem.split('-')[1]))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = checkout(tmp_path_factory.mktemp('checkout'))
    assert run(folder, folder/'whole.log', dict(name='whole', workers=0)) == 0, (folder/'whole.log').read_text()
    return folder


def said(folder, log):
    return log.read_text() + (folder/'log.txt').read_text() if (folder/'log.txt').exists() else log.read_text()


def resumed(root, name, log, **kw): return run(root, log, vars(victims.TrainConfig(resume=name, workers=0)), **kw)


def check_goes_on(root, what, k):
    (fault, *args), says, config = GOES_ON[what]
    name, log = f'on{k}', root/f'on{k}.log'
    assert run(root, log, dict(name=name) | config, faults=[(fault, *args)]) == 0, log.read_text()[-3000:]
    assert says in said(root/'runs'/name, log)
    assert end(root, name) == end(root, 'whole')


def check_ends(root, what, k):
    (fault, *args), says, config = ENDS[what]
    name, log = f'end{k}', root/f'end{k}.log'
    p = start(root, log, dict(name=name) | config, faults=[(fault, *args)])
    p.join(120)
    assert p.exitcode, log.read_text()[-3000:]
    gone(p.pid)
    text = said(root/'runs'/name, log)
    assert says in text, text[-3000:]
    mend(root)
    if not (root/f'runs/{name}/run.json').exists(): assert run(root, log, dict(name=name)) == 0, log.read_text()[-3000:]
    elif json.loads((root/f'runs/{name}/run.json').read_text())['state'] != 'finished':
        assert resumed(root, name, log) == 0, log.read_text()[-3000:]
    # skipped steps that a checkpoint knows of are over; all else is as if nothing had been
    if what != 'every step is NaN': assert end(root, name) == end(root, 'whole')


def mend(root):
    "Put an image back that a fault has damaged."
    for p in (root/'squares/images/train').glob('*.kept'): p.replace(p.with_suffix(''))


def check_damage(root, what, k):
    damage, says, on = DAMAGES[what]
    if what == 'the data are others': shutil.copytree(root/'squares', root/'kept')
    name, log = f'dmg{k}', root/f'dmg{k}.log'
    p = start(root, log, dict(name=name), faults=[('step: half the weights are new', 13)] if damage else [('slow',)])
    if damage: p.join(120); damage(root/'runs'/name)
    else:
        for _ in range(600):
            if (root/f'runs/{name}/run.json').exists(): break
            time.sleep(.05)
    code = resumed(root, name, log)
    if not damage: p.kill(); p.join()
    for p in root.glob('*.kept'): p.rename(p.with_suffix('.cfg'))
    if what == 'the data are others':
        shutil.rmtree(root/'squares')
        (root/'kept').rename(root/'squares')
    text = said(root/'runs'/name, log)
    assert says in text and (code == 0) == on, text[-3000:]
    if on: assert end(root, name) == end(root, 'whole')


def check_refused(root, what, k):
    config, says = REFUSED[what]
    name, log = f'no{k}', root/f'no{k}.log'
    assert run(root, log, dict(name=name) | config), log.read_text()[-3000:]
    assert says in log.read_text() and not (root/'runs'/name).exists(), log.read_text()[-3000:]


def check_again(root, what, k):
    name, log = f'again{k}', root/f'again{k}.log'
    n = 4 if 'before its row' in what else 9
    assert run(root, log, dict(name=name), faults=[(what.removeprefix('once more: '), n)])
    assert Run.open(name, root/'runs').info['state'] == 'interrupted'         # though it could not say so
    assert run(root, log, dict(name=name)) == 0, log.read_text()[-3000:]
    assert end(root, name) == end(root, 'whole')
    began = (root/f'runs/{name}/steps.csv').stat().st_mtime_ns
    assert run(root, log, dict(name=name)) == 0 and 'nothing is left to do' in log.read_text()
    assert (root/f'runs/{name}/steps.csv').stat().st_mtime_ns == began


LONGER = 'schedule=constant; augment.close_mosaic=0'


def check_longer(root, what, k):
    "Killed while it is made longer, and made longer once more."
    name, log = f'longer{k}', root/f'longer{k}.log'
    if not (root/'runs/longest').exists(): assert run(root, log, dict(name='longest', steps=16, change=LONGER)) == 0
    assert run(root, log, dict(name=name, steps=9, change=LONGER)) == 0, log.read_text()[-3000:]
    resume = vars(victims.TrainConfig(resume=name, workers=0, steps=16))
    assert run(root, log, resume, faults=[(what.removeprefix('made longer: '), 3)])
    assert run(root, log, resume) == 0, log.read_text()[-3000:]
    assert end(root, name) == end(root, 'longest')


def check_two(root, what, k):
    "Two processes want the same at once: both end well, or one is told why not."
    name, logs = f'two{k}', [root/f'two{k}{j}.log' for j in 'ab']
    config = {'the same name': dict(name=name), 'the same stage': dict(name=''), 'the same new data': dict(
        name='', data=f'fresh{k}')}[what.removeprefix('two at once: ')]
    if 'data' in config: shutil.copytree(root/'squares', root/f'fresh{k}')
    both = [start(root, log, config) for log in logs]
    for p in both: p.join(240)
    texts = [log.read_text() for log in logs]
    if what.endswith('name'):
        assert sorted(bool(p.exitcode) for p in both) == [False, True], texts
        assert any('is still running' in t or 'exists already' in t for t in texts), texts
        assert end(root, name) == end(root, 'whole')
    else: assert [p.exitcode for p in both] == [0, 0], texts


def check_no_boxes(root, what, k):
    name, log = f'none{k}', root/f'none{k}.log'
    value = float(what.split('=')[1])
    assert run(root, log, dict(name=name), faults=[('ap', value)]) == 0, log.read_text()[-3000:]
    info = json.loads((root/f'runs/{name}/run.json').read_text())
    assert info['state'] == 'finished' and (root/f'runs/{name}/weights/best.pt').exists()


OTHERS = [(check_refused, list(REFUSED)), (check_again, [f'once more: {w}' for w in AGAIN]),
          (check_longer, [f'made longer: {w}' for w in ('saving: half written', 'judging: weights',
                                                        'judging: before its row', 'step: in the backward pass')]),
          (check_two, [f'two at once: {w}' for w in ('the same name', 'the same stage', 'the same new data')]),
          (check_no_boxes, ['judged with AP=-1', 'judged with AP=nan', 'judged with AP=0'])]
CHECKS = [(check, what, k) for check, table in ((check_goes_on, GOES_ON), (check_ends, ENDS),
                                                (check_damage, DAMAGES), *OTHERS)
          for k, what in enumerate(table)]
SAMPLE = ('no memory in the backward pass', 'its newest checkpoint is cut', 'once more: judging: weights')


@pytest.mark.parametrize('check, what, k', [pytest.param(*c, id=c[1], marks=[] if c[1] in SAMPLE
                                                         else pytest.mark.soak) for c in CHECKS])
def test_fault(root, check, what, k): check(root, what, k)


def test_there_are_eighty(): assert len({what for _, what, _ in CHECKS}) == len(CHECKS) >= 80
