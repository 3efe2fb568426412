"Which run an app takes when nobody names one."
import time
import pytest
from yolokit.training.runs import Run, finished_runs, latest_run
from yolokit.apps.config import choose_run, load_detector, DetectConfig


@pytest.fixture
def made(tmp_path, monkeypatch):
    "A function that makes a finished run, each a minute younger than the one before."
    monkeypatch.setenv('YOLOKIT_ROOT', str(tmp_path))
    (tmp_path/'settings.ini').write_text('[DEFAULT]\n')
    minutes = iter(range(100))
    def make(name, ap=.3, weights=True, data='mine', stage='finetune', **facts):
        at = time.time() - 3600*5 + 60*next(minutes)
        ended = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))
        run = Run.new(stage, name, **dict(state='finished', ended=ended, at=at, result=dict(AP=ap),
                      data=dict(source=data, folder=f'data/{data}-prepared', fingerprint=data)) | facts)
        if weights: (run.folder/'weights/best.pt').touch()
        return run
    return make


def test_no_trial_no_fold_no_row_no_replay_and_nothing_without_weights(made, tmp_path, capsys):
    made('good')
    made('lr-0003')
    (tmp_path/'runs/sweep-lr').mkdir()          # a sweep of before the word `sweep`
    made('trial', sweep='lr'); made('fold', fold=0)
    made('row', weights=False, stage='judged'); made('gone', weights=False); made('stopped', state='interrupted')
    (made('replay').folder/'replay.json').write_text('{}')
    made('nothing', ap=0.)                      # it found nothing: thrown away
    assert choose_run('').name == latest_run('').name == 'good'
    said = capsys.readouterr().out
    assert 'good' in said and 'AP 0.300' in said and '5 hours ago' in said and 'the last one' in said


def test_a_run_that_found_nothing_is_taken_where_there_is_no_other(made):
    made('nothing', ap=0.)
    assert choose_run('').name == 'nothing'


def test_best_is_the_best_on_the_same_data(made, capsys):
    made('other', ap=.9, data='theirs'); made('high', ap=.5); made('low', ap=.2)
    assert choose_run('').name == 'low'
    assert choose_run('best').name == 'high'
    assert 'the best on its data' in capsys.readouterr().out
    assert choose_run('best', 'theirs').name == 'other'


def test_the_last_one_for_the_named_data(made, tmp_path, capsys):
    made('mine'); made('theirs', data='theirs')
    for word in ('mine', str(tmp_path/'mine'), 'data/mine-prepared'): assert choose_run('', word).name == 'mine'
    capsys.readouterr()
    assert choose_run('', 'elsewhere').name == 'theirs'
    assert 'none was trained on these data' in capsys.readouterr().out


def test_a_run_called_best_keeps_its_name(made):
    made('best', ap=.1); made('high', ap=.5)
    assert choose_run('best').name == 'best'


def test_it_can_still_need_something_else(made):
    made('row', weights=False)
    assert not finished_runs() and [r.name for r in finished_runs(needs='run.json')] == ['row']


def test_without_any_run_it_says_what_to_do(made):
    with pytest.raises(Exception, match='train first'): load_detector(DetectConfig())
