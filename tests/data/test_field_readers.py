"Folders of VOC, COCO, labelme, CVAT and KITTI as people have them: read as their tools mean them, or refused."
import base64, json
from pathlib import Path
import numpy as np, pytest
from yolokit.core import images
from yolokit.core.files import FormatError, shared_data_dir
from yolokit.data.table import Table
from yolokit.data.formats import read, write

SHARED = shared_data_dir()
FIELD = SHARED/'data/field/annotations' if SHARED else None
field = pytest.mark.skipif(not (FIELD and FIELD.is_dir()),
                           reason='../shared/data/field/annotations is not beside this checkout')
A, B = [5, 6, 30, 40], [1, 1, 20, 20]

# folder: boxes, names, splits, pictures; behind it the tool or specification that is followed
FOLDERS = {
    'v03_utf8_decl': ([A], ['cat'], [''], ['x/a.jpg']),       # IANA: utf8 is an alias, Python's codecs know it
    'v04_UTF8_decl': ([A], ['cat'], [''], ['x/a.jpg']),       # the same, lxml writes it so
    'v09b_ms949': ([A], ['승용차'], [''], ['x/a.jpg']),        # Python's codecs: ms949 is cp949; Java writes it so
    'v12_leading_newline': ([A], ['cat'], [''], ['x/a.jpg']), # browsers read it; XML 1.0 does not allow it
    'v15_noext_JPG': ([A], ['cat'], [''], ['x/a.JPG']),       # VOC devkit: the picture is found by the record's name
    'v17b_copied_name': ([A, B], ['cat'], ['', ''], ['x/a.jpg', 'x/b.jpg']),  # VOC devkit, torchvision: by its name
    'v23_nobndbox': ([A], ['cat'], [''], ['x/a.jpg']),        # Roboflow: polygon x1 y1 x2 y2 ...
    'v24_robnd': ([[19.1298, 9.7338, 40.8702, 30.2662]], ['cat'], [''], ['x/a.jpg']),  # roLabelImg: radians, clockwise
    'v27_dotunderscore': ([A], ['cat'], [''], ['x/a.jpg']),   # macOS: ._ files hold no data
    'v32_imagesets_ext': ([A, A], ['cat'], ['train', 'val'],  # VOC's lists by class
                          ['JPEGImages/a.jpg', 'JPEGImages/b.jpg']),
    'v33_voc0712': ([A, A], ['cat'], ['train', 'val'],        # VOC devkit: one folder a year
                    ['VOC2007/JPEGImages/000001.jpg', 'VOC2012/JPEGImages/000001.jpg']),
    'v44_darknet_voc': ([[24, 18, 40, 30]], ['cat'], ['train'], ['VOC2007/JPEGImages/a.jpg']),  # Darknet's voc_label.py
    'v46_labelme_xml': ([A], ['car'], [''], ['Images/x/a.jpg']),  # LabelMe (MIT): polygon/pt, deleted
    'c03_ls_media': ([A], ['cat'], [''], ['images/0a1b-a.jpg']),  # Label Studio's export: pictures by their last name
    'c07_str_ids_images': ([A], ['cat'], [''], ['images/a.jpg']),
    'c11_bbox_empty': ([A], ['cat'], [''], ['images/a.jpg']),     # pycocotools reads the others
    'c12_bbox_null': ([A], ['cat'], [''], ['images/a.jpg']),
    'c32_cats_from0_root': ([A], ['cat'], [''], ['images/a.jpg']),  # Roboflow: the project is category 0
    'c41_ext_other': ([A], ['cat'], [''], ['images/a.jpg']),
    'k02_job_labels': ([A], ['dog', 'cat'], [''], ['images/a.jpg']),    # CVAT for images 1.1, exported from a job
    'k03_project_labels': ([A], ['dog', 'cat'], ['train'], ['images/a.jpg']),
    'k05_track_video': ([A, [6, 6, 30, 40]], ['dog', 'cat'], ['']*3,    # CVAT for video 1.1: outside is no box
                        [f'images/frame_00000{k}.PNG' for k in range(3)]),
    'k06_ellipse_mask_poly': ([A, [15, 12, 25, 28], [10, 12, 14, 18], [1, 1, 5, 5]], ['dog', 'cat'], [''],
                              ['images/a.jpg']),
    'k07_skeleton': ([], ['dog', 'cat'], [''], ['images/a.jpg']),
    'l01_circle_point_line': ([A, [14, 14, 26, 26], [1, 1, 5, 5], [1, 1, 9, 5]], ['ball', 'cat', 'l', 'ls'], [''],
                              ['a.jpg']),
    'l14_other_json': ([A], ['cat'], [''], ['a.jpg']),
    'l19_wrong_imagepath': ([A, A], ['cat'], ['', ''], ['a.jpg', 'b.jpg']),
    's07_kitti_two_records': ([A], ['Car'], [''], ['image_2/0.png']),   # KITTI devkit: labels are in label_2
    't01_kitti_full': ([A, [1, 1, 9, 9]], ['Car', 'DontCare'], ['train'], ['training/image_2/000000.png']),
    't02_kitti_imgs': ([A], ['Car'], ['train'], ['training/image_2/000000.png'])}


