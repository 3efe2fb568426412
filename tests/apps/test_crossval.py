"Cross-validation of small squares: folds, a stop in the middle, the same command again, and the ensemble at the end."
import json

import numpy as np
import pytest

from small import checkout
from yolokit.apps import crossval, train
from yolokit.apps.config import DetectConfig, detect_options, load, load_detector
from yolokit.inference.detect import detect
from yolokit.inference.ensemble import Ensemble
from yolokit.training import runs
from yolokit.training.runs import Run, RunError


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkout')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('YOLOKIT_ROOT', str(checkout(folder, n=12)))
        yield folder


def config(**kw):
    return crossval.CrossvalConfig(**dict(data='squares', network='tiny.cfg', weights='none', recipe='scratch', steps=4,
                                          every=.5, folds=2, workers=0, threads=1, device='cpu', draws=50) | kw)


def test_a_stop_in_the_middle_and_the_same_command_again(here, monkeypatch):
    trained, real = [], train.train
    def stops(c):
        trained.append(c.resume or c.name)
        if len(trained) == 2: raise KeyboardInterrupt('stopped here')
        return real(c)
    monkeypatch.setattr(crossval, 'train', stops)
    with pytest.raises(KeyboardInterrupt): crossval.crossvalidate(config())
    assert Run.open('crossval-001').info['state'] == 'interrupted'
    out = crossval.crossvalidate(config())
    assert trained == ['crossval-001-fold-0', 'crossval-001-fold-1', 'crossval-001-fold-1']
    assert out.run.name == 'crossval-001' and out.run.info['state'] == 'judged'

    # every image once, by the run that has not seen it
    t = out.truth
    assert t.n_images == 20 and min(np.bincount(out.fold)) >= 8
    assert list(out.found.images['file']) == list(t.images['file'])
    for k in range(2):
        r = Run.open(f'crossval-001-fold-{k}')
        ids = {a['image_id'] for a in json.loads((r.folder/'predictions.json').read_text())}
        assert ids <= set(t.images['id'][out.fold == k]) and (r.info['fold'], r.info['crossval']) == (k, 'crossval-001')
        assert r.info['data']['folder'] == f'runs/crossval-001/folds/{k}'
    assert json.loads((out.run.folder/'folds.json').read_text()) == dict(zip(t.images['file'], out.fold.tolist()))
    assert 0 <= out.numbers['interval']['AP'][0] <= out.numbers['interval']['AP'][1] <= 1
    assert len(out.numbers['folds']) == 2 and (out.run.folder/'label-errors.json').is_file()

    # a third time nothing is trained, and the numbers are the same
    again = crossval.crossvalidate(config(draws=50, workers=1))
    assert len(trained) == 3 and again.numbers == out.numbers
    # something else under the same name is an error; no single run is taken for the last one
    with pytest.raises(RunError, match='asked something else'):
        crossval.crossvalidate(config(name='crossval-001', folds=3))
    assert runs.latest_run('') is None


def test_the_ensemble_is_a_model_that_infer_takes(here):
    run, model = load_detector(DetectConfig(run='crossval-001', device='cpu'))
    assert isinstance(model, Ensemble) and len(model.members) == 2 and run.name == 'crossval-001'
    members = [load(f'crossval-001-fold-{k}') for k in range(2)]
    _, same = load_detector(DetectConfig(weights='crossval-001-fold-0, crossval-001-fold-1', device='cpu'))
    images = sorted((here/'squares/images/val').glob('*.png'))
    how = detect_options(DetectConfig(workers=0, conf=1e-9))
    found = [detect(m, images, **how) for m in (model, same)]
    assert len(found[0]) and np.array_equal(found[0].xyxy, found[1].xyxy)
    assert [d.names for d in members] == [['bright', 'dark']]*2
    assert isinstance(load('crossval-001'), Ensemble)
