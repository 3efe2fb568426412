"""Several steps looked at together, as on a GPU: the same bits as one by one, whatever happens in them, and nothing
that waits for the device."""
import dataclasses, math
import pytest, torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from test_compile import SMALL, go, rows_of
from test_ranks import Later, together
from yolokit.data import loader
from yolokit.training import guards, runs, step, train
from yolokit.training.recipes import TrainError
from yolokit.training.launcher import TrainingInterrupted

LONG = dataclasses.replace(SMALL, steps=14, scales=(.67, 1.))


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr(guards, '_CHECK_SECONDS', 1e9)        # as many as are allowed, however busy this machine is


def run(folder, name, trusted, recipe=LONG, **kw): return go(folder, name, recipe, compile=False, trusted=trusted, **kw)


def poisoned(monkeypatch, at, count=False):
    "A gradient is NaN in some steps."
    real, looks = step.init_training, []
    def begin(*a, **kw):
        t = real(*a, **kw)
        t.detector.layers[1].conv.weight.register_hook(lambda g: g*math.nan if t.step in at else g)
        return t
    monkeypatch.setattr(step, 'init_training', begin)


@pytest.mark.parametrize('recipe, amp', [
    (LONG, 'off'), (dataclasses.replace(LONG, optimizer='adamw', every=1.2, image_weights=True), 'bf16'),
    (LONG, 'fp16'), (dataclasses.replace(LONG, virtual=2), 'off')])
@pytest.mark.parametrize('bad', [(), (6,), (0, 4, 5, 6, 7, 13)], ids=str)
def test_as_one_by_one(root, monkeypatch, recipe, amp, bad):
    poisoned(monkeypatch, bad)
    name = f'{recipe.optimizer}{amp}{recipe.virtual}{len(bad)}'
    runs_ = [run(root, f'{name}-{k}', k, recipe, amp=amp) for k in (1, 5)]
    assert runs_[0][2] == runs_[1][2] and rows_of(runs_[0][0]) == rows_of(runs_[1][0])
    says = [[l[20:] for l in (r[0].folder/'log.txt').read_text().splitlines() if 'skipped' in l] for r in runs_]
    assert says[0] == says[1] and len(says[0]) == len(bad)


def test_ten_bad_steps_are_too_many(root, monkeypatch):
    poisoned(monkeypatch, range(3, 100))
    with pytest.raises(TrainError, match='10 steps in a row were not finite, the last: step 12:'): run(root, 'bad', 5)


def test_stopped_in_between_and_resumed(root):
    whole = run(root, 'whole', 5)
    with pytest.raises(TrainingInterrupted, match='after step [2-9] of 14'): run(root, 'part', 5, stop=Later(6))
    again = run(root, 'part', 5, state=runs.load_run_checkpoint(root/'runs/part/checkpoint'))
    assert again[2] == whole[2] and rows_of(again[0]) == rows_of(whole[0])


def of_two(team, folder, name, trusted):
    guards._CHECK_SECONDS = 1e9
    stop = Later(2) if team.rank and trusted == 4 else None               # the second process is told to stop
    try:
        return go(folder, name, dataclasses.replace(LONG, steps=11), compile=False, trusted=trusted, team=team,
                  stop=stop)[2]
    except TrainingInterrupted as e: return str(e)


@pytest.mark.soak
def test_two_processes(root):
    one, several, told = (together(2, of_two, root, f'two-{k}', k) for k in (1, 3, 4))
    assert one == several and one[0] == one[1] and len(one[0]) == 64, one
    # the one that was told knows it as its own, the other by hearsay; both end with the same step
    who, at = zip(*(t.split(' after ') for t in told))
    assert who == ('stopped by a signal to process 1', 'stopped by test') and at[0] == at[1], told


# ---- nothing waits

class Waits(TorchDispatchMode):
    "Operators that ask a device for a number or for a size that depends on numbers."
    BAD = {'_local_scalar_dense', 'nonzero', 'masked_select', '_unique2', 'unique_dim', 'unique_consecutive',
           'is_nonzero', 'equal', 'allclose', 'repeat_interleave', 'bincount'}
    def __init__(self, note): super().__init__(); self.note, self.n = note, 0
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        name = f.overloadpacket.__name__
        masks = name in ('index', 'index_put', 'index_put_') and any(
            torch.is_tensor(i) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if name in self.BAD or masks: self.note(name)
        self.n += 1
        return f(*args, **kwargs or {})


class Asks(TorchFunctionMode):
    "The same where Python asks: tolist and its like read a CPU tensor without an operator."
    BAD = {getattr(torch.Tensor, k): k for k in 'item tolist cpu numpy __bool__ __int__ __float__ __index__ __array__ '
                                                '__len__ nonzero'.split() if k != '__len__'}
    def __init__(self, note): super().__init__(); self.note = note
    def __torch_function__(self, f, types, args=(), kwargs=None):
        if f in self.BAD: self.note(self.BAD[f])
        if f is torch.Tensor.to and 'cpu' in [a for a in (*args[1:], *(kwargs or {}).values()) if isinstance(a, str)]:
            self.note('to cpu')
        return f(*args, **kwargs or {})


@pytest.mark.parametrize('amp, recipe', [
    ('off', LONG), ('bf16', dataclasses.replace(LONG, optimizer='adamw', nominal=8)),
    ('fp16', dataclasses.replace(LONG, compat='drop-accumulation'))])
def test_nothing_waits_between_two_looks(root, monkeypatch, amp, recipe):
    """On a CPU, the way that a GPU takes: what is asked, in which step, outside the places that work on the host's own
    tensors or look on purpose."""
    asked, host, now, looks = [], [0], [None], []
    def apart(module, name):
        real = getattr(module, name)
        def f(*a, **kw):
            host[0] += 1
            try: return real(*a, **kw)
            finally: host[0] -= 1
        monkeypatch.setattr(module, name, f)
    apart(step, '_trim_targets')                                               # of targets that are still on the host
    for name in ('sync_step_results', '_log_steps', '_save_state', '_validate', 'skip_step'): apart(train, name)
    apart(loader.Batch, 'to')                                              # to the device: here it is the CPU itself
    # the scaler says its scale as a number; right after a look
    if amp == 'fp16': apart(guards.DeferredChecks, 'begin')
    feed = step.BatchFeed.__call__
    def fed(self, *a):
        batches = feed(self, *a)
        while True:
            host[0] += 1
            try: b = next(batches, None)
            finally: host[0] -= 1
            if b is None: return
            yield b
    monkeypatch.setattr(step.BatchFeed, '__call__', fed)
    real, settle = step.init_training, train.sync_step_results
    def begin(*a, **kw): now[0] = real(*a, **kw); return now[0]
    def settled(t, held, *a): looks.append(len(held)); return settle(t, held, *a)
    monkeypatch.setattr(step, 'init_training', begin)
    monkeypatch.setattr(train, 'sync_step_results', settled)
    note = lambda what: now[0] and not host[0] and asked.append((now[0].step, what))
    with Waits(note) as ops, Asks(note): run(root, f'waits-{amp}', 5, recipe, amp=amp)
    print(amp, 'looks after', looks, 'steps;', ops.n/recipe.steps, 'operators a step')
    assert [a for a in asked if 1 <= a[0] < recipe.steps] == [], sorted(set(asked))
    assert looks == [1, 5, 5, 3] or amp == 'fp16' and max(looks) == 5, looks
