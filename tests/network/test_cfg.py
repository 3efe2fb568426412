"cfg and zoo: lossless text, Darknet's rules, errors with lines."
import json, random, subprocess, sys, warnings
from pathlib import Path
import pytest
from yolokit.network import cfg, zoo
from yolokit.network.cfg import Cfg, CfgError

SHARED = Path(__file__).parents[3]/'shared'
FASTEST = SHARED / 'data/yolo_fastest/yolo-fastest-1.1.cfg'
shared = pytest.mark.skipif(not SHARED.exists(), reason='no ../shared')
NET = '[net]\nwidth=32\nheight=32\nchannels=3\n'
CONV = '[convolutional]\nfilters={}\nsize=1\nactivation=linear\n'


def test_import_is_light():
    "cfg and zoo are read on machines without torch."
    code = ('import sys, yolokit.network.cfg, yolokit.network.zoo; '
            'sys.exit(any(m in sys.modules for m in ("torch", "cv2", "matplotlib", "fastcore", "nbdev")))')
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


@shared
def test_every_public_key_is_known():
    seen = json.loads((SHARED / 'data/darknet_sections.json').read_text())['sections']
    missing = [(s, k) for s, v in seen.items() for k in v['keys'] if k not in cfg.KNOWN_KEYS[s] | cfg.KNOWN_KEYS['*']]
    assert missing == []


def soup(rnd):
    bits = ['[net]', '[yolo]', '[', ']', '=', 'classes=1', ' ', '\t', '\r\n', '\n', '\n', '\r', '#', ';', '###P6',
            '\ufeff', 'mask=0,1', '한글', '\x0b', '\x85', '\u2028', '\0', 'a', '\udc80']
    return ''.join(rnd.choices(bits, k=rnd.randint(0, 40)))


def test_any_text_comes_back():
    rnd = random.Random(1)
    for _ in range(3000):
        t = soup(rnd)
        c = Cfg(t)
        assert str(c) == t
        c.problems()
        for s in c.sections:  # an edit can be read back, and a second one leads to the same text
            d = c.with_value(s.index, 'classes', 7)
            assert d.sections[s.index].get('classes') == '7', t
            assert len(d.sections) == len(c.sections) and d.with_value(s.index, 'classes', 7) == d


def test_any_bytes_come_back(tmp_path):
    raw = b'\xef\xbb\xbf[net]\r\nwidth=32 # \xff\xfe\r\n\r\n[conv]\nfilters=8'
    (tmp_path / 'a.cfg').write_bytes(raw)
    c = Cfg.read(tmp_path / 'a.cfg')
    c.write(tmp_path / 'b.cfg')
    assert (tmp_path / 'b.cfg').read_bytes() == raw and c.net.int('width') == 32 and c.name == 'a'


def test_names_with_dots():
    assert Cfg('', 'x/yolo-fastest-1.1.cfg').name == Cfg('', 'yolo-fastest-1.1').name == 'yolo-fastest-1.1'


def test_unknown_is_warned_about_with_its_line():
    with pytest.warns(UserWarning, match=r'my.cfg:3: \[convolutional\] unknown key `fliters`, did you mean `filters`'):
        c = Cfg.parse('[net]\n[conv]\nfliters=3\n', 'my.cfg')
    assert 'fliters' in c.sections[1]
    with pytest.warns(UserWarning, match=r'my.cfg:2: unknown section \[yolow\], did you mean `yolo`'):
        Cfg.parse('[net]\n[yolow]', 'my.cfg')
    with pytest.warns(UserWarning, match=r'my.cfg:1: neither a section, an option nor a comment'):
        Cfg.parse('hello\n[net]', 'my.cfg')


YOLO = '[yolo]\nmask=0,1\nanchors=1,1, 2,2\nclasses=3\nnum=2\n'
BROKEN = {
    NET + CONV.format(18) + YOLO: (6, 'convolutional', 'filters=16', 18),
    NET + CONV.format(16) + YOLO.replace('1,1, 2,2', '1,1'): (11, 'yolo', 'at least 2 anchors', 1),
    NET + CONV.format(4) + '[route]\nlayers=-1,9\n': (10, 'route', 'a layer above layer 1', '9, which'),
    NET + CONV.format(4) + '[maxpool]\nsize=2\nstride=2\n[route]\nlayers=-1,-2\n':
        (13, 'route', 'equal height and width', '16×16 and 32×32'),
    NET + CONV.format(4) + '[maxpool]\nsize=1\nstride_x=2\n[shortcut]\nfrom=-2\n':
        (13, 'shortcut', 'equal height and width', '32×16 and 32×32'),
    NET + CONV.format(4) + '[maxpool]\nsize=2\nstride=2\n[shortcut]\nfrom=-1,-2\n':
        (13, 'shortcut', 'equal height and width', '16×16 and 32×32'),
    NET + '[se]\nfilters=4\n': (6, 'se', 'filters=3', 4),
    NET + '[connected]\noutput=50\n[detection]\nclasses=1\ncoords=4\nside=3\n': (6, 'connected', 'output=54', 50),
    NET + CONV.format('x'): (6, 'convolutional', 'a number', "'x'"),
    NET + CONV.format(0): (6, 'convolutional', 'at least 1', 0),
    NET + CONV.format(6) + 'groups=4\n': (9, 'convolutional', 'groups that divide 3', 4),
    NET + CONV.format(6).replace('size=1', 'size=99'): (7, 'convolutional', 'at least 99 pixels', 32),
    NET + '[route]\nlayers=-1\n': (6, 'route', 'above layer 0', '-1'),
    NET + '[shortcut]\n': (5, 'shortcut', 'a key `from`', 'none'),
    NET + '[gru]\noutput=8\n': (5, 'gru', 'a layer of a detector', 'a recurrent network'),
    '[net]\nwidth=32\n': (1, 'net', 'a key `height`', 'none'),
    '[net]\nwidth=0\nheight=32\n': (2, 'net', 'at least 1', '3×32×0'),
    '[convolutional]\n': (1, 'convolutional', '[net] as the first', '[convolutional]'),
    '': (1, '', '[net] as the first', 'no section'),
}


