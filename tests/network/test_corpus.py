"""Public cfgs by the hundred, and synthetic ones with the same dirt.
The first need a folder of cfgs: YOLOKIT_CFGS=/path pytest -m soak tests/network/test_corpus.py
(add -s to see the account)."""
import collections, os, random, warnings
from pathlib import Path

import pytest
import torch

from yolokit.network.cfg import HEADS, Cfg, CfgError
from yolokit.network.layers import build_layer
from yolokit.network.model import decode, Detector, parse_head

FOLDER = os.environ.get('YOLOKIT_CFGS', '')
corpus = pytest.mark.skipif(not Path(FOLDER).is_dir() or not FOLDER,
                            reason='YOLOKIT_CFGS names no folder of public cfgs')


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return Cfg.read(path)


def files(): return sorted(Path(FOLDER).rglob('*.cfg'))
def detects(c): return any(s.type in HEADS for s in c.sections)


def small(c): # four cells of the coarsest head, where that keeps every joint of the net legal, else its own size
    w, plan = c.net.int('width'), c.plan()
    if any(l.type in ('connected', 'local', 'detection', 'crop') for l in plan): return c
    side = 4*max(w//l.shape[2] for l in plan if l.type in HEADS)
    try: c.with_size(side, side).plan()
    except CfgError: return c
    return c.with_size(side, side)


@torch.no_grad()
def boxes(c):
    """Boxes of a forward pass at a small size, without the random weights of a whole Detector: names the reason if
    there are none."""
    c = small(c)
    plan = c.plan()
    heads, maps, out = {l.index: parse_head(c, plan, l) for l in plan
                        if l.type in HEADS}, {-1: torch.rand(1, 3 if c.net.int('channels', 3) == 3
                                                             else c.net.int('channels'), c.net.int('height'),
                                                             c.net.int('width'))}, []
    last = {j: l.index for l in plan for j in [l.index, *l.inputs]}
    for l in plan:
        m = build_layer(l).eval()
        for p in m.parameters(): p.mul_(.5)
        y = maps[l.index] = m(*[maps[j] for j in l.inputs])
        assert tuple(y.shape[1:]) == l.shape, (l, y.shape)
        assert sum(p.numel() for p in m.parameters()) == l.params or 'share_index' in l.section, l
        if l.index in heads: out.append(decode(y, heads[l.index]))
        for j in [j for j in maps if last[j] == l.index]: del maps[j]
    assert all(o.shape[2] == 5 + h.nc for o, h in zip(out, heads.values()))
    return torch.cat(out, 1) if len({o.shape[2] for o in out}) == 1 else out[0]


@corpus
@pytest.mark.soak
def test_every_public_cfg_comes_back_letter_by_letter():
    found = files()
    for p in found:
        c, b = read(p), p.read_bytes()
        assert str(c).encode('utf-8', 'surrogateescape') == b, p
        c.problems()
    print(f'\n{len(found)} cfgs identical after parse and print')


@corpus
@pytest.mark.soak
def test_every_public_detector_builds_or_names_the_reason():
    ok, why = 0, collections.defaultdict(list)
    for p in files():
        c = read(p)
        if not detects(c): continue
        try: assert boxes(c).isfinite().all(), p; ok += 1
        except CfgError as e: why[f'[{e.section}] expected {e.expected}, found {e.found}'].append(p.name)
    print(f'\n{ok} of {ok + sum(map(len, why.values()))} detectors build and run')
    for k, v in sorted(why.items(), key=lambda kv: -len(kv[1])): print(f'{len(v):4d}  {k}   ({v[0]})')
    assert ok > 10*sum(map(len, why.values()))


@corpus
@pytest.mark.soak
def test_whatever_is_no_detector_says_so():
    for p in files():
        c = read(p)
        if detects(c): continue
        try: [build_layer(l) for l in c.plan()]
        except CfgError as e: assert e.line and e.section and 'cfg' in str(e)


# The same dirt, written here: comments behind values, keys twice, blanks everywhere, aliases, three line ends, a BOM,
# no last newline.

def section(rnd, kind, **keys):
    rows = [f'{k}{rnd.choice(["=", " = ", "= ", chr(9) + "="])}{v}' for k, v in keys.items()]
    # a second value: the first counts
    if rows and rnd.random() < .2: rows.append(rows[0].split('=')[0].strip() + '=99')
    rows = [r + rnd.choice(['', '', '', '   ###P6', ' # why', ' ; no', '  ']) for r in rows]
    for _ in range(rnd.randint(0, 2)):
        rows.insert(rnd.randint(0, len(rows)), rnd.choice(['', '# a comment', ';another', '   ']))
    return [rnd.choice(['', ' ']) + f'[{kind}]' + rnd.choice(['', ' ', ' # head'])] + rows


def dirty(rnd):
    "A random network of a dozen layers that Darknet would accept, and what its heads must be."
    conv = lambda n, k=3, s=1, act='leaky', **more: (rnd.choice(['convolutional', 'conv']),
                                                     dict(filters=n, size=k, stride=s, pad=1, activation=act,
                                                          batch_normalize=1, **more))
    # n layers so far, 16 channels
    parts, n = [conv(8, s=2), conv(16, s=2)], 2
    for _ in range(rnd.randint(2, 6)):
        block = rnd.choice([[conv(16, 1), conv(16), ('shortcut', {'from': '-3', 'activation': 'linear'})],
                            [conv(8, 1), ('route', {'layers': '-1, -2'}), conv(16, 1)],
                            [(rnd.choice(['maxpool', 'max']), dict(size=5, stride=1)), conv(16, act='mish')],
                            [('route', {'layers': '-1', 'groups': 2, 'group_id': 1}), conv(16, 1)],
                            [('dropout', dict(probability='.1')), conv(16, act='swish')],
                            [('empty', {}), conv(16, 3, groups=4)],
                            [('reorg3d', dict(stride=2)), ('upsample', dict(stride=2)), conv(16, 1)],
                            [('upsample', dict(stride=2)), conv(16, 3, 2)]])
        parts += block; n += len(block)
    classes = rnd.randint(1, 5)
    parts += [(rnd.choice(['convolutional', 'conv']), dict(filters=2*(5 + classes), size=1, activation='linear')),
              ('yolo', dict(mask='0,1', anchors='10,13,  16,30', classes=classes, num=2))]
    size, lines = rnd.choice([32, 64]), []
    for kind, keys in [('net', dict(width=size, height=size, channels=3)), *parts]:
        lines += [*section(rnd, kind, **keys), '']
    return ('\ufeff' if rnd.random() < .1 else '') + rnd.choice(['\n', '\n', '\r\n']).join(
        lines[:-1] + ['']*rnd.randint(0, 2)), classes, size//4


def test_dirty_networks_come_back_and_build():
    for seed in range(25):
        text, classes, side = dirty(random.Random(seed))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            c = Cfg.parse(text, f'dirty{seed}.cfg')
        assert str(c) == text
        d = Detector(c).eval()
        with torch.no_grad(): p = d.decode(d(torch.rand(1, 3, *d.size)))
        assert p.shape == (1, 2*side*side, 5 + classes) and p.isfinite().all()
        again = c.with_classes(classes + 1)
        assert str(again.with_classes(classes)) == text and again.plan()[-1].shape[0] == 2*(6 + classes)


@pytest.mark.parametrize('seed', range(6))
def test_one_wrong_key_is_named_with_its_line(seed):
    rnd = random.Random(seed)
    text, *_ = dirty(rnd)
    lines = text.split('\n')
    e = rnd.choice([s.entry(k) for s in Cfg(text).sections[1:] for k in ('filters', 'activation', 'from', 'layers',
                                                                         'stride') if k in s])
    lines[e.line - 1] = lines[e.line - 1][:e.span[0]] + '?'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        c = Cfg.parse('\n'.join(lines), 'broken.cfg')
    with pytest.raises(CfgError) as raised: Detector(c)
    assert raised.value.line == e.line and '?' in str(raised.value.found)
