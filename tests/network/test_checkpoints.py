"""Checkpoints of others: what they mean, and what the hostile ones do not do; .weights for every section that holds
weights."""
import io, os, pickle, pickletools, re, struct, subprocess, sys, types, warnings, zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from yolokit.network import safe_pickle, zoo
from yolokit.network.cfg import Cfg
from yolokit.network.model import Detector, state_hash
from yolokit.network.weights import layout, read_weights, WeightsError, write_weights
from yolokit.network.checkpoints import load_checkpoint, transfer_weights

# ---- pickles put together by hand: names are text, pieces of program are bytes

def name(text): module, _, attr = text.rpartition('.'); return f'c{module}\n{attr}\n'.encode()
def value(x): return pickletools.optimize(pickle.dumps(x, 2))[2:-1]     # without PROTO and STOP
def raw(b): return b'B' + struct.pack('<I', len(b)) + b                # a bytes object
def code(x): return x if isinstance(x, bytes) else value(x)
def call(fn, *args): return (name(fn) if isinstance(fn, str) else fn) + b'(' + b''.join(map(code, args)) + b'tR'
def attr(thing, n): return call('builtins.getattr', thing, n)
def program(body): return b'\x80\x02' + body + b'.'
def stack_global(module, n): return value(module) + value(n) + b'\x93'


HABITS = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {'short': 2, 'int': 4, 'long': 4}}
def legacy(body, keys=(), tail=b'', magic=safe_pickle._MAGIC, habits=HABITS): # torch before 1.6
    return b''.join(pickle.dumps(x, 2) for x in (magic, 1001, habits)) + body + pickle.dumps(list(keys), 2) + tail


def attacks(c: str) -> dict: # c: the file that the attack makes → what it is called: its pickle
    "Each of these makes a file when `pickle.load` reads it."
    sh, py, system, path = f'touch {c}', f"open({c!r}, 'w').close()", name('posix.system'), call('pathlib.PosixPath', c)
    inner = raw(program(call('posix.system', sh)))
    imported = lambda m: call('importlib.import_module', m)
    simple = {'posix.system': (sh,), 'os.system': (sh,), 'subprocess.call': (['touch', c],),
              'subprocess.run': (['touch', c],), 'subprocess.check_output': (['touch', c],),
              'subprocess.getoutput': (sh,), 'os.mkdir': (c,), 'os.makedirs': (c,), 'os.symlink': ('/', c),
              'os.open': (c, os.O_CREAT | os.O_WRONLY), 'os.mkfifo': (c,),
              'os.spawnlp': (os.P_WAIT, 'touch', 'touch', c), 'builtins.eval': (py,), 'builtins.exec': (py,),
              '__builtin__.eval': (py,), 'builtins.open': (c, 'w'), 'io.open': (c, 'w'),
              '_io.FileIO': (c, 'w'), 'codecs.open': (c, 'w'), 'logging.FileHandler': (c,), 'sqlite3.connect': (c,),
              'zipfile.ZipFile': (c, 'w'), 'tarfile.open': (c, 'w'), 'gzip.open': (c, 'wb'),
              'bz2.open': (c, 'wb'), 'lzma.open': (c, 'wb'), 'shutil.copyfile': ('/dev/null', c),
              'shutil.copytree': (c + '.dir', c), 'numpy.memmap': (c, 'u1', 'w+', 0, (1,)),
              'urllib.request.urlretrieve': ('data:,x', c),
              'torch.serialization.save': (1, c), 'pickle.loads': (inner,), '_pickle.loads': (inner,),
              'numpy.load': (c + '.npy', None, True),
              'torch.storage._load_from_bytes': (raw(legacy(program(call('posix.system', sh)))),),
              'runpy.run_path': (c + '.py',), 'timeit.timeit': (py, 'pass', name('time.time'), 1),
              'cProfile.run': (py,), 'operator.call': (system, sh)}
    out = {k: call(k, *a) for k, a in simple.items()} | {
        'subprocess.Popen': call(attr(call('subprocess.Popen', ['touch', c]), 'wait')),
        'os.posix_spawnp': call('os.waitpid', call('os.posix_spawnp', 'touch', ['touch', c], {}), 0),
        'builtins.compile': call('builtins.exec', call('builtins.compile', py, 'x', 'exec')),
        'builtins.__import__': call(attr(call('builtins.__import__', 'os'), 'system'), sh),
        'importlib.import_module': call(attr(attr(imported('shutil'), 'os'), 'system'), sh),
        'getattr of an inert object': call(attr(path, 'touch')),
        'getattr of an inert class': call(attr(name('pathlib.Path'), 'touch'), path),
        'getattr up to the globals': call(attr(attr(attr(attr(name('torch.nn.parallel.DistributedDataParallel'),
                                                              '__init__'), '__globals__'), '__getitem__'), '__call__'),
                                          'os') + b'0' + call('os.system', sh),
        'operator.attrgetter': call(call(call('operator.attrgetter', 'system'), imported('os')), sh),
        'operator.itemgetter': call(call(call('operator.itemgetter', 'system'), call('builtins.vars', imported('os'))),
                                    sh),
        'operator.methodcaller': call(call('operator.methodcaller', 'touch'), path),
        'functools.partial': call(call('functools.partial', system, sh)),
        'functools.reduce': call('functools.reduce', name('operator.call'), b'](' + system + value(sh) + b'e'),
        'builtins.map': call('builtins.list', call('builtins.map', system, [sh])),
        'itertools.starmap': call('builtins.list', call('itertools.starmap', system, [(sh,)])),
        'builtins.filter in a set': call('builtins.set', call('builtins.filter', system, [sh])),
        'collections.defaultdict': call(attr(call('collections.defaultdict', call('functools.partial', system, sh)),
                                             '__missing__'), 1),
        'code.InteractiveInterpreter': call(attr(call('code.InteractiveInterpreter'), 'runsource'), py),
        'types.FunctionType': call(call('types.FunctionType', call('builtins.compile', py, 'x', 'exec'), b'}'
                                        + value('__builtins__') + imported('builtins') + b's')),
        'ctypes.CDLL': call(attr(call('ctypes.CDLL', None), 'system'), raw(sh.encode())),
        'opcode INST': b'(' + value(sh) + b'iposix\nsystem\n', 'opcode OBJ': b'('
        + name('_io.FileIO') + value(c) + value('w') + b'o',
        'opcode INST of a class': b'(' + value(c) + value('w') + b'i_io\nFileIO\n',
        'opcode NEWOBJ': name('numpy.memmap') + b'(' + b''.join(map(value, (c, 'u1', 'w+', 0, (1,)))) + b't\x81',
        'opcode NEWOBJ_EX': name('numpy.memmap') + b'('
        + value(c) + value('u1') + value('w+') + value(0) + value((1,)) + b't}\x92',
        'opcode BUILD': name('functools.partial') + b'(' + name('time.time') + b't\x81' + b'(' + system
        + value((sh,)) + value({}) + b'Ntb' + b')R',
        'opcode EXT1': b'\x82\xf0' + b'(' + value(sh) + b'tR', 'opcode EXT2': b'\x83\xf1\xf1' + b'('
        + value(sh) + b'tR', 'opcode EXT4': b'\x84\xf2\xf2\x00\x00' + b'(' + value(sh) + b'tR',
        'opcode STACK_GLOBAL': stack_global('posix', 'system') + b'(' + value(sh) + b'tR',
        'STACK_GLOBAL through an allowed module': b'\x80\x04'
        + stack_global('torch.nn.parallel.distributed', 'os.system') + b'(' + value(sh) + b'tR',
        'STACK_GLOBAL through an allowed class': b'\x80\x04' + stack_global('pathlib', 'Path.touch') + b'(' + path
        + b'tR',
        'thrown away at once': call('posix.system', sh) + b'0' + value({'epoch': 3}), 'in a key': b'}'
        + call('posix.system', sh) + b'Ns', 'in a list': b']' + call('posix.system', sh) + b'a',
        'state of an inert object': call('argparse.Namespace') + b'}' + value('x') + call('posix.system', sh) + b'sb',
        'argument of an inert object': call('pathlib.PosixPath', 'x') + b'0'
        + call('torch.Size', b'](' + call('posix.system', sh) + b'e'),
        'argument of a parameter': call('torch._utils._rebuild_parameter', call('posix.system', sh), True,
                                        call('collections.OrderedDict')),
        'in the memo': call('posix.system', sh) + b'q\x00' + b'0' + value([]) + b'0' + b'h\x00'}
    out = {k: program(b) for k, b in out.items()}
    return out | {'protocol 0': f'cposix\nsystem\n(V{sh}\ntR.'.encode(),
                  'two programs in one': program(value({'a': 1}))[:-1] + b'0' + call('posix.system', sh) + b'.'}


