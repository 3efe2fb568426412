"""Training in machine code: nothing is left by the warm-up, nothing is compiled twice, the same bits twice and resumed.
Traced only, except in `make soak`: a C++ compiler takes minutes."""
import dataclasses, math
import numpy as np, pytest, torch
from test_ranks import DROPS, Later, table, together
from yolokit.core import environment
from yolokit.network.cfg import Cfg
from yolokit.network.model import Detector
from yolokit.data.augment import Augment
from yolokit.data.loader import Loader
from yolokit.training import compile, distributed, runs, step, train as training_train
from yolokit.training.recipes import Recipe, TrainError
from yolokit.training.runs import Run
from yolokit.training.launcher import TrainingInterrupted
from yolokit.training.train import fit, FitOptions
from yolokit.apps import train as apps_train

SMALL = Recipe(steps=5, bs=4, lr0=.05, lrf=.1, warmup=0, ema=.95, ema_tau=5., every=50., augment=Augment(fliplr=.5))
KINDS = dict(plain=(SMALL, 'off'), sizes=(dataclasses.replace(SMALL, scales=(.67, 1.), nominal=8, steps=3), 'bf16'),
             fp16=(SMALL, 'fp16'),
             virtual=(dataclasses.replace(SMALL, virtual=2, freeze='0'), 'off'))


@pytest.fixture
def traced(monkeypatch): monkeypatch.setattr(compile, 'BACKEND', 'aot_eager')


class Quiet(torch.nn.Module):
    "One more loss, with a parameter of its own."
    def __init__(self): super().__init__(); self.a = torch.nn.Parameter(torch.ones(1))
    def forward(self, t, x, maps, targets): return dict(quiet=1e-3*(self.a*maps[0]).square().mean())

class Listens(Quiet):
    "And an ear at a layer, as a teacher has."
    def attach(self, detector): detector.layers[1].register_forward_hook(lambda m, x, y: None)


def go(folder, name, recipe=SMALL, amp='off', compile=True, stop=None, state=None, extra=None, team=distributed.World(),
       cfg=DROPS, trusted=1):
    "A training of the tiny network, and everything that a checkpoint of it would hold."
    run = team.share(lambda: Run.open(name, folder/'runs') if state else Run.new('tiny', name, folder/'runs', seed=3))
    run.quiet = not team.first
    if state: runs.truncate_csv(run.folder/'steps.csv', state['step'])
    loader = Loader(table(folder), (96, 96), recipe.bs, 3, recipe.augment, workers=0, share=(team.rank, team.world))
    with environment.deterministic(1):
        detector = Detector(Cfg.parse(cfg), ['bright', 'dark'])
        t = step.init_training(detector, recipe, amp=amp, extra=extra, team=team, state=state)
        fit(run, t, loader, None, stop, FitOptions(rows=2, compile=compile, check_every=trusted))
    return run, t, runs.checkpoint_digest(step.checkpoint_state(t))


def starve(monkeypatch):
    "No memory in the backward pass of step 2, once."
    real = step.init_training
    def begin(*a, **kw):
        t = real(*a, **kw)
        def out(g):
            if t.step == 2 and not t.ladder: raise torch.OutOfMemoryError('out of memory. Tried to allocate 2.00 GiB')
        t.detector.layers[0].conv.weight.register_hook(out)
        return t
    monkeypatch.setattr(step, 'init_training', begin)


def rows_of(run): return (run.folder/'steps.csv').read_text()


def resumed(folder, name, looks, **kw):
    "The same, stopped on the way."
    with pytest.raises(TrainingInterrupted): go(folder, name, stop=Later(looks), **kw)
    return go(folder, name, state=runs.load_run_checkpoint(folder/'runs'/name/'checkpoint'), **kw)


@pytest.mark.parametrize('kind', ['sizes', *(pytest.param(k, marks=pytest.mark.soak) for k in KINDS if k != 'sizes')])
def test_twice_and_resumed(root, traced, kind):
    recipe, amp = KINDS[kind]
    a, b = (go(root, f'{kind}{k}', recipe, amp) for k in 'ab')
    c = resumed(root, f'{kind}c', 2, recipe=recipe, amp=amp)
    assert a[2] == b[2] == c[2] and rows_of(a[0]) == rows_of(b[0]) == rows_of(c[0])
    plain = go(root, f'{kind}d', recipe, amp, compile=False)
    loss = [runs.read_csv(r[0].folder/'steps.csv')['box'] for r in (a, plain)]
    np.testing.assert_allclose(*loss, rtol=1e-3)                         # the same training as layer by layer
    assert 'compiled by' in (a[0].folder/'log.txt').read_text() and a[0].info['compiled']


