"Sets as people have them: readings of all boxes, sizes, splits, leaks and class names, judged as a person would."
import hashlib, json
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolokit.core import images
from yolokit.core.files import FormatError, shared_data_dir
from yolokit.data.formats import read
from yolokit.data.table import Table
from yolokit.cleaning.checks import check
from yolokit.cleaning.inspector import Inspector
from yolokit.cleaning.prepare import prepare
from yolokit.cleaning.repair import Journal, apply, plan, undo
from yolokit.cleaning.split import split

FIELD = shared_data_dir()/'data/field/annotations' if shared_data_dir() else Path('nowhere')
field = pytest.mark.skipif(not FIELD.exists(), reason='the small folders are not beside this checkout (../shared)')

def picture(path, wh=(64, 48), seed=0):
    "Coarse noise: no two seeds look the same."
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    images.write_image(path, cv2.resize(small, wh, interpolation=cv2.INTER_CUBIC))


def coco(folder, boxes, wh=(64, 48), said=None, size=None):
    "A folder with one picture for each list of boxes, declared in another size where `said` is one."
    d = dict(images=[], annotations=[], categories=[dict(id=1, name='cat')])
    for i, rows in enumerate(boxes):
        picture(folder/f'images/그림{i}.png', wh, i)
        d['images'].append(dict(id=i + 1, file_name=f'그림{i}.png', width=(said or wh)[0], height=(said or wh)[1]))
        d['annotations'] += [dict(id=len(d['annotations']) + k + 1, image_id=i + 1, category_id=1, bbox=list(b),
                                  area=1, iscrowd=0) for k, b in enumerate(rows)]
    (folder/'annotations.json').write_text(json.dumps(d), encoding='utf-8')
    return folder


def yolo(folder, rows, wh=(64, 48)):
    for i, text in enumerate(rows):
        picture(folder/f'images/그림{i}.png', wh, i)
        p = folder/f'labels/그림{i}.txt'
        p.parent.mkdir(exist_ok=True); p.write_text(text)
    return folder


def voc(folder, boxes, wh=(64, 48), said=None):
    for i, rows in enumerate(boxes):
        picture(folder/f'x/그림{i}.png', wh, i)
        w, h = said or wh
        obj = ''.join('<object><name>cat</name><bndbox><xmin>%g</xmin><ymin>%g</ymin><xmax>%g</xmax><ymax>%g</ymax>'
                      '</bndbox></object>' % tuple(b) for b in rows)
        (folder/f'x/그림{i}.xml').write_text(
            f'<annotation><filename>그림{i}.png</filename><size><width>{w}</width><height>{h}</height><depth>3</depth>'
            f'</size>{obj}</annotation>', encoding='utf-8')
    return folder


def seen(source):
    "Findings and the plan's states of one kind each."
    p = plan(check(read(source)))
    return p, {(r, a): s for r, a, s in p.counts()}


def accept(p, reason, word='accept'):
    "A decision as the inspector writes it."
    k = int(np.flatnonzero(p.rows['reason'] == reason)[0])
    box = Inspector(p.table, p)
    box.go(int(np.flatnonzero(box.rows == k)[0])).decision(word)
    return box.decisions


def meant(source, tmp_path, reason):
    "The boxes after the one repair of the set, accepted in the inspector and obeyed by prepare, and taken back."
    p, states = seen(source)
    assert list(states) == [(reason, 'reread')], states
    said = tmp_path/'said.json'
    said.write_text(json.dumps(accept(p, reason)))
    out = prepare(source, tmp_path/'out', decisions=str(said))
    new, journal = apply(p.table, p.decide(accept(p, reason)))
    assert undo(new, journal).same(p.table) and len(check(new).of(reason)) == 0
    assert len(Journal.load(tmp_path/'out/repair/journal.json')) == len(journal)
    assert any('Read so.' in s for s in out.info['notes'])
    return new.xyxy.round(3).tolist(), states[reason, 'reread']


# (folder, the reading, is it asked?, the first boxes as they are meant)
# tools: PASCAL VOC's devkit counts pixels from 1, COCO's bbox is x y w h, Darknet's rows are fractions
READ = [('r01_resized_half', 'resized', 'ask', [[5, 10, 150, 100], [200, 150, 320, 240]]),
        ('s10_resized', 'resized', 'ask', [[20, 25, 140, 110]]),
        ('r04_from1', 'origin-one', 'apply', [[0, 0, 19, 48], [29, 9, 64, 48]]),
        ('v30_1based', 'origin-one', 'apply', [[0, 0, 29, 48], [19, 9, 64, 48]]),
        ('r05_xyxy', 'corners-for-size', 'apply', [[340, 191, 456, 253], [123, 12, 165, 43]]),
        ('c13_bbox_xyxy', 'corners-for-size', 'ask', [[5, 6, 60, 40], [20, 10, 62, 44], [30, 20, 50, 47]]),
        ('c16_bbox_norm', 'fractions', 'apply', [[6.4, 4.8, 32, 28.8], [19.2, 14.4, 44.8, 38.4]]),
        ('y25_pixels', 'pixels', 'apply', [[24, 18, 40, 30], [16, 6, 24, 14]])]


