"Files as people have them (shared/data/field/darknet): what each should do, and others of its kind."
import warnings, zipfile
import numpy as np, pytest, torch
from yolokit.core.files import project_root
from yolokit.export.bundles import to_darknet
from yolokit.export.compatibility import RUNTIMES, check_compatibility
from yolokit.export.lowering import lower_to_darknet
from yolokit.network.cfg import Cfg, CfgError
from yolokit.network.checkpoints import load_checkpoint
from yolokit.network.model import Detector, state_hash
from yolokit.network.pretrained import load_weights
from yolokit.network.weights import WeightsError, read_weights, write_weights

FIELD = project_root().parent/'shared/data/field/darknet'
needs_field = pytest.mark.skipif(not FIELD.is_dir(), reason='no ../shared/data/field')

HEAD = '''[net]
width=64
height=64
channels=3
[convolutional]
filters={filters}
size=3
stride=2
pad=1
activation=linear
{more}
[yolo]
{mask}
anchors=10,14, 23,27, 37,58
classes=2
{num}
'''

def small(mask='mask=0,1,2', num='num=3', more='', filters=21):
    return Cfg(HEAD.format(mask=mask, num=num, more=more, filters=filters), 'small.cfg')

@pytest.mark.parametrize('mask,num', [('mask=0,1,2', 'num=2'), ('mask=0,1,2', ''), ('mask=1,2,-3', 'num=3'),
                                      ('mask=-1,0,1', '')])
def test_mask_beyond_num_is_found_by_every_target_and_written_right(mask, num):
    cfg = small(mask, num)
    for t in RUNTIMES: assert any(f.key == 'mask' for f in check_compatibility(cfg, t)), t
    assert not any(f.effect == 'rejected' for f in check_compatibility(cfg, 'onnx')) # to_onnx writes it right
    d = Detector(cfg).eval()
    lowered = lower_to_darknet(d)[0]
    s = lowered.cfg.sections[-1]
    assert s['num'] == '3' and s.ints('mask') == [n % 3 for n in cfg.sections[-1].ints('mask')]
    assert not [f for f in check_compatibility(lowered.cfg, 'darknet') if f.key == 'mask']
    x = torch.rand(1, 3, 64, 64)
    assert torch.allclose(lowered.decode(lowered(x)), d.decode(d(x)), atol=1e-4)

def test_no_mask_is_beyond_num():
    assert not [f for t in RUNTIMES for f in check_compatibility(small(), t) if f.key == 'mask']
    with pytest.raises(CfgError, match='anchors from 0 to 2'): Detector(small('mask=-4,0,1'))

@needs_field
@pytest.mark.parametrize('name', ['08_num2', '08_no_num'])
def test_field_num(name):
    cfg = Cfg.read(FIELD/f'{name}.cfg')
    assert all(any(f.key == 'mask' for f in check_compatibility(cfg, t)) for t in RUNTIMES)

@needs_field
def test_field_comma_in_a_comment():
    cfg = Cfg.read(FIELD/'09_route_comment.cfg')
    assert [f.line for f in check_compatibility(cfg, 'darknet') if 'comma' in f.found] == [23]
    assert cfg.plan()[2].inputs == [1]
    again = Cfg(str(cfg).replace('# was -1, 0', '# was -1 and 0'), 'x.cfg')
    assert not [f for f in check_compatibility(again, 'darknet') if 'comma' in f.found]

@needs_field
def test_field_shortcut_from_a_wider_layer_leaves(tmp_path):
    e = to_darknet(Detector(Cfg.read(FIELD/'07_shortcut_from_wider.cfg')).eval(), tmp_path)
    assert max(c.maps for c in e.checks) < 1e-5 if hasattr(e, 'checks') else 'opencv' in str(e)

def test_shortcut_from_a_narrower_layer_is_still_found():
    text = str(small(more='[convolutional]\nfilters=12\nactivation=linear\n[convolutional]\nfilters=21\n'
                          'activation=linear\n[shortcut]\nfrom=-2\n', filters=21))
    assert [f for f in check_compatibility(Cfg(text, 'x.cfg'), 'darknet') if 'past the end' in f.found]

def test_xnor_sees_minus_one_around_the_map():
    d = Detector(small(more='xnor=1')).eval()
    conv = d.layers[0]
    with torch.no_grad():
        conv.conv.weight.fill_(.5); conv.conv.bias.zero_()
        y = conv(torch.ones(1, 3, 64, 64))
    # 27 weights of .5 on signs: a corner at stride 2 sees 4 pixels of the picture and 5 of −1, in three channels
    assert y[0, 0, 5, 5].item() == 13.5 and y[0, 0, 0, 0].item() == -1.5 and y[0, 0, 0, 5].item() == 4.5

