"""What 0.1.0 left is read, ranked, resumed and decided by today's code.

`checkout-0.1.0.tar.gz` was made by commit 57f959e: a set of eighteen drawn pictures (tests/small.py) with one
near-duplicate box, a person's decision on it, the prepared folder, a finished run and a stopped one."""
import tarfile
from pathlib import Path

import pytest
import torch

from yolokit.apps.config import DetectConfig, load_detector
from yolokit.apps.prepare import prepare_if_needed
from yolokit.apps.train import TrainConfig, train
from yolokit.cleaning import checks, inspector, repair
from yolokit.cleaning.prepare import load_prepared
from yolokit.data import formats
from yolokit.evaluation import leaderboard
from yolokit.network.checkpoints import load_checkpoint
from yolokit.network.model import state_hash
from yolokit.training.runs import Run, list_runs

MADE_IN = '/tmp/old/checkout'   # a prepared folder remembers where its source was


@pytest.fixture(scope='module')
def old(tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkout')
    with tarfile.open(Path(__file__).with_name('checkout-0.1.0.tar.gz')) as f: f.extractall(folder, filter='data')
    record = folder/'data/squares-prepared/prepared.json'
    record.write_text(record.read_text().replace(MADE_IN, str(folder)))
    with pytest.MonkeyPatch.context() as m:
        m.setenv('YOLOKIT_ROOT', str(folder))
        yield folder


def test_a_prepared_folder_is_read_and_not_made_again(old):
    before = (old/'data/squares-prepared/prepared.json').read_bytes()
    made = prepare_if_needed('squares')
    assert made.folder == old/'data/squares-prepared'
    assert (old/'data/squares-prepared/prepared.json').read_bytes() == before
    table = load_prepared(made.folder)
    assert (table.n_images, len(table), table.names) == (18, 29, ['bright', 'dark'])
    assert all(Path(p).is_file() for p in table.images['path'])


def test_decisions_are_taken(old):
    table = formats.read(old/'squares', 'yolo')
    plan = repair.plan(checks.check(table))
    decisions = repair.load_decisions(old/'data/squares-decisions.json')
    assert [d['decision'] for d in decisions] == ['reject']
    assert len(inspector.Inspector(table, plan, old/'data/squares-decisions.json').decisions) == 1
    repaired, _ = repair.apply(table, plan.decide(decisions))
    assert repaired.same(table)                          # rejected: the box stays


def test_runs_and_weights_are_read(old):
    assert {r.name: r.info['state'] for r in list_runs()} == {'old-finished': 'finished', 'old-stopped': 'interrupted'}
    run = Run.open('old-finished')
    _, detector = load_detector(DetectConfig(run='old-finished', device='cpu'))
    assert (state_hash(detector) == run.info['weights_sha256']
            == state_hash(load_checkpoint(run.folder/'weights/best.pt')))
    assert detector(torch.zeros(1, 3, 96, 96))[0].shape[1] == 21


def test_the_old_run_is_ranked(old):
    row, = leaderboard.read_rows()
    assert (row['name'] == 'old-finished' and row['rank'] == 1
            and row['AP'] == Run.open('old-finished').info['result']['AP'])


def test_the_stopped_run_goes_on(old):
    done = train(TrainConfig(resume='old-stopped', workers=0))
    assert done.info['state'] == 'finished' and done.info['steps'] == 12
    steps = (done.folder/'metrics.csv').read_text().splitlines()
    assert [line.split(',')[0] for line in steps[1:]] == ['4', '8', '12']


@pytest.mark.parametrize('line, place', [
    ('from yolokit.weights import load_checkpoint', 'yolokit.network.checkpoints'),
    ('from yolokit import published', 'yolokit.network.pretrained'), ('import yolokit.stages', 'yolokit.apps.train')])
def test_old_imports_name_their_new_place(line, place):
    with pytest.raises(ImportError, match=place): exec(line)


def test_the_old_door_to_exports_works():
    from yolokit import export
    from yolokit.export.compatibility import check_compatibility
    assert export.check is check_compatibility and callable(export.to_darknet) and callable(export.to_deepstream)