@field
@pytest.mark.parametrize('name, reading, state, boxes', READ, ids=[r[0] for r in READ])
def test_folders_whose_boxes_are_all_written_another_way(tmp_path, name, reading, state, boxes):
    new, was = meant(FIELD/name, tmp_path, reading)
    assert was == state and np.allclose(new[:len(boxes)], boxes)


CARS = [[[4, 5, 20, 30], [30, 10, 60, 40]], [[10, 20, 40, 44], [1, 2, 9, 14]], [[40, 30, 63, 47], [20, 8, 50, 40]]]*4


@pytest.mark.parametrize('reading, make', [
    ('fractions', lambda f: coco(f, [[(a/64, b/48, (c - a)/64, (d - b)/48) for a, b, c, d in r] for r in CARS])),
    ('pixels', lambda f: yolo(f, [''.join(f'0 {(a + c)/2} {(b + d)/2} {c - a} {d - b}\n' for a, b, c, d in r)
                                  for r in CARS])),
    ('corners-for-size', lambda f: coco(f, CARS)),
    ('corners-for-size', lambda f: yolo(f, [''.join(f'0 {a/64} {b/48} {c/64} {d/48}\n' for a, b, c, d in r)
                                            for r in CARS])),
    ('swapped-axes', lambda f: coco(f, [[(b, a, d - b, c - a) for a, b, c, d in r] for r in CARS])),
    ('origin-one', lambda f: voc(f, [[[v + 1 for v in b] for b in r + [[0, 0, 20, 30], [30, 20, 64, 48]]]
                                     for r in CARS])),
    ('resized', lambda f: voc(f, [[[2*v for v in b] for b in r] for r in CARS], said=(128, 96))),
    ('resized', lambda f: coco(f, [[(a*2, b*4, (c - a)*2, (d - b)*4) for a, b, c, d in r] for r in CARS],
                               said=(128, 192)))])
def test_all_boxes_written_another_way(tmp_path, reading, make):
    new, _ = meant(make(tmp_path/'자료'), tmp_path, reading)
    here = {tuple(b) for b in new}
    assert {tuple(map(float, b)) for r in CARS for b in r} <= {tuple(np.round(b, 1)) for b in here}


def test_a_refused_reading_is_not_looked_for_again(tmp_path):
    source = coco(tmp_path/'raw', CARS)
    p, states = seen(source)
    assert list(states) == [('corners-for-size', 'reread')]
    (tmp_path/'said.json').write_text(json.dumps(accept(p, 'corners-for-size', 'reject')))
    out = prepare(source, tmp_path/'out', decisions=str(tmp_path/'said.json'))
    assert out.info['repair']['found']['outside'] > 5 and 'corners-for-size' not in out.info['repair']['found']


def test_an_open_question_on_the_whole_set_leaves_the_boxes_and_is_said(tmp_path):
    source = voc(tmp_path/'raw', [[[2*v for v in b] for b in r] for r in CARS], said=(128, 96))
    out = prepare(source, tmp_path/'out')
    assert any('until somebody has looked' in s for s in out.info['notes']) and out.info['repair']['changed'] == 0


def test_sound_sets_with_faults_of_single_boxes_have_no_reading(tmp_path):
    sound = coco(tmp_path/'a', [[(a, b, c - a, d - b) for a, b, c, d in r] for r in CARS])
    assert not seen(sound)[1]
    over = coco(tmp_path/'b', [[(a, b, c - a + 30*(k == 0), d - b) for k, (a, b, c, d) in enumerate(r)] for r in CARS])
    assert {r for r, _ in seen(over)[1]} <= {'outside', 'subpixel', 'unusual-size'}


def test_one_picture_of_another_size(tmp_path):
    "Equal proportions: scaling is asked; boxes that only the real picture holds, or none: the size is set."
    mixed = coco(tmp_path/'a', [[(4, 5, 16, 25)]]*5)
    d = json.loads((mixed/'annotations.json').read_text())
    d['images'][0].update(width=128, height=96); d['images'][1].update(width=10, height=10)
    (mixed/'annotations.json').write_text(json.dumps(d))
    p, states = seen(mixed)
    assert states == {('wrong-size', 'scale'): 'ask', ('wrong-size', 'size'): 'apply'}
    new, journal = apply(p.table, p.decide(accept(p, 'wrong-size') if p.rows['state'][0] == 'ask' else []))
    assert undo(new, journal).same(p.table)


@field
@pytest.mark.parametrize('name, edit', [('r02_resized_coco', ('wrong-size', 'scale', 'ask')),
                                        ('v19_swapped_size', ('wrong-size', 'size', 'apply'))])
