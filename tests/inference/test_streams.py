"Films and streams, tiles and limits: what is kept, what is lost, and what is said about it."
import os, signal, struct, zlib
import cv2, numpy as np, pytest, torch
from PIL import Image
from yolokit.core.images import _EXIF_ORIENTATIONS, image_size, read_image, write_image
from yolokit.inference.detect import detect, DetectError, is_video
from yolokit.inference.render import record_film


class Red(torch.nn.Module):
    "Answers with the box around all red pixels of its input."
    def __init__(self):
        super().__init__()
        self.p, self.names, self.size, self.stride = torch.nn.Parameter(torch.zeros(1)), ['빨강'], (96, 96), 32
        self.calls = []
    def forward(self, x): self.calls.append(len(x)); return [((x[:, 0] > .7) & (x[:, 1] < .4)).float()]
    def decode(self, maps):
        out = torch.zeros(len(maps[0]), 1, 6)
        for k, m in enumerate(maps[0].bool()):
            y, x = m.nonzero().unbind(1)
            if not len(x): continue
            x0, y0, x1, y1 = x.min(), y.min(), x.max() + 1, y.max() + 1
            out[k, 0] = torch.tensor([(x0 + x1)/2, (y0 + y1)/2, x1 - x0, y1 - y0, .9, 1.])
        return out


SCENE = np.full((300, 500, 3), 60, np.uint8)
SCENE[180:220, 300:360] = (255, 0, 0)

