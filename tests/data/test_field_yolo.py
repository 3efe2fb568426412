"""YOLO and Darknet folders as people have them: the small folders of ../shared, and others of each kind, made here.

What is expected follows the tool that made or reads such folders; each case names it."""
import re
from pathlib import Path

import numpy as np
import pytest

from yolokit.core import images
from yolokit.core.files import FormatError, shared_data_dir
from yolokit.data.formats import detect_format, lossy_fields, read, write

FIELD = shared_data_dir()/'data/field/annotations' if shared_data_dir() else Path('nowhere')
field = pytest.mark.skipif(not FIELD.is_dir(), reason='the small folders are not beside this checkout (../shared)')

MID, FIFTH = (24, 18, 40, 30), (25.6, 19.2, 38.4, 28.8)  # `.5 .5 .25 .25` and `.5 .5 .2 .2` of 64 x 48
CAT = (['cat'], [MID])
# folder: (format, splits, names, boxes, pictures that are there)
MEANT = {
    # Ultralytics numbers classes by the yaml's keys (check_class_names); number 0 has no name here and keeps its place
    'y01_names_from1': ('yolo', ['train'], ['class 0', 'cat', 'dog'], [FIFTH], 1),
    'y04_names_no_yes': ('yolo', ['train'], ['no', 'yes'], [FIFTH, (12.8, 9.6, 25.6, 19.2)], 1),  # yaml 1.2: words
    'y10_Images_upper': ('yolo', ['train'], *CAT, 1),  # Ultralytics' img2label_paths on a file system without cases
    'y11_images_with_txt': ('yolo', [''], *CAT, 1),  # labelImg saves beside the picture
    'y14_roboflow_darknet': ('yolo', ['train', 'val'], ['cat', 'dog'], [MID]*2, 2),  # Roboflow, YOLO Darknet TXT
    'y15_flat_readme': ('yolo', [''], *CAT, 1),  # labelImg
    'y16_labelimg_sub_classes': ('yolo', [''], *CAT, 1),  # labelImg writes classes.txt into its save folder
    'y17_predefined': ('yolo', [''], ['cat', 'dog'], [MID], 1),  # labelImg's data/predefined_classes.txt
    'y18_labels_only': ('yolo', [''], ['cat'], [(.375, .375, .625, .625)], 0),  # fractions, while sizes are unknown
    'y19_cvat_noimg': ('darknet', ['train'], ['cat'], [(.375, .375, .625, .625)], 0),  # CVAT, YOLO 1.1, no images
    'y21_cvat_ultra_noimg': ('yolo', ['train'], ['cat'], [(.375, .375, .625, .625)], 0),  # CVAT, Ultralytics YOLO
    'y25_pixels': ('yolo', [''], ['0'], [(1536, 864, 2560, 1440), (1024, 288, 1536, 672)], 1),  # a finding for the set
    'y27_pose3_odd': ('yolo', ['train'], *CAT, 1),  # Ultralytics' kpt_shape: [2, 3]
    'y29_pose17': ('yolo', ['train'], *CAT, 1),  # COCO's seventeen keypoints
    'y35_list_case': ('yolo', ['train'], *CAT, 1),  # written on Windows, where a.jpg is a.JPG
    'y42_gif_heic': ('yolo', ['']*9, ['0'], [MID]*8 + [(.375, .375, .625, .625)], 8),  # heic is not read here
    'y45_sub_root': ('yolo', ['train'], *CAT, 1),  # Roboflow's ../train/images, forgiven as by check_det_dataset
    'y47_checkpoints': ('yolo', [''], ['0'], [MID], 1),  # macOS' ._ files, Jupyter's checkpoints
    'y50_val_eq_train': ('yolo', ['train', 'val'], ['cat'], [MID]*2, 2),  # Ultralytics reads both; a finding tells
    'y53_trainval_names': ('yolo', [''], ['0'], [MID], 1),  # Darknet: JPEGImages/ -> labels/
    'y58_custom_yaml': ('yolo', ['train', 'val'], ['cat'], [MID]*2, 2),  # Ultralytics: data=mycoco.yaml
    's04_darknet_win': ('darknet', ['train'], ['cat'], [FIFTH], 1),  # AlexeyAB/darknet on Windows, started above data/
    's08_flat_splits': ('yolo', ['test']*6 + ['train']*6 + ['val']*6, ['0'], [FIFTH]*18, 18),  # Roboflow, Darknet
    's09_partly_lost': ('darknet', ['train']*12, ['cat'], [FIFTH]*12, 12),  # CVAT, YOLO 1.1, frames of two cameras
    's11_mixed_images_txt': ('yolo', ['']*10, ['0'], [FIFTH]*10, 10),  # Ultralytics' labels/ first, then beside
    's12_pose': ('yolo', ['train']*6, ['plate'], [(22.4, 16.8, 41.6, 31.2)]*6, 6),  # kpt_shape: [4, 2]
    's01_my_test_data': ('coco', ['']*6, ['cat'], [(5, 6, 30, 40)]*6, 6),  # only folders below the root name splits
    'l10_images_sub': ('labelme', [''], ['cat'], [(5, 6, 30, 40)], 1),  # labelme's json apart from its picture
    'c42_readme_txt': ('coco', [''], ['cat'], [(5, 6, 30, 40)], 1),  # a README is no label file
    'v44_darknet_voc': ('darknet', ['train'], *CAT, 1),  # Darknet's scripts/voc_label.py
    't02_kitti_imgs': ('kitti', ['train'], ['Car'], [(5, 6, 30, 40)], 1),  # KITTI: image_2 beside label_2
}