def test_folders_with_one_picture_of_another_size(tmp_path, name, edit):
    p, states = seen(FIELD/name)
    assert states == {edit[:2]: edit[2]}
    (tmp_path/'said.json').write_text(json.dumps(accept(p, 'wrong-size')))
    out = prepare(FIELD/name, tmp_path/'out', decisions=str(tmp_path/'said.json'))        # bytes in the journal
    scaled = [[50, 40, 125, 100]] if name[0] == 'r' else [[5, 6, 30, 40]]
    assert out.table.xyxy.tolist() == scaled and len(Journal.load(tmp_path/'out/repair/journal.json')) > 0


def test_every_mend_of_a_picture_goes_through_prepare(tmp_path):
    "merge, move, size: the journal holds the pictures' digests, which are bytes."
    source = voc(tmp_path/'raw', [[b] for b in ([4, 5, 60, 40], [1, 2, 30, 30], [5, 5, 20, 20])], said=(50, 48))
    (source/'x/그림3.png').write_bytes((source/'x/그림1.png').read_bytes())
    (source/'x/그림3.xml').write_text((source/'x/그림1.xml').read_text().replace('그림1', '그림3'))
    p, states = seen(source)
    assert states['identical-images', 'merge'] == 'ask' and ('wrong-size', 'size') in states
    (tmp_path/'said.json').write_text(json.dumps(accept(p, 'identical-images')))
    out = prepare(source, tmp_path/'out', decisions=str(tmp_path/'said.json'))
    assert out.table.n_images == 3 and 'merge-image' in {e['action'] for e in
                                                          Journal.load(tmp_path/'out/repair/journal.json').entries}


def test_boxes_of_pictures_of_unknown_size_are_not_tiny(tmp_path):
    t = Table.make(images=dict(file=['a', 'b'], width=[0, 64], height=[0, 48]),
                   boxes=dict(image=[0, 1], category=[0, 0], x0=[.1, .1], y0=[.1, .1], x1=[.3, .3], y1=[.4, .4]),
                   names=['cat'])
    assert check(t, images=False).of('tiny').rows['box'].tolist() == [1]


@field
def test_fractions_without_pictures_are_refused_in_one_sentence(tmp_path):
    assert 'tiny' not in check(read(FIELD/'r07_nopics')).counts()
    with pytest.raises(FormatError, match='none of its 1 pictures was found'):
        prepare(FIELD/'r07_nopics', tmp_path/'out')


def test_val_that_is_train_is_a_leak_and_is_split_anew(tmp_path):
    source = yolo(tmp_path/'raw', ['0 .5 .5 .25 .25']*20)
    (source/'data.yaml').write_text('train: images\nval: images\nnames: [cat]\n')
    f = check(read(source))
    assert f.of('leak').rows['image'].tolist() == [-1] and not f.rows['certain'][f.rows['reason'] == 'leak'].any()
    out = prepare(source, tmp_path/'out')
    counts = {k: v[0] for k, v in out.info['counts'].items()}
    assert counts == dict(train=17, val=3) and any('val is train' in s for s in out.info['notes'])


@field
def test_the_folder_whose_val_is_train(tmp_path):
    assert check(read(FIELD/'y50_val_eq_train')).counts()['leak'] == 1
    out = prepare(FIELD/'y50_val_eq_train', tmp_path/'out')
    assert [out.table.n_images, out.table.names] == [1, ['cat']] and any('val is train' in s for s in out.info['notes'])


@field
def test_two_records_of_one_picture_are_prepared(tmp_path):
    out = prepare(FIELD/'s07_kitti_two_records', tmp_path/'out')
    assert 'Car' in out.table.names and out.table.n_images >= 1


def camera(folder, name, n=80, drive=False):
    "A camera that stands still: one thing anywhere, or driving through."
    g = np.random.default_rng(3)
    lot = cv2.resize(g.integers(0, 255, (12, 16, 3), dtype=np.uint8), (320, 180), interpolation=cv2.INTER_CUBIC)
    for i in range(n):
        x, (a, b) = lot.copy(), (int(i*270/n), 80) if drive else g.integers(0, [280, 150])
        x[b:b + 30, a:a + 40] = (200, 30, 30) if drive else g.integers(0, 255, 3)
        images.write_image(folder/f'images/{name(i)}.jpg', cv2.add(x, g.integers(0, 8, x.shape, dtype=np.uint8)))
        p = folder/f'labels/{name(i)}.txt'
        p.parent.mkdir(exist_ok=True); p.write_text(f'0 {(a + 20)/320} {(b + 15)/180} .125 .1667')
    return folder


def crossing(t):
    "Pairs of a training and a validation picture that show the same thing at the same place: three quarters of it."
    def things(s):
        part = t.split(s)
        x = [images.read_image(p) for p in part.images['path']]
        at = ((part.xyxy[:, :2] + part.xyxy[:, 2:])/2).astype(int)
        return part.xyxy, np.array([v[b - 4:b + 5, a - 4:a + 5].mean((0, 1)) for v, (a, b) in zip(x, at)])
    (a, colour), (b, other) = things('train'), things('val')
    lap = (np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])).clip(0).prod(2)
    return int(((lap > .75*1200) & (abs(colour[:, None] - other).max(2) < 48)).sum())