LOADER = '''
import copyreg, os, pickle, sys
for c in (0xf0, 0xf1f1, 0xf2f2): copyreg.add_extension('posix', 'system', c) if c == 0xf0 else \
copyreg._inverted_registry.__setitem__(c, ('posix', 'system'))
import pathlib, torch, torch.nn.parallel.distributed
for p in sorted(pathlib.Path(sys.argv[1]).glob('*.pkl')):
    try: pickle.loads(p.read_bytes())
    except BaseException as e: print(p, type(e), e)
'''


def in_zip(path, body, root='archive', **more): # more: further entries
    with zipfile.ZipFile(path, 'w') as z:
        z.writestr(f'{root}/data.pkl', body)
        for k, v in more.items(): z.writestr(f'{root}/{k}', v)
    return path


def in_legacy(path, *a, **k): path.write_bytes(legacy(*a, **k)); return path


def test_nothing_hostile_runs(tmp_path):
    "Refused in both containers, no file made; and Python's own reader, given the same bytes, makes every one."
    hostile = attacks(str(tmp_path/'c'))
    assert len(hostile) >= 50
    (tmp_path/'files').mkdir()
    for i, k in enumerate(hostile):
        c = tmp_path/'files'/f'c{i:02}'
        bad = attacks(str(c))[k]
        for p in (in_zip(tmp_path/'bad.pt', bad), in_legacy(tmp_path/'old.pt', bad)):
            with pytest.raises(WeightsError) as e: load_checkpoint(p)
            said = str(e.value)
            assert any(word in said for word in ('it asks for', 'the instruction', 'it fills', 'it makes an object',
                                                 'it calls')), (k, said)
            asked = re.search("it asks for '([^']+)'", said)
            if asked:
                assert (asked[1].rpartition('.')[2].encode() in bad
                        and not re.match(r'(torch|models|pathlib)\.\w*Path$', asked[1])), (k, said)
            if k in ('os.system', 'builtins.eval', 'functools.partial', 'operator.attrgetter',
                     'torch.storage._load_from_bytes'):
                assert f"'{k}'" in said, (k, said)
        assert not os.path.lexists(c), k
        (tmp_path/'files'/f'{i:02}.pkl').write_bytes(bad)
    assert not [p for p in (tmp_path/'files').iterdir() if p.suffix != '.pkl']
    for i, k in enumerate(hostile): # what some of them run
        c = tmp_path/'files'/f'c{i:02}'
        inner = program(call('posix.system', f'touch {c}'))
        if k == 'runpy.run_path': Path(f'{c}.py').write_text(f'open({str(c)!r}, "w").close()')
        if k == 'numpy.load': Path(f'{c}.npy').write_bytes(inner)
        if k == 'shutil.copytree': Path(f'{c}.dir').mkdir()
    done = subprocess.run([sys.executable, '-c', LOADER, str(tmp_path/'files')], capture_output=True, text=True,
                          timeout=120, cwd=tmp_path)
    idle = [k for i, k in enumerate(hostile) if not os.path.lexists(tmp_path/'files'/f'c{i:02}')]
    assert not idle, f'harmless, so no test: {idle}\n{done.stdout}{done.stderr}'


# ---- files that are no attack on the interpreter, but lie, or would break a careless reader

def storage(key='0', numel=4, kind='torch.FloatStorage'):
    return b'(' + value('storage') + name(kind) + value(key) + value('cpu') + value(numel) + b'tQ'