@field
@pytest.mark.parametrize('name', MEANT)
def test_a_small_folder_is_read_as_meant(name, tmp_path):
    format, splits, names, boxes, there = MEANT[name]
    t = read(FIELD/name)
    order = np.argsort(t.images['split'].astype(str), kind='stable')
    assert (t.extra['format'], t.images['split'][order].tolist(), t.names) == (format, splits, names)
    np.testing.assert_allclose(t.xyxy, boxes, atol=1e-9)
    assert sum(map(bool, t.images['path'])) == there
    if format in ('yolo', 'darknet'):  # written as it was, and as a new folder
        write(t, tmp_path/'again', format)
        assert np.array_equal(read(tmp_path/'again', format).xyxy, t.xyxy)
        u = read(FIELD/name)
        write(u.with_images(split=['test']*u.n_images), tmp_path/'new', 'yolo')
        new = read(tmp_path/'new', 'yolo')
        np.testing.assert_allclose(sorted(new.xyxy.tolist()), sorted(t.xyxy.tolist()), atol=1e-6)


@field
@pytest.mark.parametrize('name, says', [
    ('y46_images_only', r'no annotations in it \(2 jpg in images/\)'),
    ('y31_dota', r'1 txt in labelTxt/'),  # DOTA
    ('y44_zip', r'1 zip'),
    ('f10_widerface', r'no annotations in it .*1 txt in wider_face_split/'),  # WIDER FACE
])
def test_a_small_folder_is_read_or_refused_in_one_sentence(name, says):
    try: t = read(FIELD/name)
    except FormatError as e: assert re.search(says, str(e))
    else: assert len(t) and all(t.images['path'])


# --- other members of each kind

def make(root, files, size=(64, 48)):
    for name, text in files.items():
        p = root/name
        p.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, bytes): p.write_bytes(text)
        elif text is not None: p.write_text(text, encoding='utf-8')
        else: images.write_image(p, np.full((*size[::-1], 3), 90, np.uint8))
    return root


ROW = '0 .5 .5 .25 .25\n'


@pytest.mark.parametrize('picture, label', [
    ('raw/a.png', 'labels/a.txt'), ('IMAGES/Train/a.png', 'LABELS/Train/a.txt'), ('set/imgs/a.png', 'set/label/a.txt'),
    ('obj_train_data/a.png', 'obj_train_data/a.txt'), ('사진/가.png', '라벨/가.txt'), ('images/a.PNG', 'images/A.txt'),
    ('images/train/a.b.png', 'images/train/a.b.txt'), ('raw/images/a.png', 'raw/labels/a.txt')])
def test_labels_are_found_where_they_lie(tmp_path, picture, label):
    "Darknet's replace_image_to_label, Ultralytics' img2label_paths, labelImg; and one name that leaves no choice."
    t = read(make(tmp_path, {picture: None, label: ROW, 'README.txt': 'five words or more are here', 'a.md': 'x'}))
    assert t.xyxy.tolist() == [list(MID)] and all(t.images['path'])
    write(t, tmp_path/'out', 'yolo')
    assert (tmp_path/'out'/label).read_bytes() == (tmp_path/label).read_bytes()


