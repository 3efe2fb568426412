"""The waterfall against a whole pipeline written apart from it, in loops, and settings planted one at a time."""
import cv2
import numpy as np
import pytest
import torch

from yolokit.core.images import read_image, write_image
from yolokit.network import zoo
from yolokit.network.model import Detector
from yolokit.data import parking
from yolokit.inference.detect import detect, forward_and_decode, optimized_copy, to_image_table
from yolokit.export.deepstream import read_config, to_deepstream
from yolokit.export.waterfall import _Judge, _read_way, _STEPS, _Way, waterfall
from test_export import calibrated

F, SIZES = np.float32, ((640, 360), (321, 243), (180, 301), (128, 96), (640, 360), (500, 111))


def whole(detector, rgb, config, frames=None): # → list of (x0 y0 x1 y1 score class), pixels of rgb
    "gst-nvinfer, nvdsinfer and DeepStream-Yolo's parser as their sources go, object by object."
    p, (W, H) = config['property'], detector.size
    frame = rgb if frames is None else cv2.resize(rgb, frames)
    fh, fw = frame.shape[:2]
    w, h = fw - fw % 2, fh - fh % 2
    dw, dh, left, top = W, H, 0, 0
    if p.get('maintain-aspect-ratio') == '1':
        if W*h/w <= H: dh = int(W*h/w)
        else: dw = int(H*w/h)
        if p.get('symmetric-padding') == '1': left, top = (W - dw)//2, (H - dh)//2
    rx, ry = dw/w, dh/h
    how = cv2.INTER_LINEAR if p.get('scaling-filter') == '1' else cv2.INTER_NEAREST
    x = np.zeros((H, W, 3), np.uint8)
    x[top:top + dh, left:left + dw] = cv2.resize(frame[:h, :w], (dw, dh), interpolation=how)
    if p.get('model-color-format') == '1': x = x[:, :, ::-1]
    x = torch.from_numpy(x.transpose(2, 0, 1).astype(F)*F(p['net-scale-factor']))
    with torch.inference_mode(): rows = forward_and_decode(optimized_copy(detector), x[None])[0].numpy()
    of = lambda c, key: F((config['class-attrs-all'] | config.get(f'class-attrs-{c}', {}))[key])
    lists = {c: [] for c in range(detector.nc)}
    for r in rows:
        probs = r[4]*r[5:]
        c = int(probs.argmax())
        if probs[c] < of(c, 'pre-cluster-threshold'): continue
        x1, y1, x2, y2 = (min(max(v, F(0)), F(m)) for v, m in (
            (r[0] - r[2]/F(2), W), (r[1] - r[3]/F(2), H), (r[0] + r[2]/F(2), W), (r[1] + r[3]/F(2), H)))
        if x2 - x1 < 1 or y2 - y1 < 1: continue
        lists[c].append((x1, y1, x2 - x1, y2 - y1, probs[c]))

    def along(a, b, k):
        if a[k] > b[k]: a, b = b, a
        return F(0) if a[k] + a[k + 2] < b[k] else min(a[k] + a[k + 2], b[k] + b[k + 2]) - b[k]

    def overlap(a, b):
        both = along(a, b, 0)*along(a, b, 1)
        union = a[2]*a[3] + b[2]*b[3] - both
        return both/union if union else 0
    out = []
    for c, objects in lists.items():
        kept = []
        for o in sorted(objects, key=lambda o: -o[4]):
            clear = all(overlap(o, k) <= of(c, 'nms-iou-threshold') for k in kept)
            if clear or p['cluster-mode'] == '4': kept.append(o)
        topk = int(of(c, 'topk'))
        for x1, y1, ow, oh, s in kept[:topk if topk >= 0 else None]:
            x1, y1, ow, oh = (F(float(v)/z) for v, z in ((x1 - F(left), rx), (y1 - F(top), ry), (ow, rx), (oh, ry)))
            x1, y1 = max(x1, F(0)), max(y1, F(0))
            if p.get('crop-objects-to-roi-boundary') == '1':
                if x1 + ow >= fw: ow = F(fw) - x1
                if y1 + oh > fh: oh = F(fh) - y1
            elif y1 + oh > fh: continue
            zx, zy = rgb.shape[1]/fw, rgb.shape[0]/fh
            out.append((float(x1)*zx, float(y1)*zy, float(x1 + ow)*zx, float(y1 + oh)*zy, s, c))
    return out


