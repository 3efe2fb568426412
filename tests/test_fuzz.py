"""Formats on hostile input: bytes flipped, values swapped, files cut, archives with odd names. A table or an error of
our own, nothing else; what was read is written back byte for byte; nothing is run, nothing outside is written."""
import contextlib, copy, io, json, os, random, resource, shutil, struct, sys, tarfile, tempfile, time, zipfile
from pathlib import Path

import cv2, numpy as np, pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from yolokit.core.files import FormatError
from yolokit.data.archives import _crc32c
from yolokit.data.described import DESCRIBED
from yolokit.data import formats
from yolokit.data.formats import read, write
from yolokit.data.table import TableError
from test_field_formats import MEMBERS

ATM = {'atm-json': ('atm.yaml', 'adapter: A\nfiles: "ann/*.json"\nimage: {file: pic.name, width: pic.w, height: '
                                'pic.h}\nbox: {each: "found[]", class: kind.code, cx: geo.mx, cy: geo.my, w: geo.b, h: '
                                'geo.h, score: sure}\n'
                    'unit: fraction\nclasses: {11: sedan, 12: 버스}\n',
                    'ann/a.json', '{"pic": {"name": "a.jpg", "w": 100, "h": 50}, "found": [{"kind": {"code": 11}, '
                                  '"geo": {"mx": 0.50, "my": 0.5, "b": 0.25, "h": 0.25}, "by": "민수"}, {"kind": '
                                  '{"code": "12"}, "geo": {"mx": 0.1, "my": 0.1, "b": -1e-3, "h": 2}, "sure": 0.5}]}'),
       'atm-csv': ('atm.yaml', 'adapter: B\nfiles: boxes.csv\nimage: {file: 파일}\nbox: {class: 종류, x0: 좌, y0: 상, x1: 우, '
                               'y1: 하}\n',
                   'boxes.csv', '파일,종류,좌,상,우,하,메모\na.jpg,승용차,1,2,3.50,4,"x, '
                                '""y"""\nb.jpg,버스,10,2,3,4,\n\nc.jpg,,,,,,\n'),
       'atm-xml': ('atm.yaml', 'adapter: C\nfiles: all.xml\nimage: {each: "pic[]", file: "@src"}\nbox: {each: "obj[]", '
                               'class: "@type", x0: left, y0: top, w: width, h: height}\n',
                   'all.xml', '<?xml version="1.0"?>\n<set made="2024">\n <pic src="a.jpg"><obj type="car">'
                              '<left>1</left><top>2</top><width>3.0</width><height>4</height><who>민수</who></obj>'
                              '</pic>\n <!-- none --><pic src="b.jpg"/>\n</set>\n')}
