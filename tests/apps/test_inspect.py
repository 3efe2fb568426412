"What inspect is given: the predictions of a run, on its validation pictures, about the labels of a whole folder."
import json
import numpy as np, pytest
from yolokit.core.files import FormatError
from yolokit.core.images import write_image
from yolokit.training.runs import Run
from yolokit.evaluation.label_errors import rank_where_looked
from yolokit.apps.prepare import prepare_if_needed, read_detections, unrepaired_table


@pytest.fixture
def a_run(tmp_path, monkeypatch):
    "A raw folder of 20 pictures, one of them unreadable and left out, and a run that saw nothing on its val pictures."
    monkeypatch.setenv('YOLOKIT_ROOT', str(tmp_path))
    g = np.random.default_rng(0)
    (tmp_path/'raw/labels').mkdir(parents=True)
    for n in range(20):
        write_image(tmp_path/f'raw/images/{n:02}번.png', g.integers(0, 255, (40, 40, 3), dtype=np.uint8))
        (tmp_path/f'raw/labels/{n:02}번.txt').write_text('0 .5 .5 .5 .5\n')
    (tmp_path/'raw/images/03번.png').write_bytes(b'no picture')
    p = prepare_if_needed('raw', val=.3)
    run = Run.new('finetune', state='finished', data=dict(folder=str(p.folder), fingerprint=p.info['fingerprint']))
    return p, run


def test_only_the_validation_pictures_of_the_run_were_looked_at(a_run, capsys):
    p, run = a_run
    val, raw, file = p.table.split('val'), unrepaired_table(p), run.folder/'predictions.json'
    on = [dict(image_id=int(i), category_id=int(val.category_ids[0]), bbox=[10, 10, 20, 20], score=.9)
          for i in val.images['id'][1:]]
    file.write_text(json.dumps(on))
    found, looked = read_detections(file, raw)
    assert sorted(raw.images['file'][looked]) == sorted(val.images['file']) and found.n_images == raw.n_images == 20
    assert sorted(raw.images['file'][found.boxes['image']]) == sorted(val.images['file'][1:])
    f = rank_where_looked(raw, found, looked)
    assert f'on {val.n_images} of 20 pictures' in capsys.readouterr().out
    assert set(raw.images['file'][f.rows['image']]) == {val.images['file'][0]} and set(f.rows['reason']) == {'spurious'}


def test_a_run_on_other_data_is_refused(a_run, tmp_path):
    p, run = a_run
    (run.folder/'predictions.json').write_text('[]')
    raw = unrepaired_table(p)
    other = raw.with_images(file=[f'other{n}.png' for n in range(20)])
    with pytest.raises(FormatError, match='not in these data'): read_detections(run.folder/'predictions.json', other)
