"""certificate.md and .json, and the scripts beside the files: each prints the detector's boxes."""
import json
import subprocess
import sys
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
import torch

from yolokit.core.images import write_image
from yolokit.network import zoo
from yolokit.network.checkpoints import to_checkpoint
from yolokit.data import parking
from yolokit.data.formats import write
from yolokit.inference.detect import detect
from yolokit.apps.export import ExportConfig, export_all
from test_export import calibrated

TARGETS = ['darknet', 'onnx', *(t for t in ('openvino', 'ncnn') if find_spec(t)), 'deepstream']


@pytest.fixture(scope='module')
def nano(tmp_path_factory):
    "A checkpoint, a folder of pictures with boxes that it finds."
    tmp = tmp_path_factory.mktemp('nano')
    d = calibrated(zoo.build('yolokit-nano', 2).with_size(128, 96), names=['승용차', 'bus'])
    torch.save(to_checkpoint(d), tmp/'nano.pt')
    for k, size in enumerate(((640, 360), (180, 301), (321, 243))):
        write_image(tmp/f'pictures/{k}.png', cv2.resize(parking.scene(1, k).rgb, size))
    found = detect(d, tmp/'pictures', workers=0)
    truth = found.keep(found.boxes['score'] > np.quantile(found.boxes['score'], .9))
    truth = truth.with_columns(score=np.full(len(truth), np.nan)).with_images(split=['val']*3)
    write(truth, tmp/'data', 'yolo')
    return d, tmp


@pytest.mark.parametrize('form', ['decoded', 'boxes', 'nms'])
def test_every_script_prints_the_detectors_boxes(nano, form, tmp_path):
    d, tmp = nano
    to = ' '.join(TARGETS) if form == 'decoded' else 'onnx'
    export_all(ExportConfig(weights=str(tmp/'nano.pt'), to=to, form=form, conf=.1, iou=.5, out=str(tmp_path)))
    for picture in sorted((tmp/'pictures').glob('*.png')):
        for target in to.split():
            if target == 'deepstream': continue
            want = detect(d, [picture], conf=.1, iou=.5, workers=0, multi_label=form != 'boxes')
            assert len(want) > 3
            script = tmp_path/target/'detect.py'
            assert len(script.read_text().splitlines()) <= 22
            done = subprocess.run([sys.executable, script, picture], capture_output=True, text=True, cwd='/')
            assert done.returncode == 0, done.stderr
            lines = [line.split() for line in done.stdout.splitlines()]
            got = np.array([line[:5] for line in lines], float)
            assert len(got) == len(want), (target, done.stdout)
            names = [want.names[c] for c in want.boxes['category']]
            told, free = [line[5] for line in lines], list(range(len(got)))
            for box, score, name in zip(want.xyxy, want.boxes['score'], names):
                gap = [np.abs(got[k] - [*box, score]).max() + (told[k] != name) for k in free]
                assert min(gap) < .05, (target, box, score, name)
                free.pop(int(np.argmin(gap)))


def test_the_page_holds_every_runtime(nano, tmp_path):
    d, tmp = nano
    export_all(ExportConfig(weights=str(tmp/'nano.pt'), to=' '.join(TARGETS), data=str(tmp/'data'), out=str(tmp_path),
                            waterfall=True, frames='320x180', mode='deepstream-corner', conf=.01))
    page, kept = (tmp_path/'certificate.md').read_text(), json.loads((tmp_path/'certificate.json').read_text())
    rows = {r['target']: r for r in kept['rows']}
    assert list(rows) == ['the detector', *TARGETS] and 'AP: 3 validation pictures' in page
    for target in TARGETS[:-1]:
        r = rows[target]
        assert r['maps'] is None or r['maps'] < 1e-4
        assert r['px'] < 1e-2 and r['ms'] > 0 and r['runtime'] in page
        assert r['ap'] == pytest.approx(rows['the detector']['ap'], abs=.02) and r['ap'] > .5
        assert all(h in page for h in r['files'].values()) and 'detect.py' in r['files']
    assert rows['deepstream']['runtime'] == 'not run'
    assert 'cv2.INTER_AREA' in page and 'above 0.01' in page
    fall = (tmp_path/'deepstream/waterfall.txt').read_text()
    assert 'frames in the stream muxer' in fall and '(assumed)' in fall
    assert (tmp_path/'deepstream/waterfall.png').stat().st_size


def test_ap_needs_pictures(nano, tmp_path):
    _, tmp = nano
    c = ExportConfig(weights=str(tmp/'nano.pt'), to='onnx', out=str(tmp_path/'a'))
    export_all(c)
    kept = json.loads((tmp_path/'a/certificate.json').read_text())
    assert kept['rows'][1]['ap'] is None and kept['judged'].startswith('No AP')
    wide = dict(frames='wide', waterfall=True, data=str(tmp/'data'), to='deepstream')
    for change, words in ((dict(waterfall=True), 'validation split'), (wide, '1920x1080')):
        with pytest.raises(ValueError, match=words):
            export_all(ExportConfig(**vars(c) | dict(out=str(tmp_path/words[:4])) | change))
    few = ExportConfig(weights=str(tmp/'nano.pt'), to='onnx', out=str(tmp_path/'few'), data=str(tmp/'data'), ap=1)
    export_all(few)
    assert '1 validation pictures' in (tmp_path/'few/certificate.md').read_text()