@pytest.fixture
def film(tmp_path):
    out = cv2.VideoWriter(str(tmp_path/'길.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 7, (500, 300))
    for k in range(30): out.write(np.roll(SCENE, 5*k, 1)[..., ::-1])
    out.release()
    return tmp_path/'길.avi'


def test_a_film_is_recorded_at_its_own_rate(film, tmp_path):
    with record_film(film, tmp_path/'o.mp4', ['빨강']) as each: found = detect(Red(), film, each=each)
    out = cv2.VideoCapture(str(tmp_path/'o.mp4'))
    assert (out.get(cv2.CAP_PROP_FRAME_COUNT), out.get(cv2.CAP_PROP_FPS)) == (30, 7) and len(found) == 30

@pytest.mark.parametrize('sig', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_stream_and_keeps_it(film, tmp_path, capsys, sig):
    def each(name, rgb, d):
        write(name, rgb, d)
        if name.endswith('#000009'): os.kill(os.getpid(), sig)
    with record_film(film, tmp_path/'o.mp4', ['빨강']) as write: found = detect(Red(), film, each=each)
    assert found.n_images == len(found) == 10
    assert cv2.VideoCapture(str(tmp_path/'o.mp4')).get(cv2.CAP_PROP_FRAME_COUNT) == 10

def test_a_stream_ends_by_seconds_or_frames(film):
    assert detect(Red(), film, seconds=1e-9).n_images == 1 and detect(Red(), film, most=4).n_images == 4

def test_a_damaged_film_says_what_is_lost(film, tmp_path, capfd):
    raw = film.read_bytes()
    (tmp_path/'cut.avi').write_bytes(raw[:len(raw)//2])
    n = detect(Red(), tmp_path/'cut.avi').n_images
    assert 5 < n < 25 and f'ends after {n} of 30 frames; {30 - n} are lost' in ''.join(capfd.readouterr())

def test_lists_addresses_suffixes(tmp_path):
    write_image(tmp_path/'사진.png', SCENE)
    (tmp_path/'list.txt').write_text('사진.png\n\n# a note\n사진.png\n', encoding='utf-8')
    assert detect(Red(), [tmp_path/'사진.png'], workers=0).n_images == 1
    (tmp_path/'one.txt').write_text(str(tmp_path/'사진.png'), encoding='utf-8')
    assert len(detect(Red(), tmp_path/'one.txt', workers=0)) == 1
    assert [is_video(x) for x in ('rtsp://cam/1', 'http://x/a.jpg?s=1', 'a.WMV', 'a.ts', 'a.gif')] == [1, 0, 1, 1, 0]

@pytest.mark.parametrize('turn', range(1, 9))
@pytest.mark.parametrize('kind', ['tif', 'jpg', 'png'])
def test_an_orientation_is_applied_once(tmp_path, turn, kind):
    want = _EXIF_ORIENTATIONS[turn](SCENE)
    exif = Image.Exif()
    exif[0x112] = turn
    Image.fromarray(SCENE).save(tmp_path/f'a.{kind}', exif=exif)
    got = read_image(tmp_path/f'a.{kind}')
    assert got.shape == want.shape and image_size(tmp_path/f'a.{kind}') == want.shape[1::-1]
    assert abs(got.astype(int) - want).mean() < 3


# nothing is cut in silence

@pytest.mark.parametrize('bad,words', [
    (dict(conf=25), 'conf=0.25'), (dict(conf=-.1), 'conf=-0.1'), (dict(iou=60), 'iou=0.6'),
    (dict(max_det=-5), 'max_det'),
    (dict(bs=0), 'bs=0'), (dict(dtype='half'), 'float16'), (dict(tile=8), 'at least tile=32'),
    (dict(workers=-1), 'workers')])
def test_numbers_that_mean_nothing(tmp_path, bad, words):
    write_image(tmp_path/'a.png', SCENE)
    with pytest.raises(DetectError, match=words): detect(Red(), tmp_path/'a.png', **dict(workers=0) | bad)

def test_tiles_go_in_batches_and_a_costly_tile_is_refused(tmp_path):
    write_image(tmp_path/'a.png', SCENE)
    net, small = Red(), Red()
    a, b = detect(net, tmp_path/'a.png', tile=128, bs=4), detect(small, tmp_path/'a.png', tile=128, bs=100)
    assert (a.xyxy == b.xyxy).all()
    write_image(tmp_path/'b.png', np.zeros((2000, 3000, 3), np.uint8))
    with pytest.raises(DetectError, match='tiles of a picture of 3000 × 2000 pixels. Give at least tile=') as e:
        detect(net, tmp_path/'b.png', tile=40)
    detect(net, tmp_path/'b.png', tile=int(str(e.value).rsplit('=', 1)[1]), bs=500)

def test_max_det_says_what_it_left_out(tmp_path, capfd):
    class Many(Red):
        def decode(self, maps):
            box = torch.tensor([[10 + 9.*k, 40, 8, 8, 1, .9 - .1*k] for k in range(8)])
            return box.expand(len(maps[0]), -1, -1)
    write_image(tmp_path/'a.png', SCENE)
    found = detect(Many(), tmp_path/'a.png', max_det=3, workers=0)
    said = ''.join(capfd.readouterr())
    assert len(found) == 3 and 'max_det=3 was reached on 1 of 1 images; what was left out scores at most 0.7' in said
    detect(Many(), tmp_path/'a.png', max_det=8, workers=0)
    assert 'max_det' not in ''.join(capfd.readouterr())

def test_pictures_beyond_pillows_limit_are_ours(tmp_path):
    def chunk(k, d): return struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k + d))
    def png(w, h): return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 0, 0, 0, 0))
                           + chunk(b'IDAT', b'') + chunk(b'IEND', b''))
    (tmp_path/'h.png').write_bytes(png(20_000, 15_000))
    assert image_size(tmp_path/'h.png') == (20_000, 15_000)
    (tmp_path/'h.png').write_bytes(png(60_000, 50_000))
    with pytest.raises(ValueError, match='cut it into several'): image_size(tmp_path/'h.png')

def test_reading_nothing_is_an_error(tmp_path):
    for k in 'ab': (tmp_path/f'{k}.png').write_bytes(b'no picture')
    with pytest.raises(DetectError, match='none of 2 images could be read, the first: .*a.png'):
        detect(Red(), tmp_path, workers=0)