def test_a_picture_without_label_takes_no_other_pictures_text(tmp_path):
    t = read(make(tmp_path, {'train/images/1.png': None, 'train/labels/1.txt': ROW, 'test/images/1.png': None,
                             'obj/cam1/2.png': None, 'obj/cam2/2.png': None, 'obj/cam2/2.txt': ROW}))
    assert [len(t.of(i)) for i in range(4)] == [0, 1, 0, 1] and t.n_images == 4
    assert t.images['split'].tolist() == ['', '', 'test', 'train']


@pytest.mark.parametrize('entry, label', [
    ('/home/kim/darknet/VOC2007/JPEGImages/a.png', 'VOC2007/labels/a.txt'), ('data\\obj\\a.png', 'obj/a.txt'),
    ('build/x64/data/obj_train_data/cam2/a.png', 'obj_train_data/cam2/a.txt'),
    ('./images/train/a.png', 'labels/train/a.txt')])
@pytest.mark.parametrize('there', [True, False])
def test_lists_whose_folders_are_elsewhere(tmp_path, entry, label, there):
    "Darknet's lists, with pictures or as CVAT exports them without; a name in two folders goes by its last folders."
    picture = dict([('VOC2007/labels/a.txt', 'VOC2007/JPEGImages/a.png'), ('labels/train/a.txt', 'images/train/a.png')]
                   ).get(label, label[:-3] + 'png')
    files = {'train.txt': entry, label: ROW, 'obj.names': 'cat\n',
             'obj.data': 'train = data/train.txt\nnames = obj.names'}
    t = read(make(tmp_path, files | ({picture: None, 'obj_train_data/cam1/a.png': None} if there else {})))
    assert (len(t), t.names, t.images['split'].tolist()) == (1, ['cat'], ['train'])
    assert t.images['path'].tolist() == ([str((tmp_path/picture).absolute())] if there else [''])


def test_two_pictures_of_a_name_are_an_error_that_names_both(tmp_path):
    make(tmp_path, {'cam1/a.png': None, 'cam2/a.png': None, 'cam1/a.txt': ROW, 'train.txt': '/gone/a.png\n'})
    with pytest.raises(FormatError, match='two pictures have this name, cam1/a.png and cam2/a.png'):
        read(tmp_path/'train.txt')


def test_splits_of_folders_below_the_root_only(tmp_path):
    "Roboflow's train/ valid/ test/; a root called test or validation names nothing."
    d = make(tmp_path/'my validation test', {f'{s}/sub/{s}{i}.{x}': None if x == 'png' else ROW
                                             for s in ('Train', 'valid', 'testing') for i in 'ab'
                                             for x in ('png', 'txt')})
    t = read(d)
    assert dict(zip(t.images['file'], t.images['split'])) == {
        f'sub/{s}{i}.png': k for s, k in (('Train', 'train'), ('valid', 'val'), ('testing', 'test')) for i in 'ab'}
    flat = read(make(tmp_path/'test', {'a.png': None, 'a.txt': ROW}))
    assert flat.images['split'].tolist() == ['']


def test_no_label_is_lost_in_silence(tmp_path, capsys):
    files = {f'images/{i}.png': None for i in range(5)}
    files |= {'labels/0.txt': ROW, 'labels/b.csv': 'x', 'labels/c.xml': '<x/>'}
    d = make(tmp_path, files | {'data.yaml': 'train: images\nnames: [cat]\n'})
    t = read(d, 'yolo')
    said = capsys.readouterr().out
    assert t.n_images == 5 and 'labels for 1 of 5 pictures, 1 boxes' in said
    assert '1 csv, 1 txt, 1 xml in labels/' in said and 'labels/ for images/' in said
    make(d, {'train.txt': 'images/0.png\n', 'data.yaml': 'train: train.txt\nnames: [cat]\n', 'labels/1.txt': ROW})
    assert read(d, 'yolo').n_images == 1
    assert '1 label files are of no picture that data.yaml names, such as labels/1.txt' in capsys.readouterr().out


@pytest.mark.parametrize('other, format', [
    ({'labels.csv': 'filename,xmin\na.png,3'}, None), ({'annotations/i.txt': '684,8,273,116,0,0,0,0'}, 'visdrone'),
    ({'a.json': '{"images": [], "annotations": [], "categories": []}'}, 'coco'), ({'notes.txt': '3 cars 4 5 6'}, None),
    ({'labels/a.txt': ROW}, 'yolo'), ({'labels/a.txt': ''}, 'yolo'),
    ({'a.xml': '<annotations><version>1.1</version></annotations>'}, 'cvat')])