SEEDS = {'coco': ('a.json', json.dumps(dict(
             info={'by': '누리'}, images=[dict(id=4, file_name='b.jpg', width=20, height=10),
                                        dict(id=2, file_name='맑음.jpg', width=20, height=10)],
             annotations=[dict(id=9, image_id=4, category_id=18, bbox=[0.1, 0.2, 0.3, 5], area=1.0, iscrowd=0,
                               segmentation=[[1, 2, 3, 4, 5, 6]], who='me'),
                          dict(id=2, image_id=99, category_id=1, bbox=[1, 1, 1, 1]),
                          dict(id=3, image_id=2, category_id=1, bbox=[30, 5, -12, 6], iscrowd=1, score=.5)],
             categories=[dict(id=18, name='dog'), dict(id=1, name='person')]), ensure_ascii=False)),
         'yolo': ('labels/train/a.txt', '0 .5 .5 .2 .1\n\n1 .2 .1 .4 .1 .3 .5\r\n1 0.5 5e-1 .5 .5 0.9'),
         'yolo-yaml': ('data.yaml', 'path: .\ntrain: images/train\nval: [images/val]\nnc: 2\nnames: {0: car, 1: '
                                    '버스}\nroboflow: {x: 1}\n'),
         'darknet': ('obj.data', 'classes = 2\ntrain = data/train.txt\nvalid = valid.txt\nnames = obj.names\n'
                                 'backup = backup/\n'),
         'darknet-list': ('train.txt', 'images/a.jpg\n/gone/images/b.jpg\n../c.jpg\n'),
         'voc': ('Annotations/a.xml',
                 '<annotation><filename>a.jpg</filename><source><database>mine</database></source>\n'
                 '<size><width>640</width><height>480</height><depth>3</depth></size>\n'
                 '<object><name>RBC</name><pose>left</pose><difficult>1</difficult><bndbox><xmin>453</xmin>'
                 '<ymin>81.50</ymin><xmax>400</xmax><ymax>182</ymax></bndbox></object>\n'
                 '<object><name>가</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>'
                 '</object></annotation>'),
         'voc-list': ('ImageSets/Main/val.txt', 'a\nb\n'),
         'labelme': ('a.json', '{"version": "5.4.1", "flags": {}, "shapes": [{"label": "car", "points": [[9.0, 8], '
                               '[1.50, 2]], "group_id": null, "shape_type": "rectangle", "flags": {}},\n {"label": '
                               '"p", "points": [[1, 1]], "shape_type": "point"},\n'
                     ' {"label": "버스", "points": [[1, 1], [5, 1], [3, 7.5]], "shape_type": "polygon"}], "imagePath": '
                     '"a.jpg", "imageData": null, "imageHeight": 50, "imageWidth": 100}'),
         'cvat': ('annotations.xml',
                  '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
                  '  <meta><task><labels><label><name>car</name></label><label><name>버스</name></label></labels>'
                  '</task></meta>\n'
                  '  <image id="0" name="a.jpg" subset="train" width="100" height="50">\n    <box label="car" '
                  'occluded="0" xtl="1.50" ytl="2.00" xbr="30.1" ybr="40" z_order="0">\n      <attribute '
                  'name="x">1</attribute>\n    </box>\n'
                  '    <polygon label="버스" points="1.0,2.0;3.5,4;5,1"/>\n    <tag label="car"/>\n  </image>\n  <image '
                  'id="1" name="b.jpg" width="100" height="50"/>\n</annotations>\n'),
         'cvat-shapes': ('annotations.xml',
                         '<annotations><meta><job><labels><label><name>car</name></label></labels></job></meta>'
                         '<image id="0" name="a.jpg" width="100" height="50"><box label="car" xtl="1" ytl="2" xbr="30" '
                         'ybr="40" rotation="33.5"/><ellipse label="car" cx="20" cy="20" rx="5" ry="8.5"/><mask '
                         'label="car" left="10" top="12" width="4" height="6" rle="1, 20, 3"/><polyline label="car" '
                         'points="1,1;5,5;9,2"/><skeleton label="car"><points label="1" points="3,4"/></skeleton>'
                         '</image></annotations>'),
         'cvat-film': ('annotations.xml',
                       '<annotations><meta><task><labels><label><name>car</name></label></labels><original_size>'
                       '<width>64</width><height>48</height></original_size></task></meta><track id="0" label="car">'
                       '<box frame="0" outside="0" xtl="5" ytl="6" xbr="30" ybr="40"/><box frame="2" outside="1" '
                       'xtl="5" ytl="6" xbr="30" ybr="40"/></track></annotations>'),
         'voc-shapes': ('Annotations/a.xml',
                        '\n<?xml version="1.0" encoding="UTF8"?>\n<annotation><filename>a.jpg</filename><object><name>a'
                        '</name><robndbox><cx>30</cx><cy>20</cy><w>20</w><h>10</h><angle>0.7</angle></robndbox>'
                        '</object>'
                        '<object><name>b</name><polygon><x1>5</x1><y1>6</y1><x2>30</x2><y2>6</y2></polygon></object>'
                        '<object><name>c</name><deleted>0</deleted><polygon><pt><x>5</x><y>6</y></pt><pt><x>30</x>'
                        '<y>6</y></pt></polygon></object></annotation>'),
         'labelme-shapes': ('a.json', '{"shapes": [{"label": "car", "points": [[20, 20], [26, 20]], "shape_type": '
                            '"circle"}, {"label": "car", "points": [[35, 10], [35, 30], [25, 30], [25, 10]], '
                            '"shape_type": "rotation", "direction": 1.57}], "imagePath": "a.jpg", '
                            '"imageData": "AAAA"}'),
         'coco-masks': ('a.json', '{"images": [{"id": "1", "file_name": "../a.jpg"}], "annotations": [{"id": 1, '
                        '"image_id": 1, "category_id": 1, "segmentation": {"counts": "04", "size": [2, 2]}}, {"id": 2, '
                        '"image_id": 1, "category_id": 1, "segmentation": [[1, 2, 3, 4, 5, 6]]}], "categories": '
                        '[{"id": 0, "name": "p", "supercategory": "none"}, '
                        '{"id": 1, "name": "c", "supercategory": "p"}]}'),
         'kitti': ('label_2/000001.txt', 'Car 0.00 0 -1.57 614.24 181.78 727.31 284.77 1.57 1.73 4.15 1.00 1.75 13.22 '
                                         '-1.62\nDontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 '
                                         '-1000 -10\n'),
         'parking': ('train/label/Train.json', '{"images": [{"id": 0, "file_name": "경기도.png", "width": 100, "height": '
                                               '50}], "annotations": [{"image_id": 0, "category_id": 14, "bbox": [1, '
                                               '2, 3, 4.0]}]}'),
         **{k: v[2:] for k, v in ATM.items()}, **{k + '-yaml': v[:2] for k, v in ATM.items()}}