def check(t, root, boxes, names, splits, pictures):
    np.testing.assert_allclose(t.xyxy, np.reshape(boxes, (-1, 4)), atol=1e-3)
    assert [t.names, t.images['split'].tolist()] == [names, splits]
    assert [Path(p).relative_to(root).as_posix() for p in t.images['path']] == pictures


@field
@pytest.mark.parametrize('name', FOLDERS)
def test_field_folder(name, tmp_path):
    t = read(FIELD/name)
    check(t, FIELD/name, *FOLDERS[name])
    format = t.extra['format']   # and it is written again without a crash, the same boxes in it
    write(t, tmp_path/'out', format)
    assert sorted(map(tuple, read(tmp_path/'out', format).xyxy.round(6))) == sorted(map(tuple, t.xyxy.round(6)))
    for f in (FIELD/name).rglob('*.xml'):
        if format in ('voc', 'cvat') and f.name[0] != '.':
            assert (tmp_path/'out'/f.relative_to(FIELD/name)).read_bytes() == f.read_bytes()


@field
def test_field_two_pictures_of_one_name():
    with pytest.raises(FormatError, match='two pictures.*cam1/1.jpg and .*cam2/1.jpg'): read(FIELD/'c29_same_name_flat')


@field
def test_field_picture_inside_the_json(tmp_path, monkeypatch):
    monkeypatch.setenv('YOLOKIT_CACHE', str(tmp_path))   # labelme: imageData
    t = read(FIELD/'l04_imagedata_only')
    assert images.image_size(t.images['path'][0]) == (64, 48) and t.xyxy.tolist() == [A]
    assert Path(t.images['path'][0]).is_relative_to(tmp_path)


@pytest.fixture
def put(tmp_path):
    "Write a file of a folder; a name of a picture makes one."
    def f(name, text=None, codec='utf-8'):
        p = tmp_path/'set'/name
        p.parent.mkdir(parents=True, exist_ok=True)
        if text is None: images.write_image(p, np.zeros((48, 64, 3), np.uint8))
        else: p.write_bytes((text if isinstance(text, str) else json.dumps(text)).encode(codec))
        return tmp_path/'set'
    return f


def voc(file, *objects, head=''):
    box = '<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>'
    inside = ''.join(f'<object><name>cat</name>{o}</object>' for o in (objects or [box]))
    return f'{head}<annotation><filename>{file}</filename>{inside}</annotation>'


def shape(kind, points, **more): return dict(label='cat', points=points, shape_type=kind) | more
def labelme(file, *shapes, **more):
    return dict(imagePath=file, imageWidth=64, imageHeight=48, shapes=list(shapes)) | more