@pytest.fixture(scope='module')
def lot(tmp_path_factory):
    "A network, pictures of several shapes, and what it finds there, which is the truth."
    tmp = tmp_path_factory.mktemp('lot')
    for k, (w, h) in enumerate(SIZES): write_image(tmp/f'{k}.png', cv2.resize(parking.scene(1, k).rgb, (w, h)))
    d = calibrated(zoo.build('yolokit-nano', 3).with_size(128, 96))
    d.names = ['승용차', 'bus', 'van']
    found = detect(d, to_image_table(sorted(tmp.glob('*.png'))), workers=0)
    top = found.keep(found.boxes['score'] > np.quantile(found.boxes['score'], .9))
    return d, top.with_columns(score=np.full(len(top), np.nan)), tmp


def bundle(lot, folder, **keys): # key: text that takes its place; keys with _ for -
    d, _, _ = lot
    to_deepstream(d, folder, conf=.05, iou=.45, topk=40, per_class={'bus': .1})
    file = folder/'config_infer_primary.txt'
    lines = file.read_text().split('\n')
    for k, v in keys.items():
        k = k.replace('_', '-')
        lines = [f'{k}={v}' if line.startswith(f'{k}=') else line for line in lines]
        assert f'{k}={v}' in lines
    file.write_text('\n'.join(lines))
    return file


PLANTED = dict(padding=dict(maintain_aspect_ratio=0), filter=dict(scaling_filter=0), factor=dict(net_scale_factor=1),
               colours=dict(model_color_format=1), threshold=dict(pre_cluster_threshold=.9),
               clusters=dict(cluster_mode=4), topk=dict(topk=2), edges=dict(crop_objects_to_roi_boundary=0))


CONFIGURED = [({}, None), ({}, (320, 180)), *((k, None) for k in PLANTED.values())]


@pytest.mark.parametrize('keys, frames', CONFIGURED, ids=str)
def test_the_last_stage_is_the_whole_pipeline(lot, keys, frames, tmp_path):
    d, truth, _ = lot
    config = read_config(bundle(lot, tmp_path, **keys))
    found = _Judge(d, truth).found(_read_way(config, d.nc, frames))
    for k, path in enumerate(truth.images['path']):
        want = np.array(whole(d, read_image(path), config, frames)).reshape(-1, 6)
        mine = found.boxes['image'] == k
        got = np.column_stack([found.xyxy[mine], found.boxes['score'][mine], found.boxes['category'][mine]])
        assert got.shape == want.shape
        if not len(got): continue
        order = lambda m: m[np.lexsort((m[:, 1], m[:, 0], -m[:, 4], m[:, 5]))]
        assert np.abs(order(got) - order(want)).max() <= 1e-9


def test_the_first_stage_is_detect(lot):
    d, truth, _ = lot
    got, want = _Judge(d, truth).found(_Way()), detect(d, truth, bs=1, workers=0)
    assert len(got) == len(want)
    order = lambda t: np.lexsort((t.boxes['x0'].round(2), -t.boxes['score'].round(5), t.boxes['category'],
                                  t.boxes['image']))
    assert np.abs(got.xyxy[order(got)] - want.xyxy[order(want)]).max() < 1e-2


@pytest.mark.parametrize('step', PLANTED)
def test_a_planted_setting_is_charged_to_its_own_step(lot, step, tmp_path):
    d, truth, _ = lot
    right = waterfall(d, truth, bundle(lot, tmp_path/'right'))
    wrong = waterfall(d, truth, bundle(lot, tmp_path/'wrong', **PLANTED[step]))
    k = list(_STEPS).index(step) + 1
    assert [r[2] for r in wrong[:k]] == [r[2] for r in right[:k]]
    more = np.array([r[3] for r in wrong]) - [r[3] for r in right]
    assert more[k] < 0 or step in ('padding', 'clusters') and more[k]   # the truth is what it found: either sign
    assert sum(r[3] for r in wrong) == pytest.approx(wrong[-1][2] - wrong[0][2], abs=1e-12)
    assert f'{_STEPS[step][0]}' in str(wrong)


def test_what_is_not_simulated_is_refused(lot, tmp_path):
    config = read_config(bundle(lot, tmp_path))
    for key, value, words in (('network-mode', '1', 'int8'), ('cluster-mode', '1', 'DBSCAN'),
                              ('offsets', '1;2;3', 'offsets')):
        with pytest.raises(ValueError, match=words):
            _read_way(config | {'property': config['property'] | {key: value}}, 3)
