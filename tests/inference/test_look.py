"A loaded detector is called with whatever there is; results draw, save and tabulate themselves."
import re, shutil
from pathlib import Path
import cv2, numpy as np, pytest, torch
import yolokit
from small import checkout
from yolokit.core.images import read_image
from yolokit.network.cfg import Cfg
from yolokit.training.train import save_detector
from yolokit.network.model import Detector
from yolokit.inference.detect import detect

README = Path(__file__).parents[2]/'README.md'
LOW = 1e-6


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A checkout with a few pictures and a run with the weights of a network of a few thousand parameters."
    checkout(tmp_path, 4)
    monkeypatch.setenv('YOLOKIT_ROOT', str(tmp_path)); monkeypatch.chdir(tmp_path)
    (tmp_path/'runs/finetune-001/weights').mkdir(parents=True)
    d = Detector(Cfg.read(tmp_path/'tiny.cfg'), ['밝음', 'dark'], 0)
    save_detector(tmp_path/'runs/finetune-001/weights/best.pt', d)
    return tmp_path


def test_path_array_list_folder_and_video_give_the_same_boxes(here):
    d = yolokit.load('finetune-001')
    files = sorted((here/'squares/images/train').glob('*.png'))
    want = [x for x in detect(d, files, conf=LOW, workers=0).xyxy]
    one = d(files[0], conf=LOW)
    assert isinstance(d, Detector) and isinstance(d(torch.zeros(1, 3, 96, 96)), (list, tuple))
    assert len(one) == len(one.boxes) == len(one.scores) == len(one.classes) > 0 and set(one.classes) <= {'밝음', 'dark'}
    first = read_image(files[0])
    for found in (d(first, conf=LOW), d([first], conf=LOW)[0], d(str(files[0]), conf=LOW)):
        assert np.array_equal(found.boxes, one.boxes)
    for found in (d(files, conf=LOW), d([read_image(f) for f in files], conf=LOW), d('squares/images/train', conf=LOW)):
        assert len(found) == 4 and np.array_equal(np.concatenate(found.boxes), want)
    film = cv2.VideoWriter('film.avi', cv2.VideoWriter_fourcc(*'MJPG'), 5, (96, 96))
    for f in files: film.write(read_image(f)[..., ::-1])
    film.release()
    seen = d('film.avi', conf=LOW)
    assert len(seen) == 4 and seen[3].plot().shape == (96, 96, 3)
    assert (seen.save('out-film')/'film.mp4').stat().st_size > 0


def test_results_draw_save_and_tabulate(here):
    d = yolokit.load('runs/finetune-001/weights/best.pt')
    f = next((here/'squares/images/train').glob('*.png'))
    one = d(f, conf=LOW)
    assert one.plot().shape == (96, 96, 3) and one._repr_jpeg_()[:2] == b'\xff\xd8'
    assert one.save(here/'a/b.png').is_file()
    pandas = pytest.importorskip('pandas')
    assert isinstance(one.to_pandas(), pandas.DataFrame) and len(one.to_pandas()) == len(one)
    assert len(list(d([read_image(f)]*2, conf=LOW).save(here/'two').glob('*.jpg'))) == 2
    assert not len(d(f, conf=.999)) and 'nothing' in repr(d(f, conf=.999))


def test_the_python_of_the_readme_runs(here):
    "Its last lines, as printed, with a folder of photos in it; what exports is its own chapters' to test."
    code = re.findall(r'```python\n(.*?)```', README.read_text(encoding='utf-8'), re.S)[0]
    assert code.count('\n') <= 24
    shutil.copytree(here/'squares/images/train', here/'photos')
    (here/'photos/train0.png').rename(here/'photos/street.png')
    shutil.copytree(here/'squares', here/'annotations')
    exec('\n'.join(l for l in code.splitlines() if 'to_onnx' not in l), {})
