"The recipes of the challenges, number by number, restated here from what their authors wrote."
import pytest
from yolokit.network import zoo
from yolokit.training.recipes import (RECIPES, accumulation, compat_flags, lr_and_momentum,
                                      multiscale_sizes, total_steps, TrainError)

# names as the originals have them -> where the number is here
HYPS = dict(lr0='lr0', lrf='lrf', momentum='momentum', weight_decay='weight_decay', warmup_epochs='warmup',
            warmup_momentum='warmup_momentum', warmup_bias_lr='warmup_bias_lr',
            box='gains.box', cls='gains.cls', cls_pw='gains.cls_pw', obj='gains.obj', obj_pw='gains.obj_pw',
            anchor_t='gains.anchor_t',
            **{k: f'augment.{k}' for k in 'hsv_h hsv_s hsv_v degrees translate scale shear perspective flipud fliplr '
                                          'mosaic mixup copy_paste'.split()})
# focal loss (gamma 0) and iou_t, which that loss never reads, have no place here
AGC = dict(lr0=.01, lrf=.2, momentum=.937, weight_decay=.0005, warmup_epochs=3, warmup_momentum=.8, warmup_bias_lr=.1,
           box=.05, cls=.5, cls_pw=1, obj=1, obj_pw=1, anchor_t=4,
           hsv_h=.015, hsv_s=.7, hsv_v=.4, degrees=0, translate=.5, scale=.5, shear=0, perspective=0, flipud=0,
           fliplr=.5, mosaic=1, mixup=0, copy_paste=0)
LOW = AGC | dict(lrf=.01, translate=.1)
MED = LOW | dict(lrf=.1, cls=.3, obj=.7, scale=.9, mixup=.1)
VOC = LOW | dict(lr0=.0032, lrf=.12, momentum=.843, weight_decay=.00036, warmup_epochs=2, warmup_momentum=.5,
                 warmup_bias_lr=.05, box=.0296, cls=.243, cls_pw=.631,
                 obj=.301, obj_pw=.911, anchor_t=2.91, hsv_h=0, hsv_s=0, hsv_v=.4, scale=.9, mixup=0)
WHOLE = {'agc2021-scratch': AGC, 'agc2021-finetune': AGC | dict(scale=.8, mixup=.2), 'parking-baseline': LOW,
         'parking-finetune': VOC, 'v5-low': LOW, 'v5-med': MED, 'v5-high': MED | dict(copy_paste=.1)}
REST = {'agc2021-scratch': dict(schedule='cosine', alias='agc2021', epochs=300, nominal=64),
        'agc2021-finetune': dict(schedule='cosine', alias='agc2021', epochs=150, nominal=64),
        'parking-baseline': dict(epochs=50, parts=15, bs=2, nominal=64, image_weights=True, schedule='linear',
                                 stairs=True, warmup_floor=100, ema=.9999, ema_tau=2000, optimizer='sgd'),
        'parking-finetune': dict(epochs=15, parts=15, bs=2, nominal=64, image_weights=False, schedule='linear',
                                 stairs=True, warmup_floor=100, ema=.9999, ema_tau=2000, optimizer='sgd'),
        'v5-low': dict(nominal=64, warmup_floor=1000, stairs=True), 'v5-med': dict(nominal=64, warmup_floor=1000),
        'amp': dict(schedule='restarts', stairs=False)}


def value(recipe, path):
    for k in path.split('.'): recipe = getattr(recipe, k)
    return recipe


@pytest.mark.parametrize('name', WHOLE)
def test_every_hyperparameter(name):
    assert {k: value(RECIPES[name], HYPS[k]) for k in HYPS} == pytest.approx(WHOLE[name])
    assert WHOLE[name].keys() == HYPS.keys()


@pytest.mark.parametrize('name', REST)
def test_the_rest(name): assert {k: getattr(RECIPES[name], k) for k in REST[name]} == REST[name]


def test_lineages():
    assert {k: r.gains.lineage for k, r in RECIPES.items() if r.gains.lineage != 'v5'} == {'agc2021-scratch': 'yolor',
                                                                                           'agc2021-finetune': 'yolor'}


def test_first_weights_are_those_of_the_lineage():
    "Each recipe names who draws them; a run that was begun before there was a choice goes on with the old ones."
    from dataclasses import asdict
    from types import SimpleNamespace
    from yolokit.apps.train import _stored_recipe
    other = {'agc2021-scratch': 'yolor', 'agc2021-finetune': 'yolor', 'darknet-yolov4': 'darknet'}
    assert {k: r.init for k, r in RECIPES.items()} == {k: other.get(k, 'v5') for k in RECIPES}
    old = asdict(RECIPES['baseline'])
    for k in ('init', 'sync_bn', 'bpr_floor'): del old[k]
    def stored(recipe): return _stored_recipe(SimpleNamespace(info=dict(recipe=recipe), name='old', say=print))
    assert stored(old).init == 'he' and stored(asdict(RECIPES['baseline'])).init == 'v5'