@needs_field
def test_field_step_of_an_input_is_that_of_the_deepest_map():
    d = Detector(Cfg.read(FIELD/'13_step.cfg')).eval()
    assert d.stride == 4 and d.heads[0].stride == 2
    assert d(torch.rand(1, 3, 68, 60))[0].shape[2:] == (34, 30)
    with pytest.raises(ValueError, match='multiples of 4'): d(torch.rand(1, 3, 66, 60))

@pytest.mark.parametrize('raw,word', [('utf-16', 'UTF-16'), ('utf-16-le', 'UTF-16'), ('utf-16-be', 'UTF-16'),
                                      ('cr', 'lone CR'), ('net', 'second one')])
def test_texts_that_are_no_cfg_are_named(tmp_path, raw, word):
    f, text = tmp_path/'주차.cfg', str(small())
    f.write_bytes(text.replace('\n', '\r').encode() if raw == 'cr' else (text + text).encode() if raw == 'net'
                  else text.encode(raw))
    with pytest.raises(CfgError, match=word): Detector(Cfg.read(f))

@needs_field
@pytest.mark.parametrize('name', sorted(p.stem for p in FIELD.glob('*.cfg')))
def test_field_cfg_is_built_and_checked(name):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        cfg = Cfg.read(FIELD/f'{name}.cfg')
    d = Detector(cfg).eval()
    rows = d.decode(d(torch.zeros(1, d.cfg.net.int('channels'), 64, 64)))
    assert np.isfinite(rows.detach().numpy()).all()
    for t in RUNTIMES: check_compatibility(cfg, t)

# weights and names

BARE = FIELD/'01_variance.cfg'

def fresh(tmp_path, name='parking', names='car\nbus\n', encoding='utf-8'):
    "A folder with a small cfg, its weights and names."
    d = Detector(small(), seed=3)
    (tmp_path/f'{name}.cfg').write_text(str(d.cfg), encoding='utf-8')
    write_weights(d, tmp_path/f'{name}.weights')
    if names is not None: (tmp_path/f'{name}.names').write_bytes(names.encode(encoding))
    return d, tmp_path/f'{name}.weights'

@needs_field
def test_field_variance_a_hair_below_zero():
    d = Detector(Cfg.read(BARE)).eval()
    read_weights(d, FIELD/'01_variance.weights')
    assert min(d.layers[0].bn.running_var.tolist()) < 0
    assert torch.isfinite(d(torch.rand(1, 3, 64, 64))[0]).all()

@pytest.mark.parametrize('value,word', [(-1e-5, 'variance below zero'), (float('nan'), 'layer 0 .*NaN'),
                                        (-9e-6, '')])
def test_variances(tmp_path, value, word):
    d = Detector(small(more='batch_normalize=1'))
    d.layers[0].bn.running_var[3] = value
    write_weights(d, tmp_path/'x.weights')
    again = Detector(d.cfg)
    if word:
        with pytest.raises(WeightsError, match=word): read_weights(again, tmp_path/'x.weights')
    else:
        read_weights(again, tmp_path/'x.weights')
        assert state_hash(again) == state_hash(d)

@needs_field
def test_field_headers_and_stray_bytes():
    d = Detector(Cfg.read(BARE))
    r = read_weights(d, FIELD/'02_v000_seen8.weights')
    assert r.seen == 64 and 'its header has 20 bytes' in r.summary()
    assert read_weights(d, FIELD/'02_three_stray_bytes.weights').left == 3

def test_a_short_header_under_a_new_version(tmp_path):
    d, f = fresh(tmp_path)
    torch.nn.init.constant_(next(p for n, p in d.named_parameters() if n.endswith('bias')), .5)
    write_weights(d, f)                                 # the first weight, a bias, is not zero: no half of a count
    raw = f.read_bytes()
    f.write_bytes(raw[:12] + b'\x07\0\0\0' + raw[20:])
    again = Detector(d.cfg)
    r = read_weights(again, f)
    assert r.seen == 7 and state_hash(again) == state_hash(d) and 'header has 16' in r.word
    f.write_bytes(raw[:12] + raw[20:] + b'\0'*12)
    with pytest.raises(WeightsError, match='too long'): read_weights(again, f)

@needs_field
def test_field_nan_is_named_with_its_layer():
    d = Detector(Cfg.read(BARE))
    with pytest.raises(WeightsError, match=r'layer \d.*NaN'): read_weights(d, FIELD/'14_nan.weights')