def coco(*anns, images=None, categories=None):
    return dict(images=images or [dict(id=1, file_name='a.jpg', width=64, height=48)], annotations=list(anns),
                categories=categories or [dict(id=1, name='cat')])
def cvat(inside, meta='task'):
    labels = ''.join(f'<label><name>{n}</name></label>' for n in ('dog', 'cat'))
    size = '<original_size><width>64</width><height>48</height></original_size>'
    return f'<annotations><meta><{meta}><labels>{labels}</labels>{size}</{meta}></meta>{inside}</annotations>'


@pytest.mark.parametrize('said, codec', [('EUC-KR', 'euc-kr'), ('ks_c_5601-1987', 'cp949'), ('uhc', 'cp949'),
                                         ('Utf8', 'utf-8'), ('utf-16', 'utf-8'), ('UTF-16', 'utf-16'), ('', 'cp949')])
def test_encodings(put, said, codec, tmp_path):
    head = f'\n<?xml version="1.0" encoding="{said}"?>\n' if said else ''
    text = voc('a.jpg', head=head.lstrip() if codec == 'utf-16' else head).replace('cat', '승용차')
    root = put('a.xml', text, codec)   # a record at the top of its folder
    put('a.jpg')
    t = read(root)
    assert t.names == ['승용차'] and t.xyxy.tolist() == [A]
    write(t, tmp_path/'out', 'voc')
    assert (tmp_path/'out/a.xml').read_bytes() == (root/'a.xml').read_bytes()
    assert read(root/'a.xml').xyxy.tolist() == [A]   # named itself


def test_an_encoding_of_no_text_is_refused(put):
    with pytest.raises(FormatError, match="encoding 'zlib' is not known"):
        read(put('a.xml', voc('a.jpg', head='<?xml version="1.0" encoding="zlib"?>')))


@pytest.mark.parametrize('format', ['voc', 'labelme', 'kitti', 'cvat', 'coco'])
def test_two_records_of_one_picture(put, tmp_path, format):
    put('d/a.jpg'); put('e/a.json', labelme('../d/a.jpg', shape('rectangle', [[5, 6], [30, 40]])))
    root = put('f/c.json', labelme('../d/a.jpg', shape('rectangle', [[1, 1], [20, 20]])))
    t = read(root)
    assert t.xyxy.tolist() == [A, B] and len(set(t.images['path'])) == 1
    write(t, tmp_path/'out', format)
    assert sorted(read(tmp_path/'out', format).xyxy.tolist()) == sorted([A, B])
    write(t, tmp_path/'same', 'labelme')
    assert read(tmp_path/'same').xyxy.tolist() == [A, B]


def test_a_copied_record_gets_the_picture_of_its_own_name(put):
    for k in 'ab': put(f'JPEGImages/{k}.jpg')
    root = put('Annotations/a.xml', voc('a.jpg')); put('Annotations/b.xml', voc('a.jpg'))
    assert [Path(p).name for p in read(root).images['path']] == ['a.jpg', 'b.jpg']


def test_other_files_are_left_alone(put, capsys):
    put('Annotations/a.xml', voc('a.jpg')); put('JPEGImages/a.jpg')
    put('pom.xml', '<!-- a <annotation> --><project/>'); put('.idea/misc.xml', '<x/>'); put('__MACOSX/b.xml', '\0')
    root = put('Annotations/._a.xml', '\0\0')
    t = read(root, 'voc')
    assert len(t) == t.n_images == 1 and 'set_aside' not in t.extra
    assert '1 other files are left alone: pom.xml' in capsys.readouterr().out


def test_kitti_reads_labels_only(put):
    row = 'Car 0 0 0 5 6 30 40 0 0 0 0 0 0 0\n'
    put('training/label_2/1.txt', row); put('training/calib/1.txt', 'P0: 7 0 6 0 0 7 1 0 0 0 1 0\n')
    put('README.txt', row); put('training/image_2/1.png')
    assert read(put('testing/image_2/1.png')).xyxy.tolist() == [A]