SEEDS |= {'atm-records': ('t.rec.yaml', '- boxes:\n  - {label: Green, x_max: 30, x_min: 5.5, y_max: 40, y_min: 6}  # \n'
                                        '  path: ./a.jpg\n- {boxes: [], path: b.jpg}\n'),
          'atm-records-yaml': ('adapter.yaml', 'adapter: lights\nfiles: "*.rec.yaml"\nimage: {each: "[]", file: path}\n'
                               'box: {each: "boxes[]", class: label, x0: x_min, y0: y_min, x1: x_max, y1: y_max}\n'),
          'atm-comma': ('표.csv', '파일;종류;x;y;w;h\na.jpg;차;5,5;6;24,5;34\n'),
          'atm-comma-yaml': ('adapter.yaml', 'adapter: sheet\nfiles: "*.csv"\nseparator: ";"\ndecimal: ","\nimage: '
                             '{file: 파일}\nbox: {class: 종류, x0: x, y0: y, w: w, h: h}\n')}
SEEDS |= {name: (file, text if isinstance(text, str) else json.dumps(text, ensure_ascii=False))
          for name, file, text, _ in MEMBERS}
SEEDS |= {'vott': ('target/vott-json-export/p.json',
                   '{"name": "p", "assets": {"9": {"asset": {"name": "a.jpg", "size": {"width": 64, "height": 48}}, '
                   '"regions": [{"id": "x", "type": "RECTANGLE", "tags": ["cat"], "boundingBox": {"height": 34, '
                   '"width": 25, "left": 5, "top": 6}, "points": [{"x": 5, "y": 6}]}]}}}'),
          'visdrone': ('annotations/a.txt', '5,6,25,34,1,4,0,0\n1,1,9,9,0,0,0,0,\n'),
          'openimages-classes': ('class-descriptions-boxable.csv', '/m/01yrx,Cat\n/m/0bt9lr,"Dog, 개"\n'),
          'keras-classes': ('_classes.txt', 'dog\ncat\nbird\n고양이\n'),
          'mot-sequence': ('train/MOT17-02/seqinfo.ini', '[Sequence]\nname=MOT17-02\nimDir=img1\nimWidth=64\n'),
          'tf-csv plain': ('train_labels.csv', 'filename,width,height,class,xmin,ymin,xmax,ymax\r\n'
                           'a.jpg,64,48,차,5.5,6,30,40\r\nb 1.jpg,64,48,cat,1,2,1e1,4\r\na.jpg,64,48,cat,-3,4,7,8\r\n')}
BY_COLUMNS = 'mot', 'openimages', 'tf-csv plain'
AROUND = {'yolo': ['yolo-yaml'], 'yolo-yaml': ['yolo'], 'darknet': ['darknet-list'], 'darknet-list': ['darknet'],
          'voc-list': ['voc'], 'voc': ['voc-list'],
          'openimages-classes': ['openimages'], 'keras-classes': ['keras'], 'mot-sequence': ['mot'],
          **{k: [k + '-yaml'] for k in (*ATM, 'atm-records', 'atm-comma')},
          **{k + '-yaml': [k] for k in (*ATM, 'atm-records', 'atm-comma')}}