def test_darknet_against_its_cfg():
    "The recipe's rates are Darknet's at every turn, and its numbers those of yolov4.cfg."
    net, r = zoo.load_cfg('yolov4', 80).net, RECIPES['darknet-yolov4']
    number = lambda k: float(net[k])
    assert (r.steps, r.nominal, r.lr0, r.momentum,
            r.weight_decay) == tuple(number(k) for k in ('max_batches', 'batch', 'learning_rate', 'momentum', 'decay'))
    assert (1 + r.augment.hsv_s, 1 + r.augment.hsv_v, r.augment.hsv_h, r.augment.degrees,
            r.augment.mosaic) == tuple(number(k) for k in ('saturation', 'exposure', 'hue', 'angle', 'mosaic'))
    assert r.warmup_floor/accumulation(r) == number('burn_in') and r.optimizer == 'heavy' and not r.clip
    turns, scales = ([float(v) for v in net[k].split(',')] for k in ('steps', 'scales'))
    for i in (0, 1, 500, 998, 999, 1000, 200_000, *(int(t) + d for t in turns for d in (-2, -1, 0, 1)), 500_499):
        seen = i + 1                                       # Darknet counts a batch before it makes the step
        want = number('learning_rate')*((seen/number('burn_in'))**4 if seen < number('burn_in') else 1)
        for t, s in zip(turns, scales): want *= s if seen >= t else 1
        assert lr_and_momentum(r, i, 14786)[0] == pytest.approx(dict.fromkeys(('bias', 'weight', 'norm'), want),
                                                                rel=1e-9), i


def test_every_recipe_says_what_it_is():
    own = ('baseline', 'finetune', 'scratch', 'transfer', 'amp')
    for name, r in RECIPES.items():
        v5 = name.startswith(('v5', 'parking'))
        assert r.note and r.source and compat_flags(r) == ({'ramp'} if v5 else set()), name
        assert name in own or 'Cost: ' in r.note and 'Not run here' in r.note, name


def simulated(nb, epochs, bs, nominal, warm):
    "YOLOv5's loop as recipes.md tells it: batches that count in each step."
    steps, held, last = [], [], -1
    for epoch in range(epochs):
        held = []                                       # zero_grad at the epoch's start
        for i in range(nb):
            ni = i + nb*epoch
            enough = max(1, round(1 + (nominal/bs - 1)*ni/warm)) if ni <= warm else max(round(nominal/bs), 1)
            held.append(ni)
            if ni - last >= enough: steps.append(held); held, last = [], ni
    return steps


@pytest.mark.parametrize('nb, bs, warm', [(7, 16, 20), (10, 24, 13), (13, 2, 100), (3, 16, 5), (9, 64, 6)])
def test_ramp_and_dropped_sums_are_those_of_the_original_loop(nb, bs, warm):
    from dataclasses import replace
    from yolokit.training.recipes import batches_of_step
    r = replace(RECIPES['parking-baseline'], bs=bs, warmup=0, warmup_floor=warm, epochs=12,
                compat='ramp, drop-accumulation')
    want = simulated(nb, 12, bs, 64, warm)
    assert [list(range(*batches_of_step(r, s, nb)[1:])) for s in range(len(want))] == want
    assert total_steps(r, nb) == len(want)


def rates_of_v61(nb, epochs, bs, nominal, hyp, floor):
    """What YOLOv5 v6.1's train.py sets before each of its steps, written from its text: weight, bias, momentum.
    Its scheduler begins at epoch -1, so that after the warm-up an epoch has the rate of the one before."""
    lf = lambda e: (1 - e/epochs)*(1 - hyp['lrf']) + hyp['lrf']
    warm, last, need, out = max(round(hyp['warmup_epochs']*nb), floor), -1, max(round(nominal/bs), 1), []
    between = lambda ni, a, b: a + (b - a)*ni/warm
    for epoch in range(epochs):
        if epoch: weight = bias = hyp['lr0']*lf(epoch - 1)
        for ni in range(epoch*nb, epoch*nb + nb):
            if ni <= warm:
                need = max(1, round(between(ni, 1, nominal/bs)))
                weight, bias = (between(ni, a, hyp['lr0']*lf(epoch)) for a in (0, hyp['warmup_bias_lr']))
                momentum = between(ni, hyp['warmup_momentum'], hyp['momentum'])
            if ni - last >= need: out.append((weight, bias, momentum)); last = ni
    return out


# batches an epoch, epochs, batch, nominal batch, floor of the warm-up; steps that v6.1's own train.py made
V61 = [(300, 6, 16, 64, 1000, 686), (721, 4, 2, 64, 100, 269), (26, 16, 8, 8, 78, 416), (50, 9, 24, 64, 1000, 375),
       (101, 5, 64, 64, 10, 505)]


@pytest.mark.parametrize('nb, epochs, bs, nominal, floor, steps', V61)
def test_rates_steps_and_momentum_are_v61s(nb, epochs, bs, nominal, floor, steps):
    "At every step, to 1e-12; `python bench/parity.py YOLOV5 --only schedule` asks v6.1's own train.py the same."
    from dataclasses import replace
    r = replace(RECIPES['v5-low'], epochs=epochs, bs=bs, nominal=nominal, warmup_floor=floor)
    want = rates_of_v61(nb, epochs, bs, nominal, LOW, floor)
    assert total_steps(r, nb) == len(want) == steps
    for s, (weight, bias, momentum) in enumerate(want):
        rates, m = lr_and_momentum(r, s, nb)
        assert (rates['weight'], rates['norm'], rates['bias'], m) == pytest.approx((weight, weight, bias, momentum),
                                                                                   abs=1e-12), s


def test_shapes_are_few_and_fit():
    from dataclasses import replace
    r = replace(RECIPES['v5-low'], scales=(.5, .75, 1., 1.25, 1.5))
    for stride, size in ((32, (640, 640)), (64, (1280, 1280)), (32, (416, 256))):
        got = multiscale_sizes(r, size, stride)
        assert size in got and len(got) <= 6 and all(v % stride == 0 for s in got for v in s)
    with pytest.raises(TrainError, match='6 at most'):
        multiscale_sizes(replace(r, scales=tuple(k/10 for k in range(5, 16))), (1280, 1280), 64)
