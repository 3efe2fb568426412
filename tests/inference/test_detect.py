"Detection: suppression against a plain loop, geometry against a detector that cannot be wrong, broken files."
import subprocess
import sys
import numpy as np
import pytest
import torch
from torch import nn
from yolokit.core import boxes, rng
from yolokit.core.images import write_image
from yolokit.network import pretrained, weights
from yolokit.network.model import Detector
from yolokit.network.zoo import build
from yolokit.data.table import Table
from yolokit.inference import detect, nms


def plain(pred, conf, iou, max_det, multi_label, agnostic, top):
    "Greedy suppression, one box at a time, in the order the words say."
    p = pred.numpy()
    pairs = [(i, c) for i in range(len(p)) for c in (range(p.shape[1] - 5) if multi_label
                                                     else [int(p[i, 5:].argmax())])]
    scored = [(float(p[i, 4]*p[i, 5+c]), i, c) for i, c in pairs if p[i, 4]*p[i, 5+c] > np.float32(conf)]
    scored.sort(key=lambda s: -s[0])                 # stable: ties by row, then class
    xyxy, stay = boxes.cxcywh2xyxy(p[:, :4].astype(float)), []
    for s, i, c in scored[:top]:
        if all(boxes.box_iou(xyxy[[i]], xyxy[[j]])[0, 0] <= iou for _, j, k in stay if agnostic or k == c):
            stay.append((s, i, c))
        if len(stay) == max_det: break
    return np.array([[*xyxy[i], s, c] for s, i, c in stay], np.float32).reshape(-1, 6)


def case(seed):
    "Half the cases on a coarse grid with scores of one decimal, where everything ties; half anywhere."
    r = rng.rng(seed)
    n, nc = int(r.integers(0, 50)), int(r.integers(1, 4))
    if seed % 2: xy, wh, cls = r.integers(2, 8, (n, 2))*4, r.integers(1, 4, (n, 2))*8, r.integers(0, 11, (n, nc))/10
    else: xy, wh, cls = r.uniform(0, 40, (n, 2)), r.uniform(1, 30, (n, 2)), r.random((n, nc))
    obj = r.choice([1, .5], (n, 1)) if seed % 2 else r.random((n, 1))
    kw = dict(conf=.15, iou=float(r.choice([.25, .5, .6])), max_det=int(r.choice([3, 8, 300])),
              multi_label=bool(r.integers(2)),
              agnostic=bool(r.integers(2)), top=int(r.choice([10, 30_000])))
    return torch.tensor(np.hstack([xy, wh, obj, cls]).astype(np.float32)), kw


def agree(seeds):
    for seed in seeds:
        p, kw = case(seed)
        got, want = nms.nms(p[None], **kw)[0].numpy(), plain(p, **kw)
        assert got.shape == want.shape and np.array_equal(got, want), (seed, kw)


def test_nms_is_the_plain_loop(): agree(range(250))

@pytest.mark.soak
def test_nms_is_the_plain_loop_long(): agree(range(1000, 13_000))


def test_nms_of_a_batch_is_nms_of_each_image():
    p = torch.tensor(np.random.default_rng(0).random((3, 200, 8), np.float32))*torch.tensor([90., 90, 30, 30, 1, 1, 1,
                                                                                             1])
    together, alone = nms.nms(p, .1), [nms.nms(q[None], .1)[0] for q in p]
    assert all(torch.equal(a, b) for a, b in zip(together, alone))


def test_nms_says_what_it_left_out():
    p = torch.tensor([[10.*i, 10, 5, 5, .9, .9] for i in range(50)])
    k = nms.nms(p[None], top=20, max_det=5)
    assert (k.over_top, k.undecided, len(k[0])) == ([30], [15], 5)
    with pytest.raises(ValueError, match='NaN'): nms.nms(torch.full((1, 3, 6), float('nan')))


class Finder(nn.Module):
    "Answers with the box around all red pixels: right by construction, so what is wrong is the geometry."
    def __init__(self):
        super().__init__()
        self.p, self.names, self.size = nn.Parameter(torch.zeros(1)), ['빨강'], (160, 96)
    def forward(self, x): return [(x[:, 0] > .8) & (x[:, 1] < .3)]
    def decode(self, maps):
        out = torch.zeros(len(maps[0]), 1, 6)
        for k, m in enumerate(maps[0].bool()):
            y, x = m.nonzero().unbind(1)
            x0, x1, y0, y1 = x.min(), x.max() + 1, y.min(), y.max() + 1
            out[k, 0] = torch.tensor([(x0 + x1)/2, (y0 + y1)/2, x1 - x0, y1 - y0, .9, 1.])
        return out