def HASHED(i): return hashlib.md5(str(i).encode()).hexdigest()
def FRAMES(i): return f'cam_{i:04}'


@pytest.mark.parametrize('name, drive', [(HASHED, True), (FRAMES, True), (FRAMES, False)],
                         ids=['a drive without times', 'a drive by frames', 'frames'])
def test_a_camera_that_stands_still(tmp_path, name, drive):
    notes = []
    t = split(read(camera(tmp_path, name, drive=drive)), how='auto', notes=notes)
    n = {s: int(v[0]) for s, v in t.counts().items()}
    assert n['train'] >= 60 and n['val'] >= 10 and any('look the same' in s for s in notes), (n, notes)
    assert crossing(t) == 0 or not drive and name is FRAMES
    frames = [int(f[-8:-4]) if f.startswith('cam') else -1 for f in t.images['file']]
    if frames[0] >= 0: # by time, and no frame of val within the stated gap of a training one
        at = {s: np.array(frames)[t.images['split'] == s] for s in ('train', 'val')}
        assert at['val'].min() - at['train'].max() > 5 and any('5 frames left out' in s for s in notes)


@field
def test_the_folder_of_a_camera_that_stands_still(tmp_path):
    out = prepare(FIELD/'s13_static_camera', tmp_path/'out')
    n = {k: v[0] for k, v in out.info['counts'].items()}
    assert n['train'] >= 60 and n['val'] >= 10 and any('scenes' in s for s in out.info['notes']), out.info['notes']
    assert len(out.info['large_group']) == 6 and crossing(out.table) == 0


def test_shares_that_miss_their_aim_are_said(tmp_path):
    notes, z = [], [0]*40
    stem = [f'{"a" if i < 12 else f"b{i}"}_jpg.rf.{i:032x}.jpg' for i in range(40)]
    t = Table.make(images=dict(file=stem, sha256=[str(i) for i in range(40)]),
                   boxes=dict(image=range(40), category=z, x0=z, y0=z, x1=[1]*40, y1=[1]*40), names=['cat'])
    for seed in range(40):
        got = split(t, val=.15, seed=seed, notes=(notes := [])).images['split']
        off = abs((got == 'val').sum() - 6) > 1.2
        assert off == any('was asked for' in s for s in notes)


def test_only_annotations_of_no_picture_dangle(tmp_path):
    source = coco(tmp_path/'a', [[(4, 5, 16, 25)]]*3)
    d = json.loads((source/'annotations.json').read_text())
    d['annotations'][2]['image_id'] = 77
    (source/'annotations.json').write_text(json.dumps(d))
    assert check(read(source)).counts()['dangling'] == 1
    picture(tmp_path/'b/a.png')
    (tmp_path/'b/a.json').write_text(json.dumps(dict(
        version='5', flags={}, imagePath='a.png', imageData=None, imageWidth=64, imageHeight=48, shapes=[
            dict(label='cat', shape_type='rectangle', points=[[5, 6], [30, 40]], flags={}),
            dict(label='cat', shape_type='point', points=[[9, 9]], flags={})])))
    assert 'dangling' not in check(read(tmp_path/'b')).counts()