def test_pictures_alone_are_not_yolo(tmp_path, other, format):
    make(tmp_path, {'images/a.png': None, 'requirements.txt': 'torch==2.8\n', '.idea/x.xml': '<project/>',
                    '__MACOSX/images/._a.png': b'\0\5', 'images/.ipynb_checkpoints/a-checkpoint.png': b'x'} | other)
    if format: assert detect_format(tmp_path) == format
    else:
        with pytest.raises(FormatError, match='no annotations in it .*2? ?png in images/|no annotations in it'):
            detect_format(tmp_path)


@pytest.mark.parametrize('names, want', [
    ('{0: on, 1: off}', ['on', 'off']),
    ('{"2": c, "10": k, "0": a}', ['a', 'class 1', 'c', *[f'class {i}' for i in range(3, 10)], 'k']),
    ('[yes, 007, 1.50, ~]', ['yes', '007', '1.50', '~']), ('{1: 차, 0: 버스}', ['버스', '차']), ('[y, n]', ['y', 'n'])])
def test_class_numbers_and_names_of_a_yaml(tmp_path, names, want):
    t = read(make(tmp_path, {'images/a.png': None, 'labels/a.txt': ROW,
                             'parking.yml': f'train: images\nnames: {names}\n'}))
    assert t.names == want


@pytest.mark.parametrize('yaml_, says', [
    ('names: {a: 1}', 'Number the classes'), ('names: [[a]]', 'A name is a word'),
    ('names: {-1: a}', 'Number the classes'),
    ('nc: 2\nnames: {1: a, 2: b}', 'nc is 2, but there are 3 names'), ('names: {99999: a}', 'Number the classes')])
def test_class_numbers_that_cannot_be(tmp_path, yaml_, says):
    make(tmp_path, {'images/a.png': None, 'labels/a.txt': ROW, 'data.yaml': yaml_})
    with pytest.raises(FormatError, match=says): read(tmp_path)


def test_two_yamls_or_two_lists_of_names_are_asked_about(tmp_path):
    make(tmp_path, {'images/a.png': None, 'labels/a.txt': ROW, 'x.yaml': 'names: [a]', 'y.yaml': 'names: [b]'})
    with pytest.raises(FormatError, match='2 data sets: x.yaml, y.yaml'): read(tmp_path)
    assert read(tmp_path/'y.yaml').names == ['b']


KPT = '0 .5 .5 .5 .5 .4 .4 2 .6 .6 1 0 0 0\n'


def test_keypoints_stay_in_the_file_when_the_box_is_mended(tmp_path):
    "Ultralytics' pose rows: box, then kpt_shape[0] x kpt_shape[1] numbers."
    d = make(tmp_path/'d', {'images/a.png': None, 'labels/a.txt': KPT + ROW,
                            'data.yaml': 'names: [a]\nkpt_shape: [3, 3]'})
    t = read(d)
    assert t.xyxy.tolist() == [[16, 12, 48, 36], list(MID)] and 'polygon' not in t.boxes
    write(t.with_xyxy(t.xyxy + [0, 0, 0, 12]), tmp_path/'e', 'yolo')
    assert (tmp_path/'e/labels/a.txt').read_text() == ('0 0.5 0.625 0.5 0.75 .4 .4 2 .6 .6 1 0 0 0\n'
                                                       '0 0.5 0.625 0.25 0.5\n')
    write(t.with_images(split=['val']), tmp_path/'f', 'yolo')
    assert (tmp_path/'f/labels/val/a.txt').read_text() == KPT + ROW
    assert read(tmp_path/'f').xyxy.tolist() == t.xyxy.tolist()
    assert any('keypoints' in x for x in lossy_fields(t, 'coco'))


def test_rows_that_may_be_keypoints_are_asked_about(tmp_path):
    rows = '0 .5 .5 .5 .5 .4 .4 .6 .6\n0 .4 .4 .4 .4 .3 .3 .5 .5\n'
    d = make(tmp_path, {'images/a.png': None, 'labels/a.txt': rows, 'data.yaml': 'names: [a]\n'})
    with pytest.raises(FormatError, match=r'box and 2 keypoints of 2, or a polygon of 4 corners.*kpt_shape: \[2, 2\]'):
        read(d)
    make(d, {'data.yaml': 'names: [a]\nkpt_shape: []\n'})
    assert all(p is not None for p in read(d).boxes['polygon'])
    make(d, {'data.yaml': 'names: [a]\nkpt_shape: [2, 2]\n'})
    assert read(d).xyxy[0].tolist() == [16, 12, 48, 36]


