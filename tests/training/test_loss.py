"The loss where chapters do not look: half precision, compiling, order, both kinds of real heads."
from types import SimpleNamespace
import numpy as np, pytest, torch
from yolokit.network.model import decode, Detector
from yolokit.network.zoo import build
from yolokit.training.loss import assign_targets, ciou, Loss, LossGains

ANCHORS = {8: [(10, 13), (16, 30), (33, 23)], 16: [(30, 61), (62, 45), (59, 119)],
           32: [(116, 90), (156, 198), (373, 326)]}

@pytest.fixture(autouse=True)
def one_thread():
    "Small tensors: a second thread only waits for the first."
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

def head(stride, new=True, nc=4):
    return SimpleNamespace(stride=stride, anchors=np.array(ANCHORS[stride], float), nc=nc, new_coords=new, scale_x_y=2.
                           if new else 1.1, logistic=new, softmax=False, kind='yolo', box=4)

def random_maps(heads, B=3, w=192, h=128, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(B, 3*(5 + d.nc), h//d.stride, w//d.stride, generator=g, dtype=dtype) for d in heads]

def random_targets(B=3, M=10, nc=4, w=192, h=128, seed=0):
    u = torch.rand(B, M, 5, generator=torch.Generator().manual_seed(seed))
    t = torch.stack([(u[..., 0]*nc).floor(), u[..., 1]*w, u[..., 2]*h, 5 + u[..., 3]**2*w/2, 5 + u[..., 4]**2*h/2], -1)
    t[:, -2:] = torch.tensor([-1., 0, 0, 0, 0])
    return t

def test_the_order_of_the_heads_does_not_matter():
    heads, t = [head(s) for s in (8, 16, 32)], random_targets()
    maps = random_maps(heads)
    a = Loss(SimpleNamespace(heads=heads))(maps, t)[0]
    b = Loss(SimpleNamespace(heads=heads[::-1]))(maps[::-1], t)[0]
    assert torch.allclose(a, b, rtol=1e-6)

@pytest.mark.parametrize('new', [False, True])
def test_half_precision_maps_are_computed_in_float32(new):
    heads, t = [head(s, new) for s in (8, 16, 32)], random_targets()
    half, loss = [m.bfloat16() for m in random_maps(heads)], Loss(SimpleNamespace(heads=heads))
    with torch.autocast('cpu', torch.bfloat16): got = loss(half, t)[0]
    assert got.dtype == torch.float32 and got.item() == loss([m.float() for m in half], t)[0].item()

@pytest.mark.parametrize('new', [False, True])
def test_float32_is_close_to_float64(new):
    heads, t = [head(s, new) for s in (8, 16, 32)], random_targets()
    loss, m = Loss(SimpleNamespace(heads=heads)), random_maps(heads, dtype=torch.float64)
    assert abs(loss([x.float() for x in m], t)[0].item()/loss(m, t)[0].item() - 1) < 1e-5

def test_compiles_in_one_piece():
    "A full graph: no boolean index, no .item(), nothing that waits for the device."
    heads, t = [head(16), head(32, False)], random_targets()
    loss, maps = Loss(SimpleNamespace(heads=heads)), random_maps(heads)
    seen = []
    def count(gm, _): seen.append(gm); return gm.forward
    fast = torch.compile(loss, fullgraph=True, backend=count)
    assert torch.equal(fast(maps, t)[0], loss(maps, t)[0])
    for seed in range(3): fast(maps, random_targets(seed=seed))
    fast(maps, torch.full((3, 10, 5), -1.))
    assert len(seen) == 1                               # other boxes, other counts, no box: the same code
    torch._dynamo.reset()

def test_no_box_at_all_and_a_wild_start_stay_finite():
    for new in (False, True):
        heads = [head(s, new) for s in (8, 16, 32)]
        loss = Loss(SimpleNamespace(heads=heads))
        for t in (torch.full((3, 1, 5), -1.), torch.zeros(3, 0, 5), random_targets()):
            maps = [(m*60).requires_grad_() for m in random_maps(heads)]
            total, parts = loss(maps, t)
            total.backward()
            assert total.isfinite() and all(v.isfinite() and not v.requires_grad for v in parts.values())
            assert all(m.grad.isfinite().all() for m in maps)

def test_two_boxes_one_cell_whatever_the_order():
    d = head(16)
    loss, m = Loss(SimpleNamespace(heads=[d])), random_maps([d], B=1)
    t = torch.tensor([[[0., 70, 70, 40, 50], [1, 72, 71, 42, 50], [2, 71, 72, 60, 45]]])
    got = {round(loss(m, t[:, list(p)])[1]['obj'].item(), 7) for p in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1))}
    assert len(got) == 1

def test_two_backward_passes_give_the_same_bits():
    heads, t = [head(s) for s in (8, 16, 32)], random_targets(M=40)
    grads = []
    for _ in range(2):
        maps = [m.requires_grad_() for m in random_maps(heads)]
        Loss(SimpleNamespace(heads=heads))(maps, t)[0].backward()
        grads.append([m.grad.clone() for m in maps])
    assert all(torch.equal(a, b) for a, b in zip(*grads))

def test_an_answering_cell_can_reach_the_centre():
    g = torch.Generator().manual_seed(1)
    xywh = torch.cat([torch.rand(1, 5000, 2, generator=g)*torch.tensor([12., 8]), torch.ones(1, 5000, 2)], -1)
    there = torch.ones(1, 5000, dtype=torch.bool)
    for near, low, high in ((True, -.5, 1.5), (False, 0, 1)):
        cells, mask = assign_targets(xywh, there, torch.ones(1, 2), 12, 8, 4., near)
        off = (xywh[:, :, None, :2] - cells)[mask[:, 0]]
        assert off.min() >= low and off.max() <= high
        assert mask[:, 0].sum(-1).max() <= 3 and mask[:, 0, :, 0].all()

def test_a_stricter_anchor_t_matches_less():
    d, t = head(16), random_targets()
    n = [assign_targets(t[..., 1:]/16, t[..., 0] >= 0, torch.tensor(d.anchors/16, dtype=torch.float32), 12, 8,
                        at)[1].sum().item() for at in (1.2, 2.91, 4., 100.)]
    assert n == sorted(n) and n[0] < n[-1]

def test_the_classes_of_one_class_cost_nothing():
    d = head(16, nc=1)
    assert Loss(SimpleNamespace(heads=[d]))(random_maps([d]), random_targets(nc=1))[1]['cls'] == 0

def test_a_real_network_learns_one_picture():
    "Fifteen steps on one image: the loss falls by half, and the best row is the box."
    d = Detector(build('yolokit-nano', 3).with_size(96, 96)).train()
    x = torch.zeros(2, 3, 96, 96); x[:, 0, 30:70, 20:60] = 1
    t = torch.tensor([[[1., 40, 50, 40, 40], [-1, 0, 0, 0, 0]]]*2)
    loss, opt = Loss(d, LossGains(box=.5)), torch.optim.Adam(d.parameters(), lr=3e-3)
    totals = []
    for _ in range(15):
        maps = d(x, logits=True)
        total, _ = loss(maps, t)
        opt.zero_grad(); total.backward(); opt.step()
        totals.append(total.item())
    assert totals[-1] < .5*totals[0]
    rows = torch.cat([decode(m.detach(), h, logits=True) for m, h in zip(maps, d.heads)], 1)[0]
    best = rows[rows[:, 4].argmax()]
    assert best[5:].argmax() == 1 and ciou(best[:4], t[0, 0, 1:]) > .3