# class names of public sets and of lists people have made; 'I' and 'l' of the letters are two
NAMES = {
    'coco':
        'person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,'
        'stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,'
        'backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,'
        'baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,'
        'banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,'
        'potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,'
        'oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush',
    'voc':
        'aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,'
        'person,pottedplant,sheep,sofa,train,tvmonitor',
    'open images vehicles':
        'Vehicle,Land vehicle,Car,Van,Truck,Bus,Taxi,Limousine,Ambulance,Bicycle,Bicycle wheel,'
        'Bicycle helmet,Motorcycle,Unicycle,Segway,Golf cart,Cart,Snowmobile,Tank,Train,Airplane,'
        'Helicopter,Boat,Barge,Canoe,Gondola,Jet ski,Submarine,Watercraft,Wheelchair,Stretcher,Wheel,'
        'Tire,Vehicle registration plate,Traffic light,Traffic sign,Stop sign,Street light,Parking meter,'
        'Fire hydrant,Cat,Cattle,Caterpillar,Horse,House,Goat,Goose,Mouse,Door,Door handle,Glove,'
        'Globe,Clock,Clothing,Box,Boy,Bow and arrow,Bowl,Bowling equipment,Ball,Balloon,Bell pepper,'
        'Belt,Beer,Bear,Bee,Beetle,Bed,Bench,Pen,Penguin,Pear,Peach,Plant,Plate,Snail,Snake,Snack,'
        'Spoon,Spatula,Scarf,Screwdriver,Tea,Teapot,Tiger,Tie,Toilet,Toilet paper,Towel,Tower,Toy,'
        'Window,Window blind,Wine,Wine glass,Wine rack',
    'face masks':
        'with_mask,without_mask,mask_weared_incorrect',
    'face masks 2':
        'Mask,No Mask,Incorrect Mask,face,face_mask,masked,unmasked',
    'parking':
        'occupied,unoccupied,space-empty,space-occupied,empty,free,partially_free,not_free',
    'challenge':
        '세단(승용차),SUV,승합차,버스,학원차량(통학버스),트럭,택시,성인,어린이,오토바이,전동킥보드,자전거,유모차,쇼핑카트',
    'road damage':
        'D00,D01,D10,D11,D20,D40,D43,D44,D50,longitudinal crack,transverse crack,alligator crack,'
        'pothole,linear crack',
    'fruit':
        'apple,pineapple,orange,banana,grape,grapefruit,grapes,lemon,lime,melon,watermelon,mango,'
        'papaya,peach,pear,plum,strawberry,blueberry,raspberry,cranberry,cherry,cherry tomato,tomato,'
        'potato,ripe,unripe,overripe,fresh apple,rotten apple,fresh banana,rotten banana,fresh orange,'
        'rotten orange',
    'fruit 2':
        'freshapples,rottenapples,freshbanana,rottenbanana,freshoranges,rottenoranges',
    'birds':
        'Black_footed_Albatross,Laysan_Albatross,Sooty_Albatross,Brewer_Blackbird,Red_winged_Blackbird,'
        'Rusty_Blackbird,Yellow_headed_Blackbird,Indigo_Bunting,Lazuli_Bunting,Painted_Bunting,'
        'Brandt_Cormorant,Pelagic_Cormorant,Red_faced_Cormorant,Bronzed_Cowbird,Shiny_Cowbird,American_Crow,'
        'Fish_Crow,Black_billed_Cuckoo,Yellow_billed_Cuckoo,Purple_Finch,Northern_Flicker,Least_Flycatcher,'
        'Boat_tailed_Grackle,Eared_Grebe,Horned_Grebe,Western_Grebe,California_Gull,Glaucous_winged_Gull,'
        'Heermann_Gull,Herring_Gull,Ivory_Gull,Ring_billed_Gull,Western_Gull,Blue_Jay,Green_Jay,'
        'Tropical_Kingbird,Gray_Kingbird,Belted_Kingfisher,Pied_Kingfisher,Baltimore_Oriole,Hooded_Oriole,'
        'Orchard_Oriole,Scott_Oriole,Brown_Pelican,White_Pelican,Fox_Sparrow,Field_Sparrow,Song_Sparrow,'
        'Tree_Sparrow,Vesper_Sparrow,House_Sparrow,Bank_Swallow,Barn_Swallow,Cliff_Swallow,Tree_Swallow,'
        'Scarlet_Tanager,Summer_Tanager,Artic_Tern,Black_Tern,Caspian_Tern,Common_Tern,Elegant_Tern,'
        'Forsters_Tern,Least_Tern,Philadelphia_Vireo,Red_eyed_Vireo,Warbling_Vireo,White_eyed_Vireo,'
        'Hooded_Warbler,Palm_Warbler,Pine_Warbler,Prairie_Warbler,Wilson_Warbler,Yellow_Warbler,House_Wren,'
        'Marsh_Wren,Rock_Wren,Winter_Wren',
    'lvis part':
        'aerosol_can,air_conditioner,airplane,alarm_clock,alcohol,alligator,almond,ambulance,amplifier,'
        'anklet,antenna,apple,applesauce,apricot,apron,aquarium,armband,armchair,armor,artichoke,'
        'ashtray,asparagus,avocado,award,awning,ax,baboon,baby_buggy,backpack,bagel,baguet,bait,ball,'
        'ballet_skirt,balloon,bamboo,banana,Band_Aid,bandage,bandanna,banjo,banner,barbell,barge,'
        'barrel,barrette,barrow,baseball,baseball_base,baseball_bat,baseball_cap,baseball_glove,basket,'
        'basketball,bass_horn,bat_(animal),bath_mat,bath_towel,bathrobe,bathtub,battery,beachball,bead,'
        'bean_curd,beanbag,beanie,bear,bed,bedpan,bedspread,beef_(food),beeper,beer_bottle,beer_can,'
        'beetle,bell,bell_pepper,belt,belt_buckle,bench,beret,bib,bicycle,binder,binoculars,bird,'
        'birdbath,birdcage,birdfeeder,birdhouse,birthday_cake,birthday_card,blackberry,blackboard,'
        'blanket,blazer,blender,blimp,blouse,blueberry,boat,bobbin,bobby_pin,boiled_egg,bolt,bonnet,'
        'book,bookcase,booklet,bookmark,boot,bottle,bottle_cap,bottle_opener,bouquet,bow-tie,'
        'bow_(weapon),bowl,bowler_hat,bowling_ball,box,boxing_glove,bracelet,brake_light,brass_plaque,'
        'brassiere,bread,bread-bin,bridal_gown,briefcase,broach,broccoli,broom,brownie,brussels_sprouts,'
        'bubble_gum,bucket,bull,bulldog,bulldozer,bullet_train,bulletin_board,bun,bunk_bed,buoy,'
        'burrito,bus_(vehicle),business_card,butter,butterfly,button,cab_(taxi),cabin_car,cabinet,cake,'
        'calculator,calendar,calf,camcorder,camel,camera,camera_lens,camper_(vehicle),can,can_opener,'
        'candle,candle_holder,candy_bar,candy_cane,canister,canoe,cantaloup,canteen,cap_(headwear),cape,'
        'cappuccino,car_(automobile),card,cardigan,cargo_ship,carnation,carrot,cart,carton,'
        'cash_register,casserole,cassette,cast,cat,cauliflower,cayenne_(spice),CD_player,celery,'
        'cellular_telephone,chain_mail,chair,chaise_longue,chalice,chandelier,chap,checkbook,'
        'checkerboard,cherry,chessboard,chicken_(animal),chickpea,chili_(vegetable),chime,chinaware,'
        'chocolate_bar,chocolate_cake,chocolate_milk,chocolate_mousse,choker,chopping_board,chopstick,'
        'Christmas_tree,cider,cigar_box,cigarette,cistern,clarinet,clasp,cleansing_agent,clementine,'
        'clip,clipboard,clippers_(for_plants),cloak,clock,clock_tower,clothes_hamper,clothespin,coaster,'
        'coat,coat_hanger,coatrack,cock,cockroach,cocoa_(beverage),coconut,coffee_maker,coffee_table,'
        'coffeepot,coil,coin,colander,coleslaw,collar,comic_book,compass,computer_keyboard,condiment,'
        'cone,control,cookie,cooking_utensil,cooler_(for_food),corkboard,corkscrew,cornbread,cornet,'
        'cornice,cornmeal,corset,costume,cougar,coverall,cow,cowbell,cowboy_hat,crab_(animal),crabmeat,'
        'cracker,crape,crate,crayon,cream_pitcher,crescent_roll,crib,crock_pot,crossbar,crouton,crow,'
        'crowbar,crown,crucifix,cruise_ship,crumb,crutch,cub_(animal),cube,cucumber,cufflink,cup,'
        'cupboard,cupcake,curtain,cushion,cylinder,cymbal,dagger,dalmatian,dartboard,date_(fruit),'
        'deck_chair,deer,dental_floss,desk,detergent,diaper,diary,dirt_bike,dish,dish_antenna,dishrag,'
        'dishtowel,dishwasher,dispenser,dog,dog_collar,doll,dolphin,domestic_ass,doorknob,doormat,'
        'doughnut,dove,dragonfly,drawer,dress,dress_hat,dress_suit,dresser,drill,drone,'
        'drum_(musical_instrument),drumstick,duck,duckling,duct_tape,duffel_bag,dumbbell,dumpster,'
        'dustpan,eagle,earphone,earplug,earring,easel,eclair,eel,egg,egg_roll,egg_yolk,eggbeater,'
        'eggplant,elephant,elevator_car,elk,envelope,eraser,escargot,eyepatch,falcon,fan,faucet,'
        'ferret,Ferris_wheel,ferry,fig_(fruit),fighter_jet,figurine,file_cabinet,fireplug,fireplace,'
        'fish,fish_(food),fishbowl,fishing_rod,flag,flagpole,flamingo,flannel,flap,flash,flashlight,'
        'fleece,flip-flop_(sandal),flipper_(footwear),flute_glass,foal,folding_chair,food_processor,'
        'football_(American),footstool,fork,forklift,freight_car,French_toast,freshener,frisbee,frog,'
        'fruit_juice,frying_pan,fudge,funnel,futon,gag,garbage,garbage_truck,garden_hose,gargle,garlic,'
        'gasmask,gazelle,gelatin,giant_panda,gift_wrap,ginger,giraffe,cincture,glass_(drink_container),'
        'globe,glove,goat,goggles,goldfish,golf_club,golfcart,goose,gorilla,gourd,grape,grater,'
        'gravestone,gravy_boat,green_bean,green_onion,griddle,grill,grits,grizzly,grocery_bag,guitar,'
        'gull,gun',
    'visdrone':
        'ignored regions,pedestrian,people,bicycle,car,van,truck,tricycle,awning-tricycle,bus,motor,'
        'others',
    'dota':
        'plane,ship,storage-tank,baseball-diamond,tennis-court,basketball-court,ground-track-field,harbor,'
        'bridge,large-vehicle,small-vehicle,helicopter,roundabout,soccer-ball-field,swimming-pool,'
        'container-crane,airport,helipad',
    'kitti':
        'Car,Van,Truck,Pedestrian,Person_sitting,Cyclist,Tram,Misc,DontCare',
    'bdd100k':
        'pedestrian,rider,car,truck,bus,train,motorcycle,bicycle,traffic light,traffic sign,'
        'other vehicle,other person,trailer',
    'cityscapes':
        'unlabeled,ego vehicle,rectification border,out of roi,static,dynamic,ground,road,sidewalk,'
        'parking,rail track,building,wall,fence,guard rail,bridge,tunnel,pole,polegroup,traffic light,'
        'traffic sign,vegetation,terrain,sky,person,rider,car,truck,bus,caravan,trailer,train,'
        'motorcycle,bicycle,license plate',
    'ppe':
        'Hardhat,NO-Hardhat,Mask,NO-Mask,Safety Vest,NO-Safety Vest,Person,Safety Cone,Gloves,NO-Gloves,'
        'Goggles,NO-Goggles,machinery,vehicle,Safety Shoes,Fall-Detected,Ladder',
    'hard hats':
        'helmet,head,person,no helmet,no_vest,vest,boots,no boots,glove,no glove',
    'traffic signs':
        'speed limit 20,speed limit 30,speed limit 50,speed limit 60,speed limit 70,speed limit 80,'
        'end of speed limit 80,no passing,end of no passing,priority road,yield,stop,no entry,'
        'dangerous curve left,dangerous curve right,double curve,bumpy road,slippery road,'
        'road narrows on the right,road work,pedestrians,children crossing,bicycles crossing,'
        'wild animals crossing,turn right ahead,turn left ahead,ahead only,go straight or right,'
        'go straight or left,keep right,keep left,roundabout mandatory,Green Light,Red Light,Yellow Light,'
        'pl5,pl10,pl50,pl100,pn,pne,p1,p10,p11,i2,i4,i5,il60,il80,w13,w55',
    'pets':
        'Abyssinian,american_bulldog,american_pit_bull_terrier,basset_hound,beagle,Bengal,Birman,Bombay,'
        'boxer,British_Shorthair,chihuahua,Egyptian_Mau,english_cocker_spaniel,english_setter,'
        'german_shorthaired,great_pyrenees,havanese,japanese_chin,keeshond,leonberger,Maine_Coon,'
        'miniature_pinscher,newfoundland,Persian,pomeranian,pug,Ragdoll,Russian_Blue,saint_bernard,'
        'samoyed,scottish_terrier,shiba_inu,Siamese,Sphynx,staffordshire_bull_terrier,wheaten_terrier,'
        'yorkshire_terrier',
    'cards':
        '10c,2c,3c,4c,5c,6c,7c,8c,9c,Ac,Jc,Kc,Qc,10d,2d,3d,4d,5d,6d,7d,8d,9d,Ad,Jd,Kd,'
        'Qd,10h,2h,3h,4h,5h,6h,7h,8h,9h,Ah,Jh,Kh,Qh,10s,2s,3s,4s,5s,6s,7s,8s,9s,As,Js,'
        'Ks,Qs,ace of clubs,ace of spades,king of clubs,king of spades,queen of hearts,jack of diamonds',
    'plant disease':
        'Apple Scab Leaf,Apple leaf,Apple rust leaf,Bell_pepper leaf,Bell_pepper leaf spot,Blueberry leaf,'
        'Cherry leaf,Corn Gray leaf spot,Corn leaf blight,Corn rust leaf,Peach leaf,Potato leaf,'
        'Potato leaf early blight,Potato leaf late blight,Raspberry leaf,Soyabean leaf,'
        'Squash Powdery mildew leaf,Strawberry leaf,Tomato Early blight leaf,Tomato Septoria leaf spot,'
        'Tomato leaf,Tomato leaf bacterial spot,Tomato leaf late blight,Tomato leaf mosaic virus,'
        'Tomato leaf yellow virus,Tomato mold leaf,Tomato two spotted spider mites leaf,grape leaf,'
        'grape leaf black rot',
    'pcb':
        'missing_hole,mouse_bite,open_circuit,short,spur,spurious_copper',
    'logos':
        'Adidas,Aldi,Apple,BMW,Carlsberg,Chimay,Coca-Cola,Corona,DHL,Erdinger,Esso,FedEx,Ferrari,'
        'Ford,Fosters,Google,Guinness,Heineken,HP,Milka,Nvidia,Paulaner,Pepsi,Ritter Sport,Shell,'
        'Singha,Starbucks,Stella Artois,Texaco,Tsingtao,UPS,Nike,Puma,Prada,Honda,Hyundai,Toyota,'
        'Bosch,Boss,Visa,Vista,Intel,IBM,Kia,Mini,Red Bull',
    'sports':
        'ball,goalkeeper,player,referee,player left,player right,goalkeeper left,goalkeeper right,rim,'
        'hoop,basketball,shoot,made,person,ball-in-basket,number,jump-shot,layup-dunk,'
        'player-in-possession,player-shot-block',
    'hand signs':
        'A,B,C,D,E,F,G,H,I,J,K,L,M,N,O,P,Q,R,S,T,U,V,W,X,Y,Z,hello,yes,no,thank you,'
        'i love you,please,paper,rock,scissors,call,dislike,fist,four,like,mute,ok,one,palm,peace,'
        'peace inverted,stop,stop inverted,three,three2,two up,two up inverted',
    'letters and digits':
        'A,B,C,D,E,F,G,H,I,J,K,L,M,N,O,P,Q,R,S,T,U,V,W,X,Y,Z,a,b,c,d,e,f,g,h,i,'
        'j,k,l,m,n,o,p,q,r,s,t,u,v,w,x,y,z,0,1,2,3,4,5,6,7,8,9',
    'dental':
        'Caries,Deep Caries,Impacted,Periapical Lesion,Crown,Filling,Implant,Malaligned,Mandibular Canal,'
        'Missing teeth,Permanent Teeth,Primary teeth,Retained root,Root Canal Treatment,Root Piece,'
        'Root resorption,Supra Eruption,TAD,abutment,attrition,bone defect,gingival former,metal band,'
        'orthodontic brackets,permanent retainer,post - core,plating,wire,Cyst,11,12,13,21,22,23,31,'
        '41',
    'underwater':
        'holothurian,echinus,scallop,starfish,waterweeds,fish,jellyfish,penguin,puffin,shark,stingray,'
        'seahorse,sea urchin,crab,blue crab,shrimp,small_fish,large fish',
    'blood':
        'RBC,WBC,Platelets,basophil,eosinophil,lymphocyte,monocyte,neutrophil,erythroblast,'
        'neutrophil banded,neutrophil segmented,promyelocyte,myelocyte,metamyelocyte',
    'people':
        'man,woman,boy,girl,male,female,adult,child,smoking,no smoking,fire,smoke,fallen,standing,'
        'sitting,open,closed,eye_open,eye_closed,left hand,right hand,left eye,right eye,legal,illegal,'
        'normal,abnormal',
    'chess':
        'white-king,white-queen,white-rook,white-bishop,white-knight,white-pawn,black-king,black-queen,'
        'black-rook,black-bishop,black-knight,black-pawn,bishop',
    'trash':
        'plastic,paper,cardboard,metal,glass,trash,Plastic bottle,Plastic bottle cap,Plastic film,'
        'Plastic lid,Plastic straw,Paper bag,Paper cup,Paper straw,Glass bottle,Glass jar,Glass cup,'
        'Metal bottle cap,Metal lid,Drink can,Drink carton,Food Can,Food waste,Foam cup,'
        'Foam food container,Other plastic,Other plastic bottle,Other carton,Unlabeled litter,Battery,Shoe,'
        'Rope & strings',
}