TOKENS = [b'\x00', b'\xff\xfe', b'\xef\xbb\xbf', b'"', b"'", b'{', b'}', b'[', b']', b'<', b'>', b'/>', b'</', b'&amp;',
          b'&#0;', b'<!--', b'<![CDATA[', b',', b';', b':', b'-', b'1e999', b'nan', b'NaN', b'inf', b'-Infinity',
          b'9' * 30, b'9' * 5000, b'null', b'true', b'../../', b'/etc/passwd', b'C:\\x', b'\\ud800', b'\xed\xa0\x80',
          b'\r', b'\n\n', b'\t', b' ', b'1_000', b'0x10', '１'.encode(), b'*a', b'&a ', b'!!python/object:os.system',
          b'<<: *a', b'[' * 3000, b'%', b'\x85', '\u2028'.encode()]
ODD = [None, True, False, 0, -1, 1e308, -0.0, 10**18, 10**400, float('nan'), float('inf'), '', '0', 'x', '\0',
       '../../x', '\ud800', [], {}, [[]], [None], {'id': 1}, [1, 2, 3, 4], 'a' * 5000, '١', [[[[1]]]]]


def example(w=64, h=48) -> bytes:
    "A `tf.train.Example` as TensorFlow's own tools write it."
    def field(n, b): return bytes([n << 3 | 2]) + bytes([len(b) & 127 | 128, len(b) >> 7]) + b
    kinds = dict(b=lambda v: field(1, b''.join(field(1, x) for x in v)), i=lambda v: field(3, field(1, bytes(v))),
                 f=lambda v: field(2, field(1, struct.pack(f'<{len(v)}f', *v))))
    ok, png = cv2.imencode('.png', np.zeros((h, w, 3), np.uint8))
    box = {f'image/object/bbox/{k}': ('f', [v]) for k, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), (.1, .2, .5, .75))}
    all = {'image/encoded': ('b', [png.tobytes()]), 'image/filename': ('b', [b'a.png']), 'image/width': ('i', [w]),
           'image/height': ('i', [h]), 'image/object/class/text': ('b', [b'cat']),
           'image/object/class/label': ('i', [1])} | box
    return field(1, b''.join(field(1, field(1, k.encode()) + field(2, kinds[t](v))) for k, (t, v) in all.items()))


def record(data: bytes) -> bytes:
    "A record of a TFRecord file."
    def sum_of(b): c = _crc32c(b); return struct.pack('<I', ((c >> 15 | c << 17) + 0xA282EAD8) & 0xFFFFFFFF)
    head = struct.pack('<Q', len(data))
    return head + sum_of(head) + data + sum_of(data)


INSIDE = {'data.yaml': b'train: train/images\nnames: [cat, \xea\xb0\x9c]\n', 'train/labels/a.txt': b'0 .5 .5 .25 .25\n',
          'train/images/a.png': cv2.imencode('.png', np.zeros((8, 8, 3), np.uint8))[1].tobytes()}
PACKED = {'zip': '.zip', 'tar': '.tar', 'tgz': '.tar.gz', 'txz': '.tar.xz', 'tfrecord': '.tfrecord'}


def packed(kind: str, r: random.Random) -> bytes:
    "An archive or a TFRecord: whole and then changed, or with changed names and contents and right checksums."
    inner = r.random() < .5
    def some(b): return flipped(b, r) if inner and r.random() < .4 else b
    if kind == 'tfrecord':
        data = record(some(example())) + record(some(example()))
    else:
        files = [(some(k.encode()).decode(errors='replace') if r.random() < .5 else k, some(v))
                 for k, v in INSIDE.items()]
        out = io.BytesIO()
        if kind == 'zip':
            with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
                for k, v in files: z.writestr(zipfile.ZipInfo(k.replace('\0', '') or 'x'), v)
        else:
            with tarfile.open(fileobj=out, mode='w:' + dict(tar='', tgz='gz', txz='xz')[kind]) as t:
                for k, v in files:
                    m = tarfile.TarInfo(k); m.size = len(v)
                    if inner and r.random() < .1:
                        m.size, m.linkname = 0, '/etc/passwd'
                        m.type = r.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
                    t.addfile(m, io.BytesIO(v))
        data = out.getvalue()
    return data if inner else flipped(data, r)


def flipped(data: bytes, r: random.Random) -> bytes:
    b = bytearray(data)
    for _ in range(r.choice((1, 1, 1, 2, 4, 16))):
        i, j = sorted(r.randrange(len(b) + 1) for _ in range(2))
        what = r.randrange(7)
        if what == 0 and b: b[i % len(b)] ^= 1 << r.randrange(8)
        elif what == 1: b[i:i] = r.choice(TOKENS)
        elif what == 2: b[i:min(j, i + 40)] = b''
        elif what == 3: b[i:i + r.randrange(6)] = r.choice(TOKENS)
        elif what == 4: b[j:j] = b[i:min(j, i + 200)]
        elif what == 5: b[i:] = b'' if r.random() < .3 else b[i + 1:]
        elif b: b[i % len(b)] = r.randrange(256)
    return bytes(b)