@pytest.mark.soak
def test_more_losses_but_no_ears(root, traced):
    a, plain = go(root, 'more', extra=Quiet()), go(root, 'no-more', extra=Quiet(), compile=False)
    assert a[1].extra.a.item() != 1
    np.testing.assert_allclose(*(runs.read_csv(r[0].folder/'steps.csv')['quiet'] for r in (a, plain)), rtol=1e-3)
    with pytest.raises(TrainError, match='somebody listens to layers.1'): go(root, 'ears', extra=Listens())


def test_the_warm_up_leaves_nothing(root, traced, monkeypatch):
    seen, real = [], training_train.warm_up_compile
    def look(t):
        return (runs.checkpoint_digest(step.checkpoint_state(t)), torch.get_rng_state().tolist(),
                [p.grad is None for p in t.detector.parameters()])
    def warm_up(t, *a): before = look(t); real(t, *a); seen.append((before, look(t)))
    monkeypatch.setattr(training_train, 'warm_up_compile', warm_up)
    go(root, 'warm')
    (before, after), = seen
    assert before == after


def test_a_new_shape_is_an_error_and_all_is_as_it_was(root, traced, monkeypatch):
    from torch._dynamo import config
    limit, real = config.recompile_limit, step.resize_batch
    # not in the warm-up, whose pictures are black
    monkeypatch.setattr(step, 'resize_batch', lambda x, targets,
                        size: (x[..., :64], targets) if x.max() > 0 else real(x, targets, size))
    with pytest.raises(compile.CompileError, match=r'compiled again.*size mismatch.*expected 96, actual 64'):
        go(root, 'odd')
    assert config.recompile_limit == limit
    assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)).tolist() == [2, 2]


def test_a_poisoned_gradient_is_skipped_and_named(root, traced, monkeypatch):
    real, after = step.init_training, []
    def begin(*a, **kw):
        t = real(*a, **kw)
        t.detector.layers[1].conv.weight.register_hook(lambda g: g*math.nan if t.step == 2 else g)
        return t
    monkeypatch.setattr(step, 'init_training', begin)
    run, t, _ = go(root, 'poison')
    assert 'skipped step 2: the gradient of layers.1.conv.weight is not finite' in (run.folder/'log.txt').read_text()
    assert all(v.isfinite().all() for v in t.detector.state_dict().values())


def test_out_of_memory_goes_on_layer_by_layer(root, traced, monkeypatch):
    starve(monkeypatch)
    run, t, _ = go(root, 'starved')
    assert t.step == 5 and 'no longer compiled' in (run.folder/'log.txt').read_text()


def test_no_compiler_is_an_error_before_anything(root, monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    before = sorted((root/'runs').glob('*'))
    with pytest.raises(compile.CompileError, match='no compiler no-such-compiler'):
        apps_train.train(apps_train.TrainConfig(data='squares', network='tiny.cfg', steps=2, bs=4, device='cpu',
                                                compile=True))
    assert sorted((root/'runs').glob('*')) == before


def of_two(team, folder, name):
    compile.BACKEND = 'aot_eager'
    return go(folder, name, dataclasses.replace(SMALL, nominal=8, steps=3), team=team)[2]


@pytest.mark.soak
def test_two_processes(root):
    a, b = together(2, of_two, root, 'two-a'), together(2, of_two, root, 'two-b')
    assert a == b and a[0] == a[1] and len(a[0]) == 64, a


@pytest.mark.soak
@pytest.mark.parametrize('kind', ['plain', 'sizes', 'virtual'])
def test_machine_code_twice_and_resumed(root, kind, monkeypatch):
    "The real compiler."
    monkeypatch.setattr(compile, 'BACKEND', 'inductor')
    recipe, amp = KINDS[kind]
    a, b = (go(root, f'real-{kind}{k}', recipe, amp) for k in 'ab')
    c = resumed(root, f'real-{kind}c', 2, recipe=recipe, amp=amp)
    assert a[2] == b[2] == c[2] and rows_of(a[0]) == rows_of(b[0]) == rows_of(c[0])
