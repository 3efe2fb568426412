"""Names that meet: twins that differ in how their letters are composed, `x.png` beside `x.jpg`, names of 255 bytes.
Every format keeps all pictures with their boxes, or says by name what it cannot hold."""
import unicodedata

import numpy as np, pytest

from yolokit.core.files import FormatError
from yolokit.core.images import write_image
from yolokit.data import formats
from yolokit.data.table import from_columns

NFC, NFD = (unicodedata.normalize(k, '주차장 강남.png') for k in ('NFC', 'NFD'))
NAMES = {'twins': [NFC, NFD], 'suffixes': ['x.png', 'x.jpg'], 'long': ['가'*83 + 'a.png', '나'*83 + 'b.png'],
         'letters': ['a.png', 'A.png'], 'folders': ['1/a.png', '2/a.png']}


def table(folder, names):
    paths = [folder/n for n in names]
    for k, p in enumerate(paths):
        p.parent.mkdir(parents=True, exist_ok=True)
        write_image(p, np.full((40, 60, 3), 20 + 90*k, np.uint8))
    assert len(list(folder.rglob('*.*'))) == len(names)
    n = np.arange(len(names))
    return from_columns(dict(file=names, path=[str(p) for p in paths], width=[60]*len(names), height=[40]*len(names),
                             split=['train']*len(names)),
                        dict(image=n, category=n, x0=4. + 8*n, y0=6. + 2*n, x1=30. + 8*n, y1=26. + 4*n), ['차', 'bus'])


def boxes(t): # of each picture, by its grey value: names may have changed
    from yolokit.core.images import read_image
    out = {}
    for i, p in enumerate(t.images['path']):
        b = t.of(i)
        out[int(read_image(p)[0, 0, 0])//45] = [(t.names[t.boxes['category'][k]], *np.round(t.xyxy[k]).tolist())
                                                for k in b]
    return out


# the others write no pictures, or know other classes
PLAIN = [to for to in formats.WRITERS if to not in ('coco', 'adapter', 'mot', 'visdrone', 'wider')]

@pytest.mark.parametrize('which', NAMES)
@pytest.mark.parametrize('to', PLAIN)
def test_all_pictures_come_back_or_are_named(to, which, tmp_path):
    t = table(tmp_path/'raw', NAMES[which])
    try:
        formats.write(t, tmp_path/'out', to)
        back = formats.read(tmp_path/'out')
    except FormatError as e:
        assert which in ('long', 'folders') and to in ('supervisely', 'openimages', 'hf'), e
        return
    assert boxes(back) == boxes(t)