def test_one_odd_record_does_not_refuse_the_set(put, tmp_path):
    good = dict(id=1, image_id=1, category_id=1, bbox=[5, 6, 25, 34])
    odd = [dict(good, id=2, bbox=None), dict(good, id=3, bbox=['x', 1, 2, 3]), 'none', dict(good, id=4, iscrowd=7)]
    src = coco(good, *odd, images=[dict(id=1, file_name='a.jpg', width=64, height=48), dict(id=2)])
    root = put('a.json', src)
    t = read(root/'a.json')
    assert t.xyxy.tolist() == [A] and [i for i, _ in t.extra['set_aside']] == [-1, 0, 0, -1, 0]
    with pytest.raises(FormatError): read(root/'a.json', strict=True)
    write(t, tmp_path/'b.json', 'coco')
    assert (tmp_path/'b.json').read_bytes() == (root/'a.json').read_bytes()
    write(t.with_xyxy([[6, 6, 30, 40]]), tmp_path/'c.json', 'coco')   # the odd ones stay when another changes
    assert json.loads((tmp_path/'c.json').read_text())['annotations'][1:] == odd


@pytest.mark.parametrize('format, good, bad', [
    ('voc', voc('a.jpg'), voc('b.jpg', '<bndbox><xmin>l</xmin></bndbox>')), ('voc', voc('a.jpg'), '<annotation><obj'),
    ('labelme', labelme('a.jpg', shape('rectangle', [[5, 6], [30, 40]])), labelme('b.jpg', shape('rectangle', [[5]]))),
    ('labelme', labelme('a.jpg', shape('rectangle', [[5, 6], [30, 40]])), '{"shapes": [')])
def test_an_odd_file_or_record_is_written_back(put, tmp_path, format, good, bad):
    suffix = 'xml' if format == 'voc' else 'json'
    put('a.jpg'); put(f'a.{suffix}', good); root = put(f'b.{suffix}', bad)
    t = read(root, format)
    assert t.xyxy.tolist() == [A] and len(t.extra['set_aside']) == 1
    with pytest.raises(FormatError): read(root, format, strict=True)
    write(t, tmp_path/'out', format)
    assert (tmp_path/f'out/b.{suffix}').read_bytes() == (root/f'b.{suffix}').read_bytes()


@pytest.mark.parametrize('segmentation, box', [
    ([[5, 6, 30, 6, 20, 40]], A), ([[5, 6, 9, 6, 9, 9], [20, 20, 30, 20, 30, 40]], A),
    (dict(counts=[4, 1, 1, 3], size=[3, 3]), [1, 0, 3, 3]), (dict(counts='04', size=[2, 2]), [0, 0, 2, 2])])
def test_a_box_from_its_segmentation(put, tmp_path, segmentation, box):
    a = dict(id=1, image_id=1, category_id=1, segmentation=segmentation)   # COCO API: rleToBbox
    root = put('a.json', coco(a)); t = read(root/'a.json')
    assert t.xyxy.tolist() == [box]
    write(t, tmp_path/'b.json', 'coco')
    assert (tmp_path/'b.json').read_bytes() == (root/'a.json').read_bytes()
    write(t.with_xyxy([A]) if box != A else t.with_xyxy([B]), tmp_path/'c.json', 'coco')
    assert read(tmp_path/'c.json').xyxy.tolist() == [A if box != A else B]


def test_ids_as_text(put):
    a = dict(id='7', image_id='1', category_id='1', bbox=[5, 6, 25, 34])
    assert read(put('a.json', coco(a))/'a.json').xyxy.tolist() == [A]