def test_rotated_boxes_are_read_around_and_written_back(tmp_path):
    "YOLO-OBB: class and four corners."
    rows = '0 .3 .35 .62 .25 .7 .6 .38 .72\n1 .1 .1 .2 .1 .2 .3 .1 .3\n'
    d = make(tmp_path, {'images/a.png': None, 'labels/a.txt': rows, 'data.yaml': 'names: [a, b]\n'})
    t = read(d)
    np.testing.assert_allclose(t.xyxy, [[.3*64, .25*48, .7*64, .72*48], [6.4, 4.8, 12.8, 14.4]])
    write(t, tmp_path/'e', 'yolo')
    write(t.with_images(split=['train']), tmp_path/'f', 'yolo')
    assert (tmp_path/'e/labels/a.txt').read_text() == (tmp_path/'f/labels/train/a.txt').read_text() == rows


def test_one_odd_row_refuses_nothing(tmp_path, capsys):
    d = make(tmp_path/'d', {'images/a.png': None, 'images/b.png': None, 'labels/a.txt': ROW + 'car .5 .5 .1\n' + ROW,
                            'labels/b.txt': ROW + '7 .5 .5 .1 .1', 'data.yaml': 'names: [a]\ntrain: images\n'})
    t = read(d)
    assert len(t) == 3 and [i for i, _ in t.extra['set_aside']] == [0, 1] and 'a.txt:2' in t.extra['set_aside'][0][1]
    assert '2 records set aside: ' in capsys.readouterr().out
    with pytest.raises(FormatError, match='a.txt:2'): read(d, strict=True)
    write(t, tmp_path/'e', 'yolo')
    for n in 'ab': assert (tmp_path/f'e/labels/{n}.txt').read_text() == (d/f'labels/{n}.txt').read_text()
    make(d, {'labels/b.txt': 'x .5 .5 .1 .1\n2 .1\n9\n'})
    with pytest.raises(FormatError, match='a.txt:2'): read(d)  # half of the rows: this is another format


@pytest.mark.parametrize('suffix', ['jfif', 'gif', 'avif', 'jp2', 'ppm', 'webp', 'TIFF'])
def test_every_picture_that_is_read_is_found(tmp_path, suffix, capsys):
    from PIL import Image
    make(tmp_path, {'images/a.txt': '', 'labels/a.txt': ROW, 'train.txt': 'images/A.jpg\n'})
    (tmp_path/'images/a.txt').unlink()
    kind = dict(jfif='JPEG', jp2='JPEG2000', TIFF='TIFF').get(suffix, suffix.upper())
    Image.new('RGB', (64, 48), (9, 90, 200)).save(tmp_path/f'images/a.{suffix}', kind)
    for path in (tmp_path/'images', tmp_path/'train.txt'):
        if path.is_dir(): path = tmp_path
        t = read(path)
        assert t.images['path'][0].endswith(f'a.{suffix}') and t.xyxy.tolist() == [list(MID)]
    assert f'such as a.{suffix} for A.jpg' in capsys.readouterr().out


def test_pictures_that_nothing_decodes_are_said(tmp_path, capsys):
    t = read(make(tmp_path, {'images/a.HEIC': 'x', 'images/b.heif': 'x', 'labels/a.txt': ROW, 'labels/b.txt': ROW}))
    assert len(t) == 2 and not any(t.images['path'])
    assert 'pictures in HEIC, which nothing here decodes: 2. They count as not there:' in capsys.readouterr().out


@pytest.mark.parametrize('train', ['train:\t images', 'train: images\t# of May', 'train: images\nkpt_shape: []'])
def test_a_yaml_that_was_read_can_be_written(tmp_path, train):
    "libyaml takes a tab behind a colon, which Python's parser refuses: one parser for both."
    make(tmp_path/'a', {'data.yaml': f'{train}\nnames: [cat]\nby: 누리\n', 'images/a.png': None, 'labels/a.txt': ROW})
    t = read(tmp_path/'a')
    write(t, tmp_path/'b', 'yolo')
    assert (tmp_path/'b/data.yaml').read_bytes() == (tmp_path/'a/data.yaml').read_bytes()
    write(t.with_images(split=['val']), tmp_path/'c', 'yolo')
    assert 'by: 누리' in (tmp_path/'c/data.yaml').read_text(encoding='utf-8')
