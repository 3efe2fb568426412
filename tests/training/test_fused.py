"""Training with BatchNorm and activation as one program: the same bits twice, resumed and in several processes; a
teacher may listen, memory may run out."""
import dataclasses, shutil
import numpy as np, pytest, torch
from test_compile import KINDS, SMALL, Listens, go, resumed, rows_of, starve
from small import unjudged
from test_ranks import together
from yolokit.network import model
from yolokit.training import compile, runs
from yolokit.apps import train

HERE = compile.find_compiler(torch.device('cpu'))
pytestmark = pytest.mark.skipif(not shutil.which(HERE), reason=f'no compiler {HERE}')


@pytest.fixture
def counted(monkeypatch):
    "How often the program was called."
    calls, real = [], compile._call_library
    monkeypatch.setattr(compile, '_call_library', lambda lib, name, *a: (calls.append(name), real(lib, name, *a))[1])
    return calls


@pytest.mark.parametrize('kind', ['sizes', *(pytest.param(k, marks=pytest.mark.soak) for k in KINDS if k != 'sizes')])
def test_twice_resumed_and_as_layer_by_layer(root, counted, kind):
    recipe, amp = KINDS[kind]
    a, b = (go(root, f'{kind}{k}', recipe, amp) for k in 'ab')
    assert counted.count('backward') == counted.count('forward') > 0 or amp == 'fp16'   # which has no program
    c = resumed(root, f'{kind}c', 2, recipe=recipe, amp=amp)
    assert a[2] == b[2] == c[2] and rows_of(a[0]) == rows_of(b[0]) == rows_of(c[0])
    n = len(counted)
    plain = go(root, f'{kind}d', recipe, amp, compile=False)
    assert len(counted) == n
    np.testing.assert_allclose(*(runs.read_csv(r[0].folder/'steps.csv')['box'] for r in (a, plain)), rtol=2e-3)
    assert ('compiled by' in (a[0].folder/'log.txt').read_text() and 'program' in a[0].info['compiled']
            and not plain[0].info.get('compiled'))


def test_a_teacher_may_listen_and_nothing_is_left(root, counted):
    t = go(root, 'ears', extra=Listens())[1]
    assert counted and t.step == SMALL.steps and not any('forward' in vars(m) for m in t.detector.modules())


def test_out_of_memory_recomputes_with_the_same_result(root, counted, monkeypatch):
    free = go(root, 'free')
    starve(monkeypatch)
    run, t, _ = go(root, 'starved')
    assert t.ladder == [(2, 1)] and 'no longer compiled' not in (run.folder/'log.txt').read_text()
    assert rows_of(run) == rows_of(free[0]) and model.state_hash(t.detector) == model.state_hash(free[1].detector)


def in_parts(team, folder, name):
    return go(folder, name, dataclasses.replace(SMALL, virtual=2, steps=3), 'bf16', team=team)[2]


@pytest.mark.soak
def test_one_process_or_two(root):
    assert len({*together(1, in_parts, root, 'one'), *together(2, in_parts, root, 'two')}) == 1


def test_a_stage(root, monkeypatch):
    unjudged(monkeypatch)
    run = train.train(train.TrainConfig(stage='baseline', data='squares', network='tiny.cfg', weights='none', steps=4,
                                        bs=4, workers=0, threads=1, device='cpu', compile=True))
    assert run.info['config']['compile'] and 'program' in run.info['compiled'] and run.info['state'] == 'finished'


def test_a_compiler_that_cannot_is_an_error(tmp_path):
    (bad := tmp_path/'g++').write_text('#!/bin/sh\necho "x.cpp:1: error: what is this" >&2; exit 1\n')
    bad.chmod(0o755)
    with pytest.raises(compile.CompileError, match='does not take the program: x.cpp:1: error: what is this. Leave '
                                                   'compile=False'):
        compile._compile_library(str(bad))


@pytest.mark.soak
def test_any_processor():
    "Without AVX-512 the same numbers to rounding."
    g = torch.Generator().manual_seed(0)
    for t, tol in ((torch.float32, 2e-6), (torch.bfloat16, 5e-3)):
        x, dz = ((torch.randn(4, 24, 12, 12, generator=g)*3 + 5).to(t) for _ in 'xz')
        for kind in sorted(set(compile._FUSED_ACTIVATIONS.values())):
            got = []
            for flags in (compile.FLAGS, compile.FLAGS.replace('-march=native', '')):
                xs = x.clone().requires_grad_()
                ones, zeros, lib = torch.ones(24), torch.zeros(24), compile._compile_library(HERE, flags)
                z = compile._BatchNormAct.apply(xs, ones, zeros, torch.zeros(24), torch.ones(24), .1, 1e-5, kind, lib)
                z.backward(dz)
                got.append((z.detach().double(), xs.grad.double()))
            for a, b in zip(*got): assert (a - b).norm() < tol*b.norm(), (t, kind)