def test_new_boxes_get_ids_as_the_file_has_them(put, tmp_path):
    for ids, new in ((['b1', 'b2'], '1'), (['7', '9'], '10'), ([7, 9], 10)):
        one = dict(image_id='1', category_id='c', bbox=[5, 6, 25, 34])
        d = coco(*(dict(one, id=i) for i in ids), images=[dict(id='1', file_name='a.jpg', width=64, height=48)],
                 categories=[dict(id='c', name='cat')])
        t = read(put('a.json', d))
        b = {k: np.concatenate([v, v[:1]]) for k, v in t.boxes.items()}
        b['slot'][-1], b['id'][-1], b['x1'][-1] = -1, None, 31
        write(Table.make(t.images, b, t.names, t.category_ids, t.extra), tmp_path/f'{ids}.json', 'coco')
        assert [a['id'] for a in json.loads((tmp_path/f'{ids}.json').read_text())['annotations']] == [*ids, new]


@pytest.mark.parametrize('part, file, text, where', [
    ('annotations/instances_train2017.json', 'train2017/a.jpg', coco(), 'train2017/'),
    ('annotations', 'images/a.jpg', coco(), 'images/'),
    ('Annotations', 'JPEGImages/a.jpg', voc('a.jpg'), 'JPEGImages/'),
    ('labels', 'images/a.jpg', '0 .5 .5 .5 .5\n', 'images/'),
    ('labels/train', 'images/train/a.png', '0 .5 .5 .5 .5\n', 'images/train/'),
    ('ann/annotations.xml', '사진/a.jpg', cvat('<image id="0" name="a.jpg" width="64" height="48"/>'), '사진/')])
def test_a_part_of_a_set_says_where_its_pictures_lie(put, capsys, part, file, text, where):
    names = {'annotations': 'instances_all.json', 'Annotations': 'a.xml', 'labels': 'a.txt', 'labels/train': 'a.txt'}
    put(file)
    t = read(put(f'{part}/{names[part]}' if part in names else part, text)/part)
    assert not any(t.images['path'])
    assert f'is there, but the first lies in {where} of the folder set: read that folder.' in capsys.readouterr().out
    put(f'{part}/a.jpg' if part in names else f'{Path(part).parent}/a.jpg')
    read(put('x.txt', '')/part)
    assert 'read that folder' not in capsys.readouterr().out


def test_root_category(put, tmp_path, capsys):
    cats = [dict(id=0, name='parts', supercategory='none'), *(dict(id=i, name=n, supercategory='parts')
                                                               for i, n in ((1, 'nut'), (2, 'bolt')))]
    a = dict(id=1, image_id=1, category_id=2, bbox=[5, 6, 25, 34])
    root = put('a.json', coco(a, categories=cats)); t = read(root/'a.json')
    assert [t.names, t.category_ids, t.boxes['category'].tolist()] == [['nut', 'bolt'], [1, 2], [1]]
    assert "category 'parts' stands above all others" in capsys.readouterr().out
    write(t, tmp_path/'b.json', 'coco')
    assert (tmp_path/'b.json').read_bytes() == (root/'a.json').read_bytes()
    used = put('c.json', coco(a, dict(a, id=2, category_id=0), categories=cats))/'c.json'
    assert read(used).names == ['parts', 'nut', 'bolt']   # used, so it is a class


@pytest.mark.parametrize('meta', ['task', 'job', 'project'])
def test_cvat_labels_and_subset(put, meta):
    box = '<box label="cat" xtl="5" ytl="6" xbr="30" ybr="40"/>'
    put('images/a.jpg')
    picture = f'<image id="0" name="a.jpg" width="64" height="48" subset="Val">{box}</image>'
    t = read(put('annotations.xml', cvat(picture, meta)))
    assert [t.names, t.images['split'].tolist()] == [['dog', 'cat'], ['val']]


ROTATED = '<box label="cat" xtl="20.00" ytl="15.00" xbr="40.00" ybr="25.00" rotation="90.00" z_order="0"/>'