def tensor(s=None, offset=0, shape=(2, 2), stride=(2, 1)):
    return call('torch._utils._rebuild_tensor_v2', s or storage(), offset, shape, stride, False,
                call('collections.OrderedDict'))
FOUR = {'data/0': struct.pack('<4f', 1, 2, 3, 4)}
def deep(n): return b'(' * n + b't' * n


LIES = {
    'storage longer than its entry': (tensor(storage(numel=5)), FOUR, '5 × 4 bytes, which has 16'),
    'storage shorter than its entry': (tensor(storage(numel=3), shape=(1,), stride=(1,)), FOUR, '3 × 4 bytes'),
    'storage that is not there': (tensor(storage('7')), FOUR, "'7' of 4 × 4 bytes, which has none"),
    'negative storage': (tensor(storage(numel=-4)), FOUR, '-4 numbers'),
    'storage of a true number': (tensor(storage(numel=True)), FOUR, 'True numbers'),
    'storage outside': (tensor(storage('../../../etc/passwd')), FOUR, 'a storage named'),
    'storage with a slash': (tensor(storage('/etc/passwd')), FOUR, 'a storage named'),
    'quantised storage': (tensor(storage(kind='torch.QUInt8Storage')), FOUR, "'torch.QUInt8Storage'"),
    'untyped storage': (tensor(storage(kind='torch.UntypedStorage')), FOUR, "'torch.UntypedStorage'"),
    'beyond the storage': (tensor(offset=1), FOUR, 'the last at 4'),
    'negative offset': (tensor(offset=-1), FOUR, 'a tensor of shape'),
    'negative stride': (tensor(stride=(2, -1)), FOUR, 'a tensor of shape'),
    'a terabyte from four numbers': (tensor(shape=(10**6, 10**6), stride=(0, 0)), FOUR, '1,000,000,000,000 numbers'),
    'shape of true numbers': (tensor(shape=(True, 2)), FOUR, 'a tensor of shape'),
    'shape and stride of different length': (tensor(stride=(1,)), FOUR, 'a tensor of shape'),
    'hundred dimensions': (tensor(shape=(1,)*100, stride=(1,)*100), FOUR, 'a tensor of shape'),
    'tensor of a text': (tensor(value('x')), FOUR, 'a tensor of shape'),
    'persistent id as text': (b'P0\n', {}, 'the instruction PERSID'),
    'persistent id that is a number': (value(1) + b'Q', {}, 'no storage'),
    'persistent id of another kind': (
        b'(' + value('file') + name('torch.FloatStorage') + value('0') + value('cpu') + value(4) + b'tQ', FOUR,
        'no storage'),
    'view of a storage': (tensor(storage()[:-2] + value(('1', 0, 1)) + b'tQ'), FOUR, 'a view of another'),
    'too many arguments': (call('torch._utils._rebuild_parameter'), {}, 'with 0 arguments'),
    'called number': (value(1) + b')R', {}, 'it calls a int'),
    'called text': (value('os.system') + b')R', {}, 'it calls a str'),
    'called storage type': (call('torch.FloatStorage', 10**12), {}, "it calls 'torch.FloatStorage'"),
    'deep tuple as a key': (b'}' + deep(200_000) + b'Ns', {}, 'a tuple as a key'),
    'colliding keys': (b'}(' + b''.join(value((2**61 - 1)*i) + b'N' for i in range(3)) + b'u', {}, 'a int as a key'),
    'memo of 2³² places': (value([]) + b'r\xff\xff\xff\xff', {}, 'without a network'),
    'memo that is empty': (b'h\x05', {}, 'never stored'), 'empty stack': (b'\x85', {}, 'empty stack'),
    'no mark': (b'e', {}, 'a mark is missing'), 'left over': (value(1) + value(2), {}, 'left over'),
    'append to a number': (value(1) + value(2) + b'a', {}, 'it fills a int'),
    'items into a tuple': (b')' + value(1) + value(2) + b's', {}, 'it fills a tuple'),
    'state of a tensor': (tensor() + value({'a': 1}) + b'b', FOUR, 'it fills a LazyTensor'),
    'state of a class': (name('torch.nn.modules.conv.Conv2d') + value({'forward': 1}) + b'b', {},
                         'it fills a _GlobalRef'),
    'state of a function': (name('torch._utils._rebuild_tensor_v2') + value({'x': 1}) + b'b', {},
                            'it fills a _GlobalRef'),
    'state twice': (call('argparse.Namespace') + value({}) + b'b' + value({}) + b'b', {}, 'twice'),
    'other encoding': (call('_codecs.encode', 'x', 'rot13'), {}, "with 'rot13'"),
    'unknown opcode': (b'\xff', {}, 'damaged'), 'text longer than the file': (b'X\xff\xff\xff\x7fabc', {}, 'damaged'),
    'number of a million digits': (b'I' + b'9'*10**6 + b'\n', {}, 'damaged'),
    'out-of-band buffer': (b'\x97', {}, 'NEXT_BUFFER'),
    'bytearray': (b'\x96' + struct.pack('<Q', 2**60), {}, 'damaged'),
    'a number instead of a checkpoint': (value(3), {}, 'without a network'),
    'a program of many megabytes': (b'N0'*(5 << 20) + b'N', {}, 'a program of'),
    'big-endian': (value({}), {'byteorder': b'big'}, 'big-endian'),
    'TorchScript': (value({}), {'code/x.py': b'x'}, 'TorchScript'),
    'name that climbs': (value({}), {'../../x': b'x'}, 'an entry named'),
    'Windows path': (value({}), {'C:\\x': b'x'}, 'an entry named'),
}


@pytest.mark.parametrize('case', LIES)
def test_lies_are_refused_by_name(tmp_path, case):
    body, more, words = LIES[case]
    with pytest.raises(WeightsError) as e: load_checkpoint(in_zip(tmp_path/'a.pt', program(body), **more))
    assert words in str(e.value), str(e.value)