def swapped(data: bytes, r: random.Random) -> bytes:
    "A json with one or more of its values replaced."
    d = json.loads(data)
    for _ in range(r.choice((1, 1, 2, 5))):
        at, way = d, []
        while isinstance(at, dict | list) and at and (not way or r.random() < .8):
            k = r.choice(list(at)) if isinstance(at, dict) else r.randrange(len(at))
            way.append((at, k)); at = at[k]
        if way:
            box, k = way[-1]
            if r.random() < .15: del box[k]
            else: box[k] = copy.deepcopy(r.choice(ODD))
    return json.dumps(d).encode('utf-8', 'surrogatepass')


_watched, _seen = [], []  # the folder that may be written while a campaign runs; what else was done
_NEVER = ('os.system', 'os.exec', 'os.fork', 'os.posix_spawn', 'pty.spawn', 'subprocess.Popen', 'socket.connect',
          'ctypes.dlopen', 'pickle.find_class')


def _watch(event, args):
    if not _watched: return
    if event in _NEVER: _seen.append((event, args))
    if event == 'exec' and args[0].co_filename == '<string>':
        asks = sys._getframe(1).f_code.co_filename  # named tuples are made by eval
        if 'collections' not in asks: _seen.append((event, asks))
    paths = args[:1] if event in ('open', 'os.mkdir') else args[:2] if event in ('os.link', 'os.rename') else ()
    if event == 'os.symlink': paths = os.path.join(os.path.dirname(os.fsdecode(args[1])), os.fsdecode(args[0])), args[1]
    reads = event == 'open' and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    for p in (os.path.abspath(os.fsdecode(p)) for p in paths if isinstance(p, str | bytes | os.PathLike)):
        if reads and p != '/etc/passwd' or p.startswith((_watched[0], '/dev/')) or '__pycache__' in p: continue
        _seen.append((event, p))


@contextlib.contextmanager
def nothing_else(folder: Path):
    "Refuse programs, connections, code in data, and files that are opened for writing outside of a folder."
    if _watch not in _hooks: sys.addaudithook(_watch); _hooks.append(_watch)
    _watched.append(str(folder)); _seen.clear()
    try: yield
    finally: _watched.clear()
    assert not _seen, _seen[:3]


_hooks = []


def folder_of(name: str, data: bytes, d: Path) -> Path:
    shutil.rmtree(d, ignore_errors=True)
    for other in AROUND.get(name, []):
        file, text = SEEDS[other]
        (d/file).parent.mkdir(parents=True, exist_ok=True); (d/file).write_text(text, encoding='utf-8')
    if name.startswith('darknet'): (d/'obj.names').write_text('car\n버스\n', encoding='utf-8')
    (d/SEEDS[name][0]).parent.mkdir(parents=True, exist_ok=True)
    (d/SEEDS[name][0]).write_bytes(data)
    return d


def one_packed(kind: str, data: bytes, d: Path) -> str:
    "Read an archive, and write what was in it."
    for k in ('in', 'out', 'cache'): shutil.rmtree(d/k, ignore_errors=True)
    (d/'in').mkdir()
    (d/f'in/x{PACKED[kind]}').write_bytes(data)
    start = time.process_time()
    try: t = read(d/f'in/x{PACKED[kind]}')
    except (FormatError, TableError) as e:
        assert len(str(e)) < 2000 and str(e).count('. '), e
        return 'error'
    finally: assert time.process_time() - start < 5, 'too slow'
    with contextlib.suppress(FormatError): write(t, d/'out', t.extra['format'])
    return 'table'


def values_of(t) -> list:
    "All that a table holds, to be compared."
    rows = [{k: [*map(repr, v.tolist())] for k, v in c.items() if k != 'source'} for c in (t.images, t.boxes)]
    return [*rows, t.names, t.category_ids, [(s.text, s.images, s.boxes) for s in t.extra['sources']]]