def test_cvat_rotation_round_trip(put, tmp_path):
    root = put('annotations.xml', cvat(f'<image id="0" name="a.jpg" width="64" height="48">{ROTATED}</image>'))
    t = read(root, 'cvat')   # CVAT: degrees, clockwise about the centre
    np.testing.assert_allclose(t.xyxy, [[25, 10, 35, 30]])
    assert t.boxes['angle'].tolist() == [90] and len(t.boxes['polygon'][0]) == 4
    write(t, tmp_path/'same', 'cvat')
    assert (tmp_path/'same/annotations.xml').read_bytes() == (root/'annotations.xml').read_bytes()
    new = read(root, 'cvat'); new.images['source'][:] = None   # as a record of its own
    write(new, tmp_path/'new', 'cvat', sidecar=False)
    back = read(tmp_path/'new', 'cvat')
    np.testing.assert_allclose(back.xyxy, t.xyxy); assert back.boxes['angle'].tolist() == [90]
    write(t.with_xyxy([A]), tmp_path/'moved', 'cvat')   # another box: upright
    moved = read(tmp_path/'moved', 'cvat')
    assert moved.xyxy.tolist() == [A] and 'rotation="0' in (tmp_path/'moved/annotations.xml').read_text()
    assert any('angles' in x for x in write(t, tmp_path/'coco', 'coco'))


def test_cvat_shapes_round_trip(put, tmp_path):
    shapes = ('<ellipse label="cat" cx="20" cy="20" rx="5" ry="8" rotation="0.0"/><mask label="dog" left="10" '
              'top="12" width="4" height="6" rle="0, 24"/><polyline label="cat" points="1,1;5,5;9,2"/>'
              '<points label="cat" points="1,1;2,2"/>'
              '<skeleton label="cat"><points label="1" points="3,4"/></skeleton><tag label="cat"/>')
    root = put('annotations.xml', cvat(f'<image id="0" name="a.jpg" width="64" height="48">{shapes}</image>'))
    t = read(root, 'cvat')
    assert t.xyxy.tolist() == [[15, 12, 25, 28], [10, 12, 14, 18], [1, 1, 9, 5]]
    assert t.extra['shapes'] == {'points': 1, 'skeleton': 1, 'tag': 1}
    write(t, tmp_path/'same', 'cvat')
    assert (tmp_path/'same/annotations.xml').read_bytes() == (root/'annotations.xml').read_bytes()
    assert {'1 points shapes', '1 skeleton shapes', '1 tag shapes'} <= set(write(t, tmp_path/'coco', 'coco'))
    box = t.xyxy; box[0, 2] = 26
    write(t.with_xyxy(box), tmp_path/'moved', 'cvat')
    assert read(tmp_path/'moved', 'cvat').xyxy.tolist() == box.tolist()
    assert shapes.split('<mask')[1] in (tmp_path/'moved/annotations.xml').read_text()   # nothing else changed


TRACK = ('<track id="0" label="cat"><box frame="0" outside="0" xtl="5" ytl="6" xbr="30" ybr="40"/>'
         '<box frame="2" outside="0" xtl="1" ytl="1" xbr="20" ybr="20"/>'
         '<box frame="3" outside="1" xtl="1" ytl="1" xbr="20" ybr="20"/></track>')

def test_cvat_film(put, tmp_path):
    for k in (0, 2, 3): put(f'images/frame_{k:06d}.png')
    root = put('annotations.xml', cvat(TRACK)); t = read(root, 'cvat')
    assert t.xyxy.tolist() == [A, B] and all(t.images['path']) and t.images['width'].tolist() == [64]*3
    write(t, tmp_path/'same', 'cvat')
    assert (tmp_path/'same/annotations.xml').read_bytes() == (root/'annotations.xml').read_bytes()
    write(t.with_xyxy([A, [2, 1, 20, 20]]), tmp_path/'moved', 'cvat')
    assert (tmp_path/'moved/annotations.xml').read_text() == cvat(TRACK.replace('xtl="1"', 'xtl="2"', 1))
    write(t.keep([1]), tmp_path/'fewer', 'cvat')   # a track with a gap would be filled in by CVAT: pictures instead
    back = read(tmp_path/'fewer', 'cvat')
    assert back.xyxy.tolist() == [B] and '<track' not in (tmp_path/'fewer/annotations.xml').read_text()