def said_of_names(names, counts):
    c = np.repeat(np.arange(len(names)), counts)
    x, z = np.arange(len(c))*10., np.zeros(len(c))  # side by side: no duplicates
    t = Table.make(images=dict(file=['a']), boxes=dict(image=z.astype(int), category=c, x0=x, y0=z, x1=x + 9, y1=z + 9),
                   names=names)
    return check(t, images=False).of('class-name').rows['evidence'].tolist()


@pytest.mark.parametrize('name', NAMES)
def test_no_two_classes_of_a_public_set_are_merged(name):
    names = ''.join(NAMES[name]).split(',')
    assert len(set(names)) == len(names)
    for seed in range(3):
        rank = np.random.default_rng(seed).permutation(len(names)) if seed else np.zeros(len(names))
        assert said_of_names(names, (300/(1 + rank)**1.3).astype(int)) == []


@pytest.mark.parametrize('pair', ['Car,car', 'no_helmet,no-helmet', 'HardHat,hard_hat', 'truck,truk',
                                  'pedestrian,pedestrain', 'motorcycle,motorcyle',
                                  'helmet,hemlet', 'license plate,liscense plate', '트럭,트럭 ',
                                  'ambulance,ambulence', 'traffic light,trafic light'])
def test_slips_are_asked_about(pair):
    assert len(said_of_names(pair.split(','), [100, 4])) == 1
    if 'one name' not in said_of_names(pair.split(','), [100, 4])[0]:
        assert said_of_names(pair.split(','), [100, 90]) == []                            # as frequent: two things