@needs_field
def test_field_counters_of_thop():
    d = load_checkpoint(FIELD/'05_thop_total_ops.pt', FIELD/'04_yolov3-parking.cfg', origin='yolov3')
    assert torch.isfinite(d(torch.rand(1, 3, 64, 64))[0]).all()

@needs_field
@pytest.mark.parametrize('name,asked', [('04_eriklindernoren', False), ('04_ultralytics_yolov3', True)])
def test_field_two_names_of_a_cfg_decode_alike(name, asked):
    x, out = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), []
    for cfg in ('04_parking.cfg', '04_yolov3-parking.cfg'):
        if asked:
            with pytest.raises(WeightsError, match='origin=yolov3'): load_checkpoint(FIELD/f'{name}.pt', FIELD/cfg)
        d = load_checkpoint(FIELD/f'{name}.pt', FIELD/cfg, origin='yolov3' if asked else '').eval()
        with torch.no_grad(): out.append(d.decode(d(x)))
        assert 'new_coords' not in str(d.cfg)
    assert torch.equal(*out)

@needs_field
@pytest.mark.parametrize('name', ['yolo_best.weights', 'yolo.backup', 'yolov4.conv.1'])
def test_field_names_that_darknet_gives(name):
    assert load_weights(FIELD/'12_best'/name).nc == 2

@pytest.mark.parametrize('name', ['주차_best.weights', '주차_last.weights', '주차_10000.weights', '주차_final.weights',
                                  '주차.backup', '주차.conv.1', '주차_last.weights.backup'])
def test_names_that_darknet_gives(tmp_path, name):
    d, f = fresh(tmp_path, '주차')
    (tmp_path/'other.cfg').write_text(str(small('mask=0', filters=7)))
    f.rename(tmp_path/name)
    again = load_weights(tmp_path/name)
    assert again.names == ['car', 'bus'] and state_hash(again) == state_hash(d)

def test_two_other_cfgs_are_not_chosen_from(tmp_path):
    _, f = fresh(tmp_path)
    (tmp_path/'parking.cfg').rename(tmp_path/'a.cfg'); (tmp_path/'b.cfg').write_text(str(small()))
    with pytest.raises(WeightsError, match='put parking.cfg beside'): load_weights(f)

@needs_field
def test_field_names():
    assert load_weights(FIELD/'12_bom/parking.weights').names == ['car', 'bus']
    assert load_weights(FIELD/'12_wrong_names/parking.weights').names == ['car', 'bus']
    with pytest.raises(WeightsError, match='3 names.*classes=2'): load_weights(FIELD/'12_three_for_two/parking.weights')

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'cp949', 'utf-16'])
def test_names_in_korean(tmp_path, encoding):
    assert load_weights(fresh(tmp_path, names='승용차\r\n뷁\r\n', encoding=encoding)[1]).names == ['승용차', '뷁']

def test_names_by_the_data_file(tmp_path):
    _, f = fresh(tmp_path, names=None)
    (tmp_path/'animals.names').write_text('cat\ndog\n')
    assert load_weights(f).names == ['0', '1']                  # nobody says that animals.names is meant
    (tmp_path/'parking.data').write_text('classes= 2\nnames = data/animals.names\n')
    assert load_weights(f).names == ['cat', 'dog']
    (tmp_path/'parking.data').write_text('names = data/none.names\n')
    with pytest.raises(WeightsError, match='none.names'): load_weights(f)

# YOLOv5

@needs_field
@pytest.mark.parametrize('name', ['yolov5_v6_2_ok', 'yolov5_v7_0_shared_act'])
def test_field_yolov5(name):
    d, z = load_checkpoint(FIELD/f'{name}.pt').eval(), np.load(FIELD/f'{name}.npz')
    x, y = (torch.from_numpy(z[k]).float() for k in z.files)
    # y is from before the file was rounded to half precision; bench/foreign_checkpoints.py compares after it
    with torch.no_grad(): assert abs(d.decode(d(x/255)) - y).max() < .01

@pytest.mark.parametrize('kind', ['ultralytics.nn.tasks.DetectionModel'])
def test_an_anchor_free_network_is_named(tmp_path, kind):
    module, _, name = kind.rpartition('.')
    program = f'\x80\x02c{module}\n{name}\n)\x81}}X\x05\0\0\0model'.encode('latin1') + b'X\x01\0\0\0xsb.'
    with zipfile.ZipFile(tmp_path/'u.pt', 'w') as z:
        z.writestr('u/data.pkl', program); z.writestr('u/version', '3')
    with pytest.raises(WeightsError, match='anchor-free'): load_checkpoint(tmp_path/'u.pt')
