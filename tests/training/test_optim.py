"optim: rates are functions of the iteration, resume is exact, the average is the formula's."
import math, random
import numpy as np, pytest, torch
from torch import nn
from yolokit.training import optim


@pytest.fixture(autouse=True)
def one_thread():
    "Tensors of a few numbers: threads only get in each other's way."
    n = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 1))


def test_rates_equal_the_published_recipe():
    "YOLOv5's warm-up and linear schedule, written down again with numpy."
    rnd = random.Random(0)
    for _ in range(300):
        nb, E, lr0, lrf = rnd.randint(1, 300), rnd.randint(1, 100), rnd.uniform(.001, .1), rnd.uniform(.01, 1)
        nw, ni = rnd.randint(0, 1500), rnd.randint(0, nb * E - 1)
        lr = lr0 * ((1 - (ni // nb) / E) * (1 - lrf) + lrf)
        lrs, m = optim.lr_at(ni, nb, E, lr0, lrf, warmup=nw, stairs=True)
        ramp = lambda a, b: np.interp(ni, [0, nw], [a, b]) if ni < nw else b
        assert np.allclose([lrs['bias'], lrs['weight'], lrs['norm'], m],
                           [ramp(.1, lr), ramp(0, lr), ramp(0, lr), ramp(.8, .937)], rtol=1e-12)


@pytest.mark.parametrize('name', optim.SCHEDULES)
def test_schedules_stay_between_their_ends(name):
    f = optim.SCHEDULES[name]
    y = [f(e, 7.5, .05) for e in np.linspace(0, 7.5, 50)]
    assert min(y) >= .04 - 1e-12 and max(y) <= 1 + 1e-12
    # at the very end it begins again, as torch's
    if name == 'restarts': assert math.isclose(f(7.5 - 1e-9, 7.5, .05), .05) and y[-1] == 1
    elif name not in ('constant', 'plateau'): assert math.isclose(y[-1], .05)


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="schedule 'warm': choose one of linear"): optim.lr_at(0, 1, 1, schedule='warm')


def run(m, opt, its, kw):
    for i in its:
        optim.set_lr(opt, *optim.lr_at(i, **kw))
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(i))
        opt.zero_grad(); m(x).square().mean().backward(); opt.step()


@pytest.mark.parametrize('kind', ['sgd', 'adam', 'adamw'])
def test_resume_is_exact(kind):
    kw = dict(per_epoch=4, epochs=5, warmup=6, schedule='cosine')
    a = model(); oa = optim.make_optimizer(optim.param_groups(a), kind); run(a, oa, range(20), kw)
    b = model(); ob = optim.make_optimizer(optim.param_groups(b), kind); run(b, ob, range(9), kw)
    c = model(1); oc = optim.make_optimizer(optim.param_groups(c), kind, lr0=123.)
    c.load_state_dict(b.state_dict()); oc.load_state_dict(ob.state_dict()); run(c, oc, range(9, 20), kw)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), c.state_dict().values()))


def test_average_is_the_formula():
    m = model().double(); e = optim.EMA(m, .999, 50)
    want = {k: v.clone() for k, v in m.state_dict().items() if v.is_floating_point()}
    for k in range(1, 30):
        with torch.no_grad():
            for p in m.parameters(): p.add_(torch.randn_like(p))
            m[1].running_mean += k
        e.update(m)
        d = .999 * (1 - math.exp(-k / 50))
        for n, v in want.items(): v.mul_(d).add_(m.state_dict()[n], alpha=1 - d)
    got = e.model.state_dict()
    assert max((got[n] - v).abs().max() for n, v in want.items()) < 1e-12
    f = optim.EMA(model(3).double()); f.load_state(e.state_dict())
    assert f.updates == 29 and all(torch.equal(a, b) for a, b in zip(f.model.state_dict().values(), got.values()))


def test_average_of_a_compiled_model_has_plain_names():
    class OptimizedModule(nn.Module):  # what torch.compile returns, without its five seconds of imports
        def __init__(self, m): super().__init__(); self._orig_mod = m
    m = model()
    wrapped = OptimizedModule(m)
    assert list(wrapped.state_dict())[0] == '_orig_mod.0.weight'
    e = optim.EMA(wrapped); e.update(wrapped)
    assert list(e.state_dict()['model']) == list(m.state_dict())


def test_groups_leave_out_what_is_frozen_and_count_shared_once():
    m = model(); m[0].weight.requires_grad_(False); m.append(m[3])
    assert {k: len(v) for k, v in optim.param_groups(m).items()} == dict(bias=2, weight=1, norm=1)


def test_decay_keeps_an_image_s_pull():
    for bs in (1, 3, 7, 16, 48, 64, 100, 256):
        assert math.isclose(optim.scaled_weight_decay(bs, 1e-3) * 64, 1e-3 * bs * optim.accumulation_steps(bs))