@pytest.mark.parametrize('text', BROKEN)
def test_errors_name_line_section_expected_found(text):
    line, section, expected, found = BROKEN[text]
    with pytest.raises(CfgError) as e: Cfg(text, 'my.cfg').plan()
    e = e.value
    assert (e.file, e.line, e.section) == ('my.cfg', line, section), e
    assert expected in e.expected and str(found) in str(e.found) and str(e).startswith(f'my.cfg:{line}: ')


@shared
def test_yolo_fastest():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        c = Cfg.read(FASTEST)
    assert str(c).encode() == FASTEST.read_bytes()
    p = c.plan()
    bn = sum(2 * l.shape[0] for l in p if l.section.int('batch_normalize', 0)) if p else 0
    assert 20 + 4 * (sum(l.params for l in p) + bn) == FASTEST.with_suffix('.weights').stat().st_size
    two = c.with_classes(2)
    assert [l.shape[0] for l in two.plan() if l.type == 'yolo'] == [21, 21]
    a, b = str(c).split('\n'), str(two).split('\n')
    assert (len(a) == len(b)
            and {(x.split('=')[0].strip(), y.split('=')[0].strip()) for x, y in zip(a, b) if x != y}
            == {('filters', 'filters'), ('classes', 'classes')})
    assert two.with_classes(80) == c


def test_with_classes_follows_yolor_s_implicit_layers():
    text = (NET + '[implicit_mul]\nfilters=16\n[route]\nlayers=0\n'
            + CONV.format(16).replace('[conv', '[maxpool]\nsize=1\n[conv') + '[control_channels]\nfrom=0\n' + YOLO)
    c = Cfg(text.replace('[route]\nlayers=0\n', CONV.format(8)), 'y.cfg')
    d = c.with_classes(5)
    assert [l.shape[0] for l in d.plan()] == [20, 8, 8, 20, 20, 20] and d.with_classes(3) == c


def test_with_classes_adds_a_missing_key():
    c = Cfg(NET + CONV.format(50) + YOLO.replace('classes=3\n', '') + '\n# end')
    assert c.plan()[-1].shape[0] == 50  # Darknet's default of 20 classes
    d = c.with_classes(2)
    assert str(d).endswith('num=2\nclasses=2\n\n# end') and d.plan()[0].shape[0] == 14


def test_no_head_is_an_error():
    with pytest.raises(CfgError, match='a head such as'): Cfg(NET + CONV.format(3)).with_classes(2)


@pytest.mark.parametrize('name', zoo.names())
@pytest.mark.parametrize('classes', [1, 14])
def test_zoo_writes_what_it_means(name, classes):
    c = zoo.build(name, classes)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert Cfg.parse(str(c), c.file) == c
    assert c == zoo.build(name, 80).with_classes(classes) and c.plan()[-1].section.int('classes') == classes
    stride = max(c.net.int('width') // l.shape[2] for l in c.plan())
    last = c.with_size(stride * 3, stride * 2).plan()[-1]
    assert last.shape[0] == len(last.section.ints('mask')) * (5 + classes)


def test_nano_takes_anchors_and_stays_small():
    c = zoo.build('yolokit-nano', 14, anchors=[(k, k + 1.5) for k in range(4, 10)])
    p = c.plan()
    assert p[-1].section.floats('anchors')[:4] == [4, 5.5, 5, 6.5]
    assert sum(l.macs for l in p) < .45e9 and 5e5 < sum(l.params for l in p) < 1e6
    assert [c.net.int('width') / l.shape[2] for l in p if l.type == 'yolo'] == [8, 16]


def test_get(tmp_path):
    zoo.build('yolokit-nano', 3).write(tmp_path / 'mine.cfg')
    assert zoo.load_cfg(str(tmp_path / 'mine.cfg')).name == 'mine'
    assert zoo.load_cfg(tmp_path / 'mine.cfg', 14).text == zoo.load_cfg('yolokit-nano', 14).text
    with pytest.raises(ValueError, match='choose one of yolokit-nano'): zoo.load_cfg(tmp_path / 'other.cfg')
