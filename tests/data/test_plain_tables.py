"Tables of boxes that are read by columns: what reading them row by row gives, to the last bit."
import numpy as np, pytest
from yolokit.core.files import FormatError, project_root
from yolokit.data import adapters, formats

FIELD = project_root().parent/'shared/data/field/annotations'
TF = 'filename,width,height,class,xmin,ymin,xmax,ymax'
ROWS = ['주차장 1.jpg,640,480,car,10,20,110,220.5', 'b.jpg,640,480,bus,0,0,5,1e1', '주차장 1.jpg,640,480,bus,-3,4,7,8',
        'b.jpg,64,48, car ,1,2,3,4']
OPEN = ('ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside')
OPEN_ROWS = ['0a,xclick,/m/01,1,.1,.5,.2,.4,0,-1,1,0,0', '0b,activemil,/m/02,1,0,1,0.25,0.75,1,1,0,0,0',
             '0a,xclick,/m/02,1,.1,0.123456,.2,.4,0,0,0,0,1']


def both_ways(path, monkeypatch, **how):
    "What two readings hold, and how many files were read by columns."
    real, used, out = adapters.read_columns, [], []
    def columns(*a):
        found = real(*a)
        used.append(found is not None)
        return found
    for f in (columns, lambda *a: None):
        monkeypatch.setattr(formats, 'read_columns', f)
        try: t = formats.read(path, **how)
        except FormatError as e: out.append(str(e)); continue
        of = lambda d: {k: (v.dtype, list(map(repr, v.tolist()))) for k, v in d.items() if k != 'source'}
        sources = [(s.file, s.text, s.codec, s.bom, s.images, s.boxes, s.top) for s in t.extra['sources']]
        rest = {k: v for k, v in t.extra.items() if k not in ('sources', 'papers')}
        out.append((of(t.images), list(t.boxes), of(t.boxes), t.names, t.category_ids, rest, sources))
    assert out[0] == out[1]
    return sum(used), out[0]


def put(folder, text, name='train_labels.csv', encoding='utf-8'):
    folder.mkdir(exist_ok=True)
    (folder/name).write_bytes(text.encode(encoding))
    return folder

@pytest.mark.parametrize('eol', ['\n', '\r\n'])
@pytest.mark.parametrize('end', [True, False])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'cp949'])
def test_rows_and_columns_say_the_same(tmp_path, monkeypatch, eol, end, encoding):
    put(tmp_path/'a', eol.join([TF, *ROWS]) + eol*end, encoding=encoding)
    n, (images, _, boxes, names, *_) = both_ways(tmp_path/'a', monkeypatch)
    assert n == 1 and names == ['bus', 'car'] and images['file'][1] == ["'주차장 1.jpg'", "'b.jpg'"]
    assert boxes['y1'][1] == ['220.5', '10.0', '8.0', '4.0'] and boxes['origin'][1][3] == "'train_labels.csv:5'"

@pytest.mark.parametrize('row', ['"c,d.jpg",64,48,car,1,2,3,4', 'c.jpg,64,48,car,1,2,3', 'c.jpg,64,48,,1,2,3,4', '',
                                 'c.jpg,64,48,car,1,2,3,four', 'c.jpg,64,48,car,1,2,3,nan', 'c.jpg,64,48,car,1,2,3,1_0',
                                 'c.jpg,64,48,car,,,,', ',64,48,car,1,2,3,4', 'c.jpg,64,x,car,1,2,3,4', ' ',
                                 'c.jpg,64,48,car,1,2,3,4\rd.jpg,64,48,car,1,2,3,4'])
def test_an_unusual_row_is_read_as_a_row(tmp_path, monkeypatch, row):
    put(tmp_path/'a', '\n'.join([TF, *ROWS, row, ROWS[0]]) + '\n')
    assert both_ways(tmp_path/'a', monkeypatch)[0] == 0

def test_fractions_codes_flags_and_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, '_PART', 40)
    put(tmp_path/'a', '\n'.join([OPEN, *OPEN_ROWS*5]), 'oidv6-train-annotations-bbox.csv')
    put(tmp_path/'a', '/m/01,Car\n/m/02,Bus\n', 'class-descriptions-boxable.csv')
    n, (images, _, boxes, names, *_) = both_ways(tmp_path/'a', monkeypatch)
    assert n == 1 and names == ['Bus', 'Car'] and boxes['crowd'][1][:3] == ['True', 'False', 'False']
    assert images['split'][1] == ["'train'"]*2 and boxes['truncated'][1][:2] == ['-1', '1']

def test_two_files_one_of_them_unusual(tmp_path, monkeypatch):
    put(tmp_path/'a', '\n'.join([TF, *ROWS]))
    put(tmp_path/'a', '\n'.join([TF, 'e.jpg,64,48,truck,1,2,3,4']), 'val_labels.csv')
    n, (images, *_) = both_ways(tmp_path/'a', monkeypatch)
    assert n == 2 and len(images['file'][1]) == 3
    put(tmp_path/'a', '\n'.join([TF, '"e.jpg",64,48,truck,1,2,3,4']), 'val_labels.csv')
    assert both_ways(tmp_path/'a', monkeypatch)[0] == 1      # the first is, and then all are read again

def test_a_long_table_is_left_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, '_KEPT_TEXT', 10)
    put(tmp_path/'a', '\n'.join([TF, *ROWS]), encoding='utf-8-sig')
    t = formats.read(tmp_path/'a')
    s, = t.extra['sources']
    assert 'text' not in vars(s) and 'boxes' not in vars(s)
    moved = t.with_columns(x0=t.boxes['x0'] - (np.arange(len(t)) == 1))
    formats.write(moved, tmp_path/'out', 'tf-csv')
    want = '\n'.join([TF, ROWS[0], ROWS[1].replace('bus,0,', 'bus,-1,'), *ROWS[2:]])
    found, = (tmp_path/'out').rglob('*.csv')
    assert found.read_bytes() == b'\xef\xbb\xbf' + want.encode()
    t = formats.read(tmp_path/'a')
    put(tmp_path/'a', '\n'.join([TF, *ROWS[:2]]))
    with pytest.raises(FormatError, match='changed since it was read'): formats.write(t, tmp_path/'again', 'tf-csv')

@pytest.mark.skipif(not FIELD.exists(), reason='needs ../shared/data/field')
def test_folders_of_the_field(monkeypatch):
    folders = sorted({p.parent for p in FIELD.rglob('*.csv')})
    assert folders and sum(both_ways(p, monkeypatch)[0] for p in folders)
