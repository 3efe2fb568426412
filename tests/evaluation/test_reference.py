"Beside pycocotools itself, on files: sides of exactly 32 and 96, IoUs on the steps, decimals, ties, crowds, odd ids."
import io, json
from contextlib import redirect_stdout
import numpy as np, pytest
from yolokit.core import rng
from yolokit.data import formats
from yolokit.evaluation import metrics, results


def make_files(seed, folder):
    "A truth and results for it as people write them: decimals, ids of any kind, two categories of one name."
    r = rng.rng(seed)
    n, ids = int(r.integers(1, 5)), r.permutation(1000)[:5].tolist()
    cats = [dict(id=int(c), name=s) for c, s in zip(r.permutation(90)[:3] + 1, ('car', 'bus', 'car'))]
    d, sides = int(r.integers(0, 4)), np.array([32., 96, 32.1, 95.9, 16, 64, 128, 31.999, 96.001, 50.3])
    def box():
        w, h = r.choice(sides, 2)
        if r.random() < .3: w = h = r.choice([32., 96.])
        return [round(float(v), d) for v in (*r.uniform(0, 300, 2), w, h)]
    truth = [dict(id=k + 1, image_id=ids[r.integers(n)], category_id=cats[r.integers(3)]['id'], bbox=(b := box()),
                  area=b[2]*b[3], iscrowd=int(r.random() < .1)) for k in range(int(r.integers(0, 40)))]
    found = []
    for t in truth:
        for _ in range(int(r.integers(0, 4))):
            x, y, w, h = t['bbox']
            step = float(r.choice(metrics.np.linspace(.5, .95, 10)))                        # the IoU, exactly or nearly
            b = [x, y, w*step, h] if r.random() < .5 else [x, y, w, round(h*step, 4)]
            if r.random() < .2: b = [x, y, w, h]
            c = t['category_id'] if r.random() < .8 else cats[r.integers(3)]['id']
            found.append(dict(image_id=t['image_id'], category_id=c, bbox=b, score=float(r.integers(1, 12))/12))
    for _ in range(int(r.integers(0, 20))):
        found.append(dict(image_id=ids[r.integers(n)], category_id=cats[r.integers(3)]['id'], bbox=box(),
                          score=round(float(r.random()), 2)))
    images = [dict(id=i, file_name=f'{i + 7:04d}.png', width=640, height=480) for i in ids[:n]] # another number
    (folder/'t.json').write_text(json.dumps(dict(images=images, categories=cats, annotations=truth)))
    (folder/'d.json').write_text(json.dumps(found))
    return truth, found


def difference(seed, folder, backends):
    "The greatest difference of the twelve numbers from those that pycocotools gives for the two files."
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    truth, found = make_files(seed, folder)
    if not truth or not found: return 0.                                        # an IndexError in pycocotools
    with redirect_stdout(io.StringIO()):
        g = COCO(folder/'t.json')
        e = COCOeval(g, g.loadRes(str(folder/'d.json')), 'bbox')
        e.evaluate(); e.accumulate(); e.summarize()
    t = formats.read(folder/'t.json', 'coco')
    ours = [metrics.coco(t, results.read_results(folder/'d.json', t), b).numbers for b in backends]
    return max(np.abs(np.array(list(o.values())) - e.stats).max() for o in ours)


def test_beside_pycocotools(tmp_path):
    assert max(difference(s, tmp_path, ('faster-coco-eval',)) for s in range(25)) <= 1e-12

@pytest.mark.soak
def test_beside_pycocotools_long(tmp_path):
    "1,000 sets: 0 differences."
    assert max(difference(s, tmp_path, metrics.BACKENDS) for s in range(1000, 2000)) <= 1e-12


def test_32_by_32_is_small(tmp_path):
    "x + w − x is not w: the table's corners give the sides of the file."
    x = 32.4
    assert x + 32 - x != 32
    truth = dict(images=[dict(id=1, file_name='a.png')], categories=[dict(id=1, name='car')],
                 annotations=[dict(id=1, image_id=1, category_id=1, bbox=[x, x, 32, 32], iscrowd=0)])
    (tmp_path/'t.json').write_text(json.dumps(truth))
    (tmp_path/'d.json').write_text(json.dumps([dict(image_id=1, category_id=1, bbox=[x, x, 32, 32], score=.5)]))
    t = formats.read(tmp_path/'t.json', 'coco')
    r = metrics.coco(t, results.read_results(tmp_path/'d.json', t))
    assert (r['APs'], r['APm']) == (1, 1)                   # COCO's ranges share their ends