def one(name: str, data: bytes, d: Path) -> str:
    "Read, and if it can be read write it in its own format and to COCO; what came of it."
    folder_of(name, data, d/'in')
    given = name.split()[0]
    format = 'adapter' if name.startswith('atm') else given if given in DESCRIBED else name.split('-')[0]
    start = time.process_time()
    try:
        t = read(d/'in', format)
        repr(t)
    except (FormatError, TableError) as e:
        assert len(str(e)) < 2000 and str(e).count('. '), e
        return 'error'
    finally: assert time.process_time() - start < 5, 'too slow'
    with contextlib.suppress(FormatError): read(d/'in')
    if name in BY_COLUMNS:
        with pytest.MonkeyPatch.context() as m:
            m.setattr(formats, 'read_columns', lambda *a: None)
            assert values_of(read(d/'in', format)) == values_of(t), name
    for f in (format, 'coco'):
        shutil.rmtree(d/'out', ignore_errors=True)
        try: write(t, d/'out', f)
        except FormatError: continue
        back = d/'out'/SEEDS[name][0]
        if f == format and back.exists() and not name.startswith('darknet'): assert back.read_bytes() == data, name
    return 'table'


def campaign(n: int, seed: int) -> dict:
    r, count, names = random.Random(seed), {}, [*SEEDS, *PACKED]
    with tempfile.TemporaryDirectory(dir='/dev/shm' if os.path.isdir('/dev/shm') else None) as tmp, \
            contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), \
            pytest.MonkeyPatch.context() as m:
        m.setenv('YOLOKIT_CACHE', f'{tmp}/cache')
        check_seeds(Path(tmp))  # and what is imported late
        for k in range(n):
            name = names[k % len(names)]
            if name in PACKED: data = packed(name, r)
            else:
                data, json_file = SEEDS[name][1].encode(), SEEDS[name][0].endswith('.json')
                data = swapped(data, r) if json_file and r.random() < .5 else flipped(data, r)
            try:
                with nothing_else(tmp): what = (one_packed if name in PACKED else one)(name, data, Path(tmp))
            except Exception as e:
                raise AssertionError(f'case {k} of seed {seed}, {name}: {type(e).__name__}: {e}\n{data!r}') from e
            count[name, what] = count.get((name, what), 0) + 1
    return count


def check_seeds(tmp_path):
    for name, (file, text) in SEEDS.items(): assert one(name, text.encode(), tmp_path) == 'table', name
    r = random.Random(0)
    r.random = lambda: .45  # whole
    for kind in PACKED: assert one_packed(kind, packed(kind, r), tmp_path) == 'table', kind
    assert {*DESCRIBED} <= {*SEEDS}


def test_seeds_are_read_and_come_back(tmp_path, monkeypatch):
    monkeypatch.setenv('YOLOKIT_CACHE', str(tmp_path/'cache'))
    check_seeds(tmp_path)


def test_a_few_hundred_broken_files():
    count = campaign(400, seed=0)
    assert (sum(v for (_, w), v in count.items() if w == 'table') > 50
            and sum(v for (_, w), v in count.items() if w == 'error') > 50)


@pytest.mark.soak
@pytest.mark.parametrize('seed', range(7, 11))
def test_twenty_thousand_broken_files(seed):
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, hard))
    try: count = campaign(int(os.environ.get('CASES', 24_000))//4, seed)
    finally: resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    print({what: sum(v for (_, w), v in count.items() if w == what) for what in ('table', 'error')})


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(['a.jpg', '../x', 1, 4]),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(
        st.sampled_from(['id', 'image_id', 'category_id', 'bbox', 'images', 'annotations', 'categories', 'name',
                         'file_name', 'width', 'height', 'shapes', 'points', 'label', 'imagePath', 'area', 'iscrowd',
                         'score', 'segmentation', 'pic', 'found', 'kind', 'geo']), x, max_size=6), max_leaves=25)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(VALUE, st.sampled_from(['coco', 'labelme', 'parking', 'atm-json']))
def test_any_json(value, name):
    with tempfile.TemporaryDirectory() as tmp, contextlib.redirect_stdout(io.StringIO()):
        one(name, json.dumps(value).encode('utf-8', 'surrogatepass'), Path(tmp))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda s: s.encode('utf-8', 'surrogatepass')),
       st.sampled_from(sorted(SEEDS)))
def test_any_bytes(data, name):
    with tempfile.TemporaryDirectory() as tmp, contextlib.redirect_stdout(io.StringIO()): one(name, data, Path(tmp))
