"A teacher through the whole chain: named, recorded, resumed, refused."
import math
import pytest, torch
from small import checkout, unjudged
from yolokit.network.model import Detector
from yolokit.network.checkpoints import load_checkpoint
from yolokit.training import launcher, runs
from yolokit.training.recipes import TrainError
from yolokit.training.train import save_detector
from yolokit.compression import distill
from yolokit.compression.prune import prune
from yolokit.apps.config import ConfigError
from yolokit.apps.train import train, TrainConfig

C = dict(data='squares', network='tiny.cfg', stage='baseline', weights='none', bs=4, steps=4, workers=0, threads=1,
         device='cpu', amp='off')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = checkout(tmp_path_factory.mktemp('checkout'), 8)
    with pytest.MonkeyPatch.context() as m:
        m.setenv('YOLOKIT_ROOT', str(folder))
        yield folder


@pytest.fixture(scope='module')
def parent(root):
    with pytest.MonkeyPatch.context() as m:
        unjudged(m, lambda *a, **kw: lambda d: dict(AP=.5, AP50=.5))
        return train(TrainConfig(**C, name='parent'))


@pytest.fixture(autouse=True)
def quick(monkeypatch): unjudged(monkeypatch)


def taught(name, **kw): return train(TrainConfig(**C | kw, name=name, teacher='parent'))


def test_teacher_is_recorded_and_its_losses_are_logged_and_bits_come_again(parent):
    a, b = taught('a'), taught('b')
    t = a.info['teacher']
    assert t['file'] == 'runs/parent/weights/best.pt' and len(t['sha256']) == 64 and t['numbers']['answers'] > 0
    rows = runs.read_csv(a.folder/'steps.csv')
    assert {'t_box', 't_obj', 't_cls', 't_look'} <= set(rows) and all(math.isfinite(rows[k][-1]) for k in rows)
    assert a.info['weights_sha256'] == b.info['weights_sha256'] != parent.info['weights_sha256']
    assert (set(load_checkpoint(a.folder/'weights/best.pt').state_dict())
            == set(load_checkpoint(parent.folder/'weights/best.pt').state_dict()))


def test_a_run_goes_on_with_the_teacher_that_it_had_and_with_no_other(parent, monkeypatch):
    whole = taught('whole')
    cut = lambda *a, **kw: (_ for _ in ()).throw(launcher.TrainingInterrupted('cut'))
    with monkeypatch.context() as m:
        m.setattr('yolokit.training.train._validate', cut)
        with pytest.raises(launcher.TrainingInterrupted): taught('cut')
    again = train(TrainConfig(resume='cut'))
    assert again.info['weights_sha256'] == whole.info['weights_sha256']
    with monkeypatch.context() as m:
        m.setattr('yolokit.training.train._validate', cut)
        with pytest.raises(launcher.TrainingInterrupted): taught('other')
    best = parent.folder/'weights/best.pt'
    was = best.read_bytes()
    try:
        save_detector(best, load_checkpoint(best), note='another')
        with pytest.raises(distill.DistillError, match='its teacher .* is not what it was'):
            train(TrainConfig(resume='other'))
    finally: best.write_bytes(was)


def test_pruned_channels_are_recognised(parent):
    d = load_checkpoint(parent.folder/'weights/best.pt').eval()
    small = prune(d, .6, 'params', multiple=4, least=4)
    rows = distill.channel_map(small, d)
    gamma = lambda x, i: x.layers[i].bn.weight
    assert len(rows) == 3 and any(len(r) < len(gamma(d, i)) for i, r in rows.items())
    for i, r in rows.items(): assert torch.equal(gamma(small, i), gamma(d, i)[r])
    # a network of the same shape that was never part of it
    assert all((r < 0).all() for r in distill.channel_map(Detector(small.cfg, small.names, 5), d).values())


def test_half_precision_agrees_with_float(parent):
    from types import SimpleNamespace
    d = load_checkpoint(parent.folder/'weights/best.pt')
    x, out = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)), []
    for amp in 'off', 'bf16':
        s = prune(d, .6, 'params', multiple=4, least=4).train()
        e = distill.DistillationLoss(s, load_checkpoint(parent.folder/'weights/best.pt'))
        e.attach(s)
        out.append(e(SimpleNamespace(dev=torch.device('cpu'), amp=amp,
                                     optimizer=SimpleNamespace(param_groups=[dict(name='weight', lr=.01)])), x,
                     s(x, logits=True)))
    for k in out[0]: assert out[1][k].item() == pytest.approx(out[0][k].item(), rel=.1, abs=1e-3), k


def test_sparsity_is_a_number_of_the_recipe(parent):
    "Alone and beside a teacher, through the train notebook's own parameters."
    pushed = train(TrainConfig(**C, name='pushed', change='sparsity=l1 10'))
    both = taught('both', change='sparsity=polarised 10')
    assert (runs.read_csv(pushed.folder/'steps.csv')['sparsity'][-1] > 0
            and {'t_obj', 'sparsity'} <= set(runs.read_csv(both.folder/'steps.csv')))
    gamma = lambda run: torch.cat([w.detach().abs() for w in distill.batchnorm_scales(
        load_checkpoint(run.folder/'weights/best.pt')).values()]).mean()
    assert gamma(pushed) < gamma(parent)
    with pytest.raises(TrainError, match='say l1 or polarised'): train(TrainConfig(**C, change='sparsity=l2'))


def test_wrong_teachers_are_told_before_anything_is_done(root):
    with pytest.raises(ConfigError, match='teacher=nobody: there is no run of that name'):
        train(TrainConfig(**C, teacher='nobody'))
