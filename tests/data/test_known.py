"Known sets from a server on this machine: fetched, unpacked, read, prepared; a second call fetches nothing."
import io, tarfile, threading, zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from yolokit.core import download, images
from yolokit.core.files import FormatError, sha256
from yolokit.data import catalog
from yolokit.apps import prepare

PICTURES = [f'{i:012d}.jpg' for i in range(6)]


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()
    def log_message(self, *_): pass


def jpeg(tmp, k):
    images.write_image(tmp/'x.jpg', np.random.default_rng(k).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    return (tmp/'x.jpg').read_bytes()


@pytest.fixture
def served(tmp_path, monkeypatch):
    "A coco128 of six pictures and a VOC of four, behind an address; a checkout and a cache of their own."
    www = tmp_path/'www'; www.mkdir()
    with zipfile.ZipFile(www/'coco128.zip', 'w') as z:
        for k, n in enumerate(PICTURES):
            z.writestr(f'coco128/images/train2017/{n}', jpeg(tmp_path, k))
            z.writestr(f'coco128/labels/train2017/{n[:-4]}.txt', f'{k} .5 .5 .25 .5\n')
    for part, rows in dict(VOCtrainval=(0, 1), VOCtest=(2, 3)).items():
        with tarfile.open(www/f'{part}.tar', 'w') as t:
            def add(name, body):
                i = tarfile.TarInfo(f'VOCdevkit/VOC2007/{name}'); i.size = len(body)
                t.addfile(i, io.BytesIO(body))
            for k in rows:
                add(f'JPEGImages/{k:06d}.jpg', jpeg(tmp_path, k))
                add(f'Annotations/{k:06d}.xml',
                    f'<annotation><filename>{k:06d}.jpg</filename><size><width>60</width><height>40</height>'
                    f'<depth>3</depth></size><object><name>dog</name><bndbox><xmin>5</xmin><ymin>6</ymin>'
                    f'<xmax>25</xmax><ymax>30</ymax></bndbox></object></annotation>'.encode())
            for s, k in zip(('train', 'val') if rows[0] == 0 else ('test', 'test'), rows):
                if s != 'test' or k == 2:
                    add(f'ImageSets/Main/{s}.txt', (f'{k:06d}\n' if s != 'test' else '000002\n000003\n').encode())
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(www)))
    server.asked = []
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
    monkeypatch.setenv('YOLOKIT_ROOT', str(tmp_path))
    monkeypatch.setenv('YOLOKIT_CACHE', str(tmp_path/'cache')); monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setattr(download, '_BACKOFF', .001)
    at = f'http://127.0.0.1:{server.server_port}/'
    monkeypatch.setattr(catalog, 'DATASETS', {
        'coco128': (((at + 'coco128.zip', '', None),), 'coco128', ()),
        'voc2007': (tuple((f'{at}{p}.tar', sha256(www/f'{p}.tar'),
                           (www/f'{p}.tar').stat().st_size) for p in ('VOCtrainval', 'VOCtest')), 'VOCdevkit/VOC2007',
                    ()),
        'wrong': (((at + 'coco128.zip', '0'*64, None),), '', ())})
    yield server
    server.shutdown(); server.server_close()


def test_yolo_zip_becomes_a_prepared_folder(served, tmp_path):
    p = prepare.prepare_if_needed('coco128', split='hash', val=.3)
    t = p.table
    assert (t.n_images == 6 == len(t) and t.names[:2] == ['person', 'bicycle'] and len(t.names) == 80
            and set(t.images['split']) == {'train', 'val'})
    assert (sorted(n for n in (tmp_path/'data').iterdir() if n.name.startswith('.')) == []
            and served.asked == ['/coco128.zip'])
    assert prepare._resolve_source('coco128') == tmp_path/'data/coco128/coco128' and len(served.asked) == 1
    catalog.fetch_dataset('coco128')
    assert (len(served.asked) == 1 and (tmp_path/'cache/sets/coco128.zip.sha256').read_text().split()[0]
            == sha256(tmp_path/'cache/sets/coco128.zip'))


def test_voc_of_two_archives_is_one_folder(served):
    t = prepare.prepare_if_needed('voc2007').table
    assert (t.names == ['dog'] and {s: int((t.images['split'] == s).sum()) for s in ('train', 'val', 'test')}
            == dict(train=1, val=1, test=2))


def test_what_is_not_what_it_should_be_leaves_nothing(served, tmp_path):
    with pytest.raises(FormatError, match='thrown away'): catalog.fetch_dataset('wrong')
    assert not (tmp_path/'data/wrong').exists() and not [p for p in (tmp_path/'data').iterdir()]