def test_strange_zips(tmp_path):
    p, body = tmp_path/'a.pt', program(value({}))
    def refused(words):
        with pytest.raises(WeightsError, match=words): load_checkpoint(p)
    with zipfile.ZipFile(p, 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('a/data.pkl', body); z.writestr('a/data/0', bytes(10**7))
    refused('compressed')
    with warnings.catch_warnings(), zipfile.ZipFile(p, 'w') as z:
        warnings.simplefilter('ignore')
        for _ in range(2): z.writestr('a/data.pkl', body)
    refused('twice')
    with zipfile.ZipFile(p, 'w') as z: z.writestr('a/data.pkl', body); z.writestr('b/data.pkl', body)
    refused('several')
    with zipfile.ZipFile(p, 'w') as z: z.writestr('a/readme', b'hello')
    refused('no data.pkl')
    good = in_zip(p, body, **{'data/0': bytes(64)}).read_bytes()
    at = good.rindex(b'PK\x01\x02')
    # a size that is not there
    p.write_bytes(good[:at + 20] + struct.pack('<II', 10**9, 10**9) + good[at + 28:])
    refused('overlap')
    p.write_bytes(good[:at + 8] + b'\x01' + good[at + 9:])
    refused('encrypted')
    for cut in (10, 40, len(good)//2, len(good) - 5):
        p.write_bytes(good[:cut])
        with pytest.raises(WeightsError): load_checkpoint(p)
    whole = in_zip(p, program(tensor()), **FOUR).read_bytes()
    # contents that its checksum does not fit
    p.write_bytes(whole.replace(FOUR['data/0'], bytes(16), 1))
    with pytest.raises(safe_pickle.UnsafeCheckpoint, match='not those that were written'):
        safe_pickle.read_checkpoint(p).tensor()


def test_strange_old_files(tmp_path):
    p, t = tmp_path/'a.pt', program(b'}' + value('w') + tensor() + b's')
    numbers = struct.pack('<q4f', 4, 1, 2, 3, 4)
    assert safe_pickle.read_checkpoint(in_legacy(p, t, ['0'], numbers))['w'].tensor().tolist() == [[1, 2], [3, 4]]
    for words, file in {'a bare pickle': lambda: p.write_bytes(pickle.dumps({'a': 1})),
                        'bare pickle,': lambda: in_legacy(p, t, magic=7),
                        'big-endian': lambda: in_legacy(p, t, habits=HABITS | {'little_endian': False}),
                        'list of storages': lambda: in_legacy(p, t, ['0', '1'], numbers),
                        'where it is not': lambda: in_legacy(p, t, ['0'], numbers[:-1]),
                        'of 4 numbers at byte': lambda: in_legacy(p, t, ['0'], b'\x05' + numbers[1:]),
                        'two kinds': lambda: in_legacy(p, program(b'](' + tensor() + tensor(storage(numel=5)) + b'e'),
                                                       ['0'], numbers)}.items():
        file()
        with pytest.raises(WeightsError, match=words): load_checkpoint(p)


def test_nothing_of_the_file_reaches_the_interpreter(tmp_path):
    "Classes that exist and would do harm are not touched: neither made, nor filled, nor patched."
    before = dict(vars(nn.Conv2d))
    class Trap:
        def __setstate__(self, state): raise AssertionError('filled')
        def __new__(cls, *a): raise AssertionError('made')
    sys.modules['models'] = sys.modules['models.trap'] = module = types.ModuleType('models.trap'); module.Trap = Trap
    try:
        got = safe_pickle.read_checkpoint(in_zip(tmp_path/'a.pt', program(name('models.trap.Trap') + b')\x81'
                                                                          + value({'x': 1}) + b'b')))
    finally: del sys.modules['models'], sys.modules['models.trap']
    assert (got.kind, got.state) == ('models.trap.Trap', {'x': 1}) and dict(vars(nn.Conv2d)) == before


def test_reading_needs_no_time_for_bombs(tmp_path):
    "A hundred lists, each holding the one before ten times: read at once; and a module that holds itself is named."
    bomb = []
    for _ in range(100): bomb = [bomb]*10
    with pytest.raises(WeightsError, match='without a network'):
        load_checkpoint(in_zip(tmp_path/'a.pt', pickle.dumps({'x': bomb}, 2)))
    own = name('models.yolo.Model') + b')\x81q\x00}' + value('_modules') + b'}' + value('model') + b'h\x00ssb'
    with pytest.raises(WeightsError): load_checkpoint(in_zip(tmp_path/'a.pt', program(own)))
    module = safe_pickle.safe_load(io.BytesIO(program(own)), None)
    with pytest.raises(safe_pickle.UnsafeCheckpoint, match='occurs twice'): safe_pickle.module_state_dict(module)


# ---- checkpoints as their authors' code writes them: the same module trees, from classes made here

def fake(module, n): # a class whose pickles look like YOLOv5's
    sys.modules.setdefault(module, types.ModuleType(module))
    def forward_fuse(self, x): return x
    cls = type(n, (nn.Module,), {'__module__': module, 'forward_fuse': forward_fuse})
    setattr(sys.modules[module], n, cls)
    return cls


@pytest.fixture
def v5():
    "A builder of pickled YOLOv5 networks: tree(detector) gives the module whose tensors are the detector's."
    before = set(sys.modules)
    fake('models', 'X')
    Model, Detect = fake('models.yolo', 'Model'), fake('models.yolo', 'Detect')
    kinds = {k: fake('models.common', k) for k in ('Conv', 'C3', 'Bottleneck', 'SPPF', 'Concat')}

    def conv_(c, fused):
        m = kinds['Conv']()
        m.conv = c.conv
        if c.bn is not None: m.bn = c.bn
        m.act = nn.SiLU()
        if fused: m.forward = m.forward_fuse
        return m

    def tree(d, heads, nc, depth, width, names, fused=False):
        kinds_ = ('Conv' + ' Conv C3'*(heads + 1) + ' SPPF'
                  + ' Conv Upsample Concat C3'*(heads - 1) + ' Conv Concat C3'*(heads - 1) + ' Detect').split()
        joins = {3: [6, 4, 14, 10, [17, 20, 23]], 4: [8, 6, 4, 20, 16, 12, [23, 26, 29, 32]]}[heads]
        by, lines = {}, d.cfg.text.split('\n')
        for s in d.cfg.sections[1:]:
            if lines[s.line - 2].startswith('# model.'): by[lines[s.line - 2][2:]] = d.layers[s.index - 1]
        layers = nn.Sequential()
        for i, k in enumerate(kinds_):
            mine = {n.removeprefix(f'model.{i}').lstrip('.'): c for n, c in by.items() if n == f'model.{i}'
                    or n.startswith(f'model.{i}.')}
            m = (conv_(mine[''], fused) if k == 'Conv' else nn.Upsample(None, 2, 'nearest') if k == 'Upsample'
                 else Detect() if k == 'Detect' else kinds[k]())
            if k in ('C3', 'SPPF'):
                # not the cfg's order
                for n in ('cv1', 'cv2', 'cv3')[:2 if k == 'SPPF' else 3]: setattr(m, n, conv_(mine[n], fused))
            if k == 'Concat': m.d = 1
            if k == 'SPPF': m.m = nn.MaxPool2d(5, 1, 2)
            if k == 'C3':
                m.m = nn.Sequential()
                for j in range(sum(n.endswith('.cv1') and n.startswith('m.') for n in mine)):
                    b = kinds['Bottleneck']()
                    b.cv1, b.cv2, b.add = (conv_(mine[f'm.{j}.cv1'], fused), conv_(mine[f'm.{j}.cv2'], fused),
                                           i < 2*heads + 3)
                    m.m.append(b)
            m.i, m.f, m.type = (i, -1 if k not in ('Concat', 'Detect') else [-1, joins.pop(0)] if k == 'Concat'
                                else joins[0], k)
            if k == 'Detect':
                m.nc, m.nl, m.m = nc, heads, nn.ModuleList(d.layers[h.conv].conv for h in d.heads)
                stride = torch.tensor([float(h.stride) for h in d.heads])
                m.register_buffer('anchors', torch.tensor(np.stack([h.anchors for h in d.heads]),
                                                          dtype=torch.float32)/stride.view(-1, 1, 1))
            layers.append(m)
        out = Model()
        out.model, out.names, out.yaml, out.stride = layers, names, {'nc': nc, 'depth_multiple': depth,
                                                                     'width_multiple': width, 'backbone': [],
                                                                     'head': []}, stride
        return out
    yield tree
    for k in set(sys.modules) - before: del sys.modules[k]


def trained(d): # BatchNorms that have seen something
    g = torch.Generator().manual_seed(5)
    for m in d.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, .3, generator=g); m.running_var.uniform_(.5, 2, generator=g)
    return d


def same_outputs(a, b, size=64, tolerance=0.):
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    a, b = a.double().eval(), b.double().eval()
    with torch.no_grad():
        return max((p - q).abs().max().item() for p, q in zip([*a(x), a.decode(a(x))],
                                                              [*b(x), b.decode(b(x))])) <= tolerance


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('size, how', [('yolov5n', ''), ('yolov5n', 'fused'), ('yolov5n', 'half ema legacy'),
                                       ('yolov5n6', 'dict parallel'), ('yolov5n', 'own width')])
def test_yolov5(v5, tmp_path, size, how):
    heads, dw = (4 if size[-1] == '6' else 3), zoo.V5_MULTIPLES['n'] if 'own' not in how else (.2, .125)
    names = ['소형차', 'bus', 'van']
    d = trained(Detector(zoo.yolov5(3, depth=dw[0], width=dw[1], p6=heads == 4).cfg(size), names, seed=1))
    if 'fused' in how: d.fuse()
    if 'half' in how: d.half()
    m = v5(d, heads, 3, *dw, dict(enumerate(names)) if 'dict' in how else names, 'fused' in how)
    if 'parallel' in how: p = nn.DataParallel.__new__(nn.DataParallel); nn.Module.__init__(p); p.module = m; m = p
    other = v5(Detector(d.cfg, names, seed=9), heads, 3, *dw, names) if 'ema' in how else None
    torch.save({'epoch': -1, 'best_fitness': np.array([.5]), 'model': other or m, 'ema': m if 'ema' in how else None,
                'optimizer': None, 'opt': {'weights': Path('x/y.pt')}, 'date': 'now'},
               tmp_path/'v5.pt', _use_new_zipfile_serialization='legacy' not in how)
    got = load_checkpoint(tmp_path/'v5.pt')
    assert got.names == names and got.cfg.name == (size if 'own' not in how else 'yolov5-0.2-0.125')
    assert ([h.anchors.tolist() for h in got.heads] == [h.anchors.tolist() for h in d.heads]
            and same_outputs(d.float(), got, 64*2))
    assert all(p.dtype == torch.float64 for p in got.parameters())


def test_yolov5_from_an_edited_yaml(v5, tmp_path):
    "What its modules say is built; what does not fit, or has no name here, is refused."
    def load(edit):
        m = v5(Detector(zoo.build('yolov5n', 3), seed=1), 3, 3, *zoo.V5_MULTIPLES['n'], ['a', 'b', 'c'])
        edit(m)
        torch.save({'model': m}, tmp_path/'v5.pt')
        return load_checkpoint(tmp_path/'v5.pt')
    def refused(words, edit):
        with pytest.raises(WeightsError, match=words): load(edit)
    kinds = lambda d: [s.type for s in d.cfg.sections]
    plain = load(lambda m: m.yaml.update(depth_multiple=10**9))                 # the modules count, not the yaml
    assert kinds(load(lambda m: setattr(m.model[13].m[0], 'add', True))).count('shortcut') == (
        kinds(plain).count('shortcut') + 1)
    assert load(lambda m: setattr(m.model[0], 'act', nn.Hardswish())).cfg.sections[1]['activation'] == 'hardswish'
    assert load(lambda m: setattr(m.model[1].bn, 'eps', 1e-5)).layers[1].bn.eps == 1e-5
    refused('its modules do not fit', lambda m: setattr(m.model[12], 'f', [-1, 4]))
    refused('its head is a Identity', lambda m: m.model.append(nn.Identity()))
    refused('its head is a C3', lambda m: m.model.__delitem__(24))
    refused('an activation Softsign', lambda m: setattr(m.model[0], 'act', nn.Softsign()))
    refused(r'model.2.cv1.conv is \(8, 32, 1, 1\)',
            lambda m: (setattr(m.model[2].cv1, 'conv', nn.Conv2d(32, 8, 1, bias=False))
                       or setattr(m.model[2].cv1, 'bn', nn.BatchNorm2d(8, eps=.001))))


def theirs(d, prefix='module_list', implicit=True): # our state dict under YOLOR's and PyTorch_YOLOv4's names
    out = {}
    for k, t in d.state_dict().items():
        _, i, *part = k.split('.')
        part = ({'conv': 'Conv2d', 'bn': 'BatchNorm2d'}.get(part[0], part[0]) + '.'
                + part[-1] if len(part) > 1 else 'implicit')
        out[f'{prefix}.{i}.{part}'] = t
    return out


SMALL_YOLOR = '''[net]
width=64
height=64
channels=3
[reorg]
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=silu
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=silu
[implicit_add]
filters=8
[implicit_mul]
filters=21
[route]
layers=-3
[shift_channels]
from=3
[convolutional]
filters=21
size=1
activation=linear
[control_channels]
from=4
[yolo]
mask=0,1,2
anchors=10,10, 16,16, 26,26
classes=2
num=3
scale_x_y=1.05
'''


def test_yolor_with_its_cfg(tmp_path):
    "Names, ε and decoding are those of its code: the cfg says scale_x_y=1.05, the code (2σ)²."
    (tmp_path/'small.cfg').write_text(SMALL_YOLOR)
    exact = Cfg.parse(SMALL_YOLOR.replace('scale_x_y=1.05', 'scale_x_y=2.0\nnew_coords=1').replace(
        'activation=silu', 'activation=silu\neps=.0001'))
    d = trained(Detector(exact, seed=3))
    torch.save({'epoch': 0, 'training_results': None, 'model': theirs(d, 'module.module_list'),
                'optimizer': {'state': {0: {'momentum_buffer': torch.zeros(3)}}}}, tmp_path/'y.pt')
    got = load_checkpoint(tmp_path/'y.pt', tmp_path/'small.cfg')
    assert same_outputs(d, got)
    with pytest.raises(WeightsError, match='no network of the zoo'): load_checkpoint(tmp_path/'y.pt')
    state = theirs(d.float())
    torch.save({k.replace('.7.', '.8.'): t for k, t in state.items()}, tmp_path/'y.pt')
    with pytest.raises(WeightsError, match='module_list.8.Conv2d fits layer 7 of small'):
        load_checkpoint(tmp_path/'y.pt', tmp_path/'small.cfg')
    torch.save({k: t for k, t in state.items() if 'implicit' not in k}, tmp_path/'y.pt')
    with pytest.raises(WeightsError, match='its shapes are not those of small'):
        load_checkpoint(tmp_path/'y.pt', tmp_path/'small.cfg')
    torch.save(state | {'module_list.8.w': torch.ones(2)}, tmp_path/'y.pt')
    with pytest.raises(WeightsError, match='module_list.8 holds w'):
        load_checkpoint(tmp_path/'y.pt', tmp_path/'small.cfg')


def test_the_zoo_is_recognised_only_where_shapes_suffice(tmp_path):
    for n, prefix, words in (('yolov4-tiny', 'module_list', 'Give its cfg'), ('yolov4-tiny', 'models', ''),
                             ('yolov3-tiny', 'module_list', 'whose code wrote it')):
        torch.save({'model': theirs(d := Detector(zoo.build(n, 3), seed=1), prefix)}, tmp_path/'s.pt')
        if words:
            with pytest.raises(WeightsError, match=words): load_checkpoint(tmp_path/'s.pt')
        else:
            got = load_checkpoint(tmp_path/'s.pt')
            assert ((got.cfg.name, got.nc) == (n, 3)
                    and all(torch.equal(a, b) for a, b in zip(d.state_dict().values(), got.state_dict().values())))


@pytest.mark.parametrize('name', ['small.cfg', 'yolov3-small.cfg', '주차.cfg'])
def test_whose_code_wrote_a_state_dict_is_told_by_its_keys_or_asked(tmp_path, name):
    "exp or (2σ)², ε of 1e-5 or 1e-4: from the keys, from origin=, never from the name of a file."
    text = SMALL_YOLOR.replace('scale_x_y=1.05\n', '')
    for k in ('implicit_add', 'implicit_mul', 'shift_channels', 'control_channels'):
        text = re.sub(rf'\[{k}\]\n\w+=\d+\n', '', text)
    (tmp_path/name).write_text(text.replace('[route]\nlayers=-3\n', ''))
    d = Detector(Cfg.read(tmp_path/name), seed=3)
    ours = theirs(d)
    old = {re.sub(r'\.(\d+)\.(Conv2d|BatchNorm2d)', lambda m: f'.{m[1]}.' + {'C': 'conv_', 'B': 'batch_norm_'}[m[2][0]]
                  + m[1], k): t for k, t in ours.items()}
    def load(saved, **kw):
        torch.save(saved, tmp_path/'s.pt')
        got = load_checkpoint(tmp_path/'s.pt', tmp_path/name, **kw)
        return 'new_coords=1' in str(got.cfg), got.layers[1].bn.eps
    for saved in (ours, dict(model=ours, training_results=''), dict(epoch=3, best_fitness=.1, model=ours)):
        with pytest.raises(WeightsError, match='origin=yolov3.*origin=yolor.*origin=darknet'): load(saved)
        assert load(saved, origin='yolov3') == (False, 1e-4) and load(saved, origin='yolor') == (True, 1e-4)
        assert load(saved, origin='darknet') == (False, 1e-5)
    assert load(old) == (False, 1e-5)
    assert load(dict(epoch=3, best_fitness_p=.1, model=ours)) == (True, 1e-4)
    assert load(dict(epoch=3, best_fitness_p=.1, model=ours), origin='yolov3') == (False, 1e-4)
    with pytest.raises(WeightsError, match='origin=yolo: choose one of yolov3, yolor, darknet'):
        load(old, origin='yolo')
    again = str(Cfg.read(tmp_path/name)).replace('batch_normalize=1', 'batch_normalize=1\neps=.001')
    (tmp_path/name).write_text(again.replace('[yolo]', '[yolo]\nnew_coords=1\nscale_x_y=2'))
    assert load(ours) == (True, 1e-3)                                    # the cfg says it all: nothing is asked

@pytest.mark.parametrize('how', ['zoo', 'cfg', 'DataParallel'])
def test_a_state_dict_of_yolov5_keeps_its_own_anchors(tmp_path, how):
    "Autoanchor changed them: they are in the file, not in the zoo."
    d = trained(Detector(zoo.build('yolov5n', 3), seed=1))
    pixels = [[7, 9, 15, 20, 30, 22], [33, 58, 66, 48, 60, 120], [110, 95, 155, 190, 370, 325]]
    lines = str(zoo.build('yolov5n', 3)).split('\n')
    names = {s.index - 1: lines[s.line - 2][2:] for s in d.cfg.sections if lines[s.line - 2].startswith('# model.')}
    state = {}
    for k, t in d.state_dict().items():
        _, i, part, n = k.split('.')
        n = n if '.m.' in names[int(i)] and names[int(i)].startswith('model.24') else f'{part}.{n}'
        state[f'{names[int(i)]}.{n}'] = t
    cells = torch.tensor(pixels).view(3, 3, 2)/torch.tensor([8, 16, 32]).view(3, 1, 1)
    state['model.24.anchors'] = cells
    if how == 'DataParallel': state = {'module.' + k: t for k, t in state.items()}
    torch.save(state, tmp_path/'s.pt')
    got = load_checkpoint(tmp_path/'s.pt', 'yolov5n' if how == 'cfg' else None)
    assert [a for h in got.heads for a in h.anchors.flatten().tolist()] == sum(pixels, [])
    assert got.nc == 3 and state_hash(got) == state_hash(d)

def test_a_state_dict_without_a_network_says_how_to_save_one(tmp_path):
    torch.save({'model.0.conv.weight': torch.ones(8, 3, 3, 3), 'model.0.conv.bias': torch.ones(8)}, tmp_path/'s.pt')
    with pytest.raises(WeightsError, match='torch.save'): load_checkpoint(tmp_path/'s.pt')


def test_our_own_checkpoints_load_with_weights_only_as_well(tmp_path):
    from yolokit.network.checkpoints import to_checkpoint
    d = Detector(zoo.build('yolokit-nano', 3), ['a', 'b', '다'], seed=2).half()
    torch.save(to_checkpoint(d, epoch=3, note={'x': [1, None]}), tmp_path/'o.pt')
    assert (torch.load(tmp_path/'o.pt', weights_only=True)['names'] == ['a', 'b', '다']
            and state_hash(load_checkpoint(tmp_path/'o.pt')) == state_hash(d.float()))


# ---- .weights

def published_bytes(cfg, seed=0, version=(0, 2, 5)): # a file of random numbers, its length counted from the plan alone
    n = sum(l.params + (2*l.section.int('filters') if l.type == 'convolutional'
                        and l.section.int('batch_normalize', 0) and 'share_index' not in l.section
                        else 0) for l in cfg.plan())
    rng = np.random.Generator(np.random.Philox(seed))
    return struct.pack('<3iQ', *version, 32013312
                       + 2**33) + (rng.random(n, np.float32) + 2**-20).astype('<f4').tobytes()


def there_and_back(cfg, folder):
    (folder/'in').write_bytes(published_bytes(cfg))
    d = Detector(cfg)
    r = read_weights(d, folder/'in')
    assert ((r.left, r.seen, r.version) == (0, 32013312 + 2**33, (0, 2, 5))
            and sum(x.bytes for x in r.rows) == (folder/'in').stat().st_size - 20)
    assert [x.start for x in r.rows] == list(np.cumsum([20] + [x.bytes for x in r.rows[:-1]]))
    write_weights(d, folder/'out', r.seen, r.version, r.implicit)
    assert (folder/'out').read_bytes() == (folder/'in').read_bytes()


SMALL_ONES = ['yolokit-nano', 'yolov4-tiny', 'yolov5n', 'yolov5n6']
@pytest.mark.parametrize('n', SMALL_ONES)
def test_read_write_is_identical(n, tmp_path): there_and_back(zoo.build(n), tmp_path)

@pytest.mark.soak
@pytest.mark.parametrize('n', [n for n in zoo.names() if n not in SMALL_ONES])
def test_read_write_is_identical_for_the_whole_zoo(n, tmp_path): there_and_back(zoo.build(n), tmp_path)


BASE = ('[net]\nwidth=16\nheight=16\nchannels=3\n[convolutional]\nbatch_normalize=1\nfilters=4\nsize=3\nstride=2\n'
        'pad=1\nactivation=leaky\n%s[convolutional]\nfilters=14\nsize=1\nactivation=linear\n[yolo]\nmask=0,1\n'
        'anchors=2,2, 4,4\nclasses=2\nnum=2\n')
CONV = '[convolutional]\nbatch_normalize=1\nfilters=4\nsize=3\npad=1\nactivation=mish\n'
SECTIONS = { # what stands in the middle: floats that it stores
    'conv': (CONV, 16 + 4*36), 'conv without BatchNorm': (CONV.replace('batch_normalize=1\n', ''), 4 + 4*36),
    'groups': (CONV + 'groups=2\n', 16 + 4*18), 'dontload': (CONV + 'dontload=1\n', 0),
    'dontloadscales': (CONV + 'dontloadscales=1\n', 4 + 4*36),
    'share_index': (CONV + CONV + 'share_index=1\n', 16 + 4*36),
    'flipped': (CONV.replace('filters=4', 'filters=6') + 'flipped=1\n', 24 + 6*36),
    'connected': ('[connected]\noutput=64\nactivation=leaky\n', 64 + 64*256),
    'connected with BatchNorm': ('[connected]\nbatch_normalize=1\noutput=64\nactivation=leaky\n', 4*64 + 64*256),
    'connected, dontloadscales': ('[connected]\nbatch_normalize=1\ndontloadscales=1\noutput=64\nactivation=leaky\n',
                                  64 + 64*256),
    'batchnorm': ('[batchnorm]\n', 16),
    'local': ('[local]\nfilters=3\nsize=3\npad=1\nactivation=leaky\n', 3*64 + 64*3*36),
    'shortcut per feature': (CONV + '[shortcut]\nfrom=-2\nweights_type=per_feature\nactivation=linear\n',
                             16 + 4*36 + 2),
    'shortcut per channel': (CONV + '[shortcut]\nfrom=-2\nweights_type=per_channel\nactivation=linear\n',
                             16 + 4*36 + 8),
    'implicit': ('[implicit_add]\nfilters=4\n[shift_channels]\nfrom=-1\n', None)}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('version, wide', [((0, 1, 0), 4), ((0, 2, 0), 8), ((0, 2, 5), 8), ((1001, 0, 0), 8)])
@pytest.mark.parametrize('what', SECTIONS)
def test_every_section_that_holds_weights(what, version, wide, tmp_path):
    body, floats = SECTIONS[what]
    if what == 'implicit':
        body = CONV + '[implicit_add]\nfilters=4\n[route]\nlayers=-2\n[shift_channels]\nfrom=-2\n'
        floats = 16 + 4*36 + 4
    text = BASE % body
    cfg = Cfg.parse(text)
    first, last = 16 + 4*27, 14 + 14*{'flipped': 6, 'local': 3, 'connected': 64, 'connected with BatchNorm': 64,
                                      'connected, dontloadscales': 64}.get(what, 4)
    for layout_ in ((True, False) if what == 'implicit' else (True,)):
        n = first + floats + last - (4 if not layout_ else 0)
        rng = np.random.Generator(np.random.Philox(7))
        data = (struct.pack('<3i', *version) + (2**31 + 5).to_bytes(wide, 'little')
                + (rng.random(n, np.float32) + .5).astype('<f4').tobytes())
        (tmp_path/'in').write_bytes(data)
        a, b = Detector(cfg, seed=1), Detector(cfg, seed=2)
        r = read_weights(a, tmp_path/'in'); read_weights(b, tmp_path/'in')
        assert (r.version, r.seen, r.left, r.implicit) == (version, 2**31 + 5, 0, layout_)
        write_weights(a, tmp_path/'out', r.seen, r.version, r.implicit)
        assert (tmp_path/'out').read_bytes() == data
        if 'dontload' not in what and layout_: assert state_hash(a) == state_hash(b)
        for cut in (4, n*4 - 8):                                                   # short and long ones name the layer
            (tmp_path/'in').write_bytes(data[:-cut])
            with pytest.raises(WeightsError, match=r'too short. Layer \d+ \[\w+\] \(line \d+'):
                read_weights(b, tmp_path/'in')
        (tmp_path/'in').write_bytes(data + b'\0'*8)
        with pytest.raises(WeightsError, match='too long. The last layer' if layout_ else 'too (long|short). '):
            read_weights(b, tmp_path/'in')
        before = state_hash(b)
        (tmp_path/'in').write_bytes(data[:12 + wide] + struct.pack('<f', -1.)*n)
        with pytest.raises(WeightsError, match='variance below zero'): read_weights(b, tmp_path/'in')
        assert state_hash(b) == before


def test_transposed_connected_layers():
    "Version above 1000: Darknet transposes what it read (parser.c: transpose_matrix(weights, inputs, outputs))."
    cfg = Cfg.parse(BASE % SECTIONS['connected'][0])
    d = Detector(cfg, seed=1)
    new, old = [{(i, n): t for i, _, n, t in layout(d, transposed)} for transposed in (False, True)]
    assert torch.equal(new[1, 'weights'], old[1, 'weights'].t()) and new[1, 'weights'].shape == (64, 256)


def test_surgery_reaches_the_implicit_vectors(tmp_path):
    "YOLOR's factors behind the head have a number for each class as well."
    src = Detector(Cfg.parse(SMALL_YOLOR).with_classes(4), ['car', 'bus', 'van', 'truck'], seed=1)
    dst = Detector(Cfg.parse(SMALL_YOLOR), ['화물차', 'car'], seed=2)
    before = dst.layers[4].weight.detach().clone().view(3, 7)
    r = transfer_weights(dst, src, {'화물차': 'truck'})
    a, b = dst.layers[4].weight.view(3, 7), src.layers[4].weight.view(3, 9)
    assert (torch.equal(a[:, :5], b[:, :5]) and torch.equal(a[:, 5], b[:, 8]) and torch.equal(a[:, 6], b[:, 5])
            and not torch.equal(before, a))
    assert {x.name for x in r.rows if x.how == 'sliced'} == {'layers.4.weight', 'layers.7.conv.weight',
                                                             'layers.7.conv.bias'} and r.count('new') == 0
    half = transfer_weights(Detector(Cfg.parse(SMALL_YOLOR), ['x', 'car'], seed=3), src)
    assert '1 of 2 classes' in str(half) and half.count('unused') == 0


def test_class_surgery_of_a_gaussian_head_keeps_its_nine_rows():
    "Four coordinates with their deviations, and the objectness: rows 0 to 8 of an anchor are no classes."
    text = ('[net]\nwidth=32\nheight=32\nchannels=3\n'
            '[convolutional]\nfilters={f}\nsize=1\nstride=1\npad=1\nactivation=linear\n'
            '[Gaussian_yolo]\nmask=0,1\nanchors=4,4, 8,8\nnum=2\nclasses={c}\n')
    a, b = (Detector(Cfg.parse(text.format(f=2*(9 + len(n)), c=len(n))), n,
                     seed=s) for s, n in enumerate((['car', 'bus'], ['van', 'bus', 'car'])))
    report = transfer_weights(a, b)
    x, y = (d.layers[0].conv.bias.view(2, 9 + d.nc) for d in (a, b))
    assert (torch.equal(x[:, :9], y[:, :9]) and torch.equal(x[:, 9:], y[:, [11, 10]])
            and {r.how for r in report.rows} == {'sliced'})