@pytest.fixture
def shots(tmp_path):
    "Images of odd sizes with one red rectangle each, Korean names."
    r, truth = np.random.default_rng(1), {}
    for i, (w, h) in enumerate([(320, 192), (111, 203), (640, 90), (57, 57), (90, 640)]):
        x0, y0 = int(w*.2), int(h*.3)
        x1, y1 = int(w*.7), int(h*.8)
        rgb = np.full((h, w, 3), 60, np.uint8)
        rgb[y0:y1, x0:x1] = (255, 0, 0)
        write_image(tmp_path/f'주차_{i}.png', rgb)
        truth[f'주차_{i}.png'] = [x0, y0, x1, y1]
    return tmp_path, truth


@pytest.mark.parametrize('mode', ['letterbox', 'stretch', 'darknet', 'darknet-letterbox', 'deepstream',
                                  'deepstream-corner'])
def test_boxes_come_back_to_the_photograph(shots, mode):
    folder, truth = shots
    d = detect.detect(Finder(), folder, mode=mode, workers=0, bs=2)
    assert len(d) == 5 and d.names == ['빨강']
    for i in range(5):
        want = truth[d.images['file'][i]]
        w, h = max(want[2]/.7, 1), max(want[3]/.8, 1)
        pixel = max(w/160, h/96, 1)*(1.6 if mode.startswith('d') else 1)   # one pixel of the network's input
        assert np.abs(d.xyxy[d.of(i)][0] - want).max() <= pixel + .01


def test_corrupt_files_cost_nothing_but_themselves(shots, capsys):
    folder, _ = shots
    whole = (folder/'주차_0.png').read_bytes()
    (folder/'잘림.png').write_bytes(whole[:len(whole)//2])
    (folder/'빈.jpg').write_bytes(b'')
    t = detect.to_image_table(folder)
    t = Table.make({**t.images, 'path': [p if '주차_3' not in p else '' for p in t.images['path']]}, {}, [])
    d = detect.detect(Finder(), t, workers=0, bs=3)
    assert len(d) == 4 and d.n_images == 7
    said = capsys.readouterr().out
    assert (len(d.extra['unreadable']) == 3 and said.count('passed over') == 3
            and all(n in said for n in ('잘림.png', '빈.jpg', '주차_3.png')))


def test_workers_and_batches_do_not_matter(shots):
    folder, _ = shots
    net = Detector(build('yolokit-nano', classes=2), names=['a', 'b']).train()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean += .01
    before = {k: v.clone() for k, v in net.state_dict().items()}
    a, b = (detect.detect(net, folder, (160, 96), workers=w, bs=bs) for w, bs in ((0, 1), (2, 4)))
    assert net.training and all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    # convolutions differ in the last bits with the batch, and an untrained network's scores nearly tie: neighbours may
    # change places
    assert len(a) == len(b) and np.abs(np.sort(a.boxes['score']) - np.sort(b.boxes['score'])).max() < 1e-5
    near = [np.abs(b.xyxy[b.of(a.boxes['image'][k])] - a.xyxy[k]).max(1).min() for k in range(len(a))]
    assert np.quantile(near, .99) < .05
    assert len(detect.detect(net, folder, (160, 96), workers=0, dtype='bfloat16'))
    with pytest.raises(ValueError, match='multiple'): detect.detect(net, folder, (100, 96), workers=0)


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(detect.DetectError, match='no image in it'): detect.to_image_table(tmp_path)
    with pytest.raises(detect.DetectError, match='no such file'): detect.to_image_table(tmp_path/'없다')
    (tmp_path/'a.weights').write_bytes(b'')
    with pytest.raises(weights.WeightsError, match='a.cfg'): pretrained.load_weights(tmp_path/'a.weights')


def test_detection_does_not_wait_for_torchvision():
    "Its operators are enough: the package imports torch's compiler too, 3.6 s."
    code = 'import sys, yolokit.inference.parts, yolokit.inference.ensemble; print("torchvision" in sys.modules)'
    got = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert got.stdout == 'False\n'