def test_voc_turned_and_drawn(put, tmp_path):
    turned = ('<type>robndbox</type><robndbox><cx>30</cx><cy>20</cy><w>20</w><h>10</h><angle>1.5707963267948966</angle>'
              '</robndbox>')
    pts = ''.join(f'<pt><x>{x}</x><y>{y}</y></pt>' for x, y in ((5, 6), (30, 6), (30, 40)))
    drawn = f'<polygon>{pts}</polygon>'
    root = put('a.xml', voc('a.jpg', turned, drawn, '<deleted>1</deleted>' + drawn))
    t = read(root)
    np.testing.assert_allclose(t.xyxy, [[25, 10, 35, 30], A]); assert t.extra['shapes'] == {'deleted object': 1}
    np.testing.assert_allclose(t.boxes['angle'], [90, np.nan])
    write(t, tmp_path/'same', 'voc')
    assert (tmp_path/'same/a.xml').read_bytes() == (root/'a.xml').read_bytes()
    write(t.with_xyxy([B, [5, 6, 31, 40]]), tmp_path/'moved', 'voc')
    moved = read(tmp_path/'moved')
    assert moved.xyxy.tolist() == [B, [5, 6, 31, 40]] and moved.extra['shapes'] == t.extra['shapes']


def test_labelme_shapes_round_trip(put, tmp_path):
    shapes = [shape('circle', [[20, 20], [26, 20]]), shape('linestrip', [[1, 1], [5, 5], [9, 2]]),
              shape('point', [[1, 1]]),
              shape('rotation', [[35, 10], [35, 30], [25, 30], [25, 10]], direction=np.pi/2)]
    root = put('a.json', labelme('a.jpg', *shapes)); t = read(root)
    np.testing.assert_allclose(t.xyxy, [[14, 14, 26, 26], [1, 1, 9, 5], [25, 10, 35, 30]])
    assert t.extra['shapes'] == {'point': 1}
    write(t, tmp_path/'same', 'labelme')
    assert (tmp_path/'same/a.json').read_bytes() == (root/'a.json').read_bytes()
    write(t.with_xyxy([A, B, A]), tmp_path/'moved', 'labelme')
    assert read(tmp_path/'moved').xyxy.tolist() == [A, B, A]


def test_a_picture_inside_its_record(put, tmp_path, monkeypatch):
    monkeypatch.setenv('YOLOKIT_CACHE', str(tmp_path/'cache'))
    data = (put('x/p.jpg')/'x/p.jpg').read_bytes(); (tmp_path/'set/x/p.jpg').unlink()
    for name, content in (('a.json', data), ('b.json', b'MZ no picture')):
        put(name, labelme('C:\\who\\' + name[0] + '.jpg', shape('rectangle', [[5, 6], [30, 40]]),
                          imageData=base64.b64encode(content).decode()))
    t = read(tmp_path/'set', 'labelme')
    assert Path(t.images['path'][0]).read_bytes() == data and t.images['path'][1] == ''


def test_voc_lists(put):
    for k in ('a', 'b', 'p 1'): put(f'VOC2007/JPEGImages/{k}.jpg'); put(f'VOC2007/Annotations/{k}.xml', voc(f'{k}.jpg'))
    put('VOC2012/JPEGImages/a.jpg'); put('VOC2012/Annotations/a.xml', voc('a.jpg'))
    put('VOC2007/ImageSets/Main/train.txt', 'a.jpg 1\n'); put('VOC2007/ImageSets/Main/val.txt', 'b -1\np 1\n')
    put('VOC2007/ImageSets/Main/trainval.txt', 'a\nb\n')
    t = read(put('VOC2012/ImageSets/Main/test.txt', 'a.xml\n'))
    assert t.images['split'].tolist() == ['train', 'val', 'val', 'test']
    assert [Path(p).parts[-3] for p in t.images['path']] == ['VOC2007']*3 + ['VOC2012']