@pytest.mark.parametrize('cameras', [3, 4])
def test_each_of_a_few_cameras_validates(tmp_path, cameras):
    "No group holds more than a third, but none fits into val whole: cut by time, with frames that look otherwise."
    for k in range(cameras):
        camera(tmp_path/str(k), lambda i: f'cam{k}_{i:05}', n=40, drive=True)
        for p in (tmp_path/str(k)).glob('*/*'):
            to = tmp_path/'all'/p.relative_to(tmp_path/str(k))
            to.parent.mkdir(parents=True, exist_ok=True)
            if p.suffix == '.txt': p.rename(to); continue
            x = images.read_image(p)
            images.write_image(to, np.roll(x[::(-1)**k], 60*k, 1)[..., [k % 3, (k + 1) % 3, (k + 2) % 3]])
    notes = []
    t = split(read(tmp_path/'all'), how='auto', notes=notes)
    for k in range(cameras):
        of = np.array([f.startswith(f'cam{k}') for f in t.images['file']])
        n = {s: int((of & (t.images['split'] == s)).sum()) for s in ('train', 'val')}
        assert n['train'] >= 30 and 4 <= n['val'] <= 8, (k, n, notes)
    assert sum('split by time' in s for s in notes) == cameras and not any('asked for' in s for s in notes)
