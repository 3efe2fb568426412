"The loop of labels: nothing before a person says so; accepted decisions make a folder and two refits; the gain."
import json
import numpy as np
import pytest
from small import checkout
from yolokit.apps import relabel, train
from yolokit.cleaning.prepare import load_prepared
from yolokit.cleaning.repair import plan
from yolokit.network.checkpoints import load_checkpoint
from yolokit.training import runs
from yolokit.training.runs import RunError


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    "A checkout with a run, and eight labels of the other class."
    folder = checkout(tmp_path_factory.mktemp('checkout'), n=16)
    for k in range(8):
        file = folder/f'squares/labels/train/train{k}.txt'
        first, *rest = file.read_text().splitlines()
        file.write_text('\n'.join([str(1 - int(first[0])) + first[1:], *rest]) + '\n')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('YOLOKIT_ROOT', str(folder))
        m.chdir(folder)
        with pytest.raises(RunError, match='no finished training yet'): relabel.rank_doubts(config())
        train.train(train.TrainConfig(stage='baseline', data='squares', network='tiny.cfg', weights='none',
                                      recipe='scratch', bs=8, steps=60, lr0=.02, change='init=he', workers=0,
                                      threads=1, device='cpu'))
        yield folder


def config(**kw):
    return relabel.RelabelConfig(**dict(folds=2, steps=40, refit=6, workers=0, threads=1, device='cpu', draws=50) | kw)


def test_from_doubts_to_the_gain(here, capsys):
    source = {p: p.read_bytes() for p in (here/'squares').rglob('*.txt')}
    doubts = relabel.rank_doubts(config())
    assert doubts.run.name == 'baseline-001' and doubts.truth.n_images == 24 and len(doubts.findings)
    assert relabel.measure_gain(config(), doubts) is None and 'Nothing is accepted yet' in capsys.readouterr().out
    assert not (doubts.crossval.folder/'corrected').exists()

    # a person puts the eight right by hand, and refuses what the detectors say first
    r, t = plan(doubts.findings).records()[0], doubts.truth
    said = [{k: r[k] for k in ('box', 'reason', 'file')} | dict(proposal=r.get('proposal'), decision='reject')]
    for i, file in enumerate(t.images['file']):
        if file.rpartition('/')[2] not in {f'train{k}.png' for k in range(8)}: continue
        box = int(t.of(i)[0])
        said.append(dict(box=box, reason='by-hand', file=file, action='class', decision='accept',
                         label=1 - int(t.boxes['category'][box])))
    doubts.file.write_text(json.dumps(said))
    accepted = 8
    gain = relabel.measure_gain(config(), doubts)
    assert gain.changed == accepted and set(gain.numbers) == {'as it was', 'same labels', 'corrected labels'}
    assert gain.labels['AP']['low'] <= gain.labels['AP']['difference'] <= gain.labels['AP']['high']
    assert f'{accepted} boxes changed' in gain._repr_markdown_() and 'accepted of' in doubts._repr_markdown_()
    assert json.loads((doubts.crossval.folder/'gain.json').read_text())['changed'] == accepted

    # the corrected folder differs in these boxes alone; the source and the run's own folder are as they were
    new = load_prepared(next((doubts.crossval.folder/'corrected').iterdir()))
    old = load_prepared(here/json.loads((here/'runs/baseline-001/run.json').read_text())['data']['folder'])
    assert np.array_equal(new.xyxy, old.xyxy) and list(new.images['split']) == list(old.images['split'])
    assert (new.boxes['category'] != old.boxes['category']).sum() == accepted
    assert {p: p.read_bytes() for p in (here/'squares').rglob('*.txt')} == source

    # both refits have learnt their prediction layer and nothing else, and neither is the last run
    a, *two = (load_checkpoint(here/f'runs/{n}/weights/best.pt').state_dict() for n in gain.runs.values())
    for b in two:
        changed = {k.rpartition('.')[0] for k in a if not np.array_equal(a[k].numpy(), b[k].numpy())}
        assert changed == {'layers.3.conv'}
    assert runs.latest_run('finetune') is None

    # again: nothing is trained; another decision: another folder
    count = len(list((here/'runs').iterdir()))
    assert relabel.measure_gain(config(), relabel.rank_doubts(config())).numbers == gain.numbers
    assert len(list((here/'runs').iterdir())) == count


def test_what_cannot_be_looked_through_is_said(here):
    train.train(train.TrainConfig(stage='finetune', data='squares', network='tiny.cfg', weights='baseline-001',
                                  recipe='scratch', bs=8, steps=1, workers=0, threads=1, device='cpu', name='on'))
    with pytest.raises(RunError, match='has learnt these labels'): relabel.rank_doubts(config(run='on'))
    with pytest.raises(RunError, match='name a finished training'): relabel.rank_doubts(config(run='crossval-001'))
